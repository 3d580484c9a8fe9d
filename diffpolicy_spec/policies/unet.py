"""The conditional 1-D U-Net of Diffusion Policy, with the state-dict names of the published checkpoints.

Architecture: Chi et al., "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion", RSS 2023, after Janner et
al. 2022; conditioning by FiLM (Perez et al. 2018). Attribute names follow from the names in the published state dicts
and must not change: `down_modules.i.{0,1}.blocks.{0,1}.block.{0,1}`, `.cond_encoder.1`, `.residual_conv`, ...
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ConditionalResidualBlock1D", "ConditionalUnet1D", "SinusoidalEmbedding"]


class SinusoidalEmbedding(nn.Module):
    """Timesteps to features: sin and cos at dim/2 frequencies, geometric from 1 to 1/10000.

    The frequencies are a plain attribute rather than a buffer because published state dicts have no entry for them.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"the step embedding needs an even dimension of at least 4, got {dim}")
        self.dim = dim

    def forward(self, timestep: Tensor) -> Tensor:
        """timestep: (N,), any real dtype -> (N, dim) float32."""
        half = self.dim // 2
        exponents = torch.arange(half, device=timestep.device, dtype=torch.float32)
        frequencies = torch.exp(exponents * (-math.log(10000.0) / (half - 1)))
        angles = timestep.to(torch.float32)[:, None] * frequencies[None, :]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class _ConvBlock(nn.Module):
    """Convolution that keeps the length, group normalisation, Mish."""

    def __init__(self, dim_in: int, dim_out: int, kernel_size: int, n_groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(dim_in, dim_out, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(n_groups, dim_out),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _Downsample(nn.Module):
    """Half the length."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Upsample(nn.Module):
    """Twice the length."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(dim, dim, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ConditionalResidualBlock1D(nn.Module):
    """Two convolution blocks with a FiLM condition between them and a residual path around both.

    Args:
        cond_predict_scale: the condition gives a scale and a bias per channel; otherwise a bias only.
    """

    def __init__(
        self, dim_in: int, dim_out: int, cond_dim: int, kernel_size: int, n_groups: int, cond_predict_scale: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [_ConvBlock(dim_in, dim_out, kernel_size, n_groups), _ConvBlock(dim_out, dim_out, kernel_size, n_groups)]
        )
        self.cond_predict_scale = cond_predict_scale
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, dim_out * (2 if cond_predict_scale else 1)))
        self.residual_conv = nn.Conv1d(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """x: (N, dim_in, length), cond: (N, cond_dim) -> (N, dim_out, length)."""
        h = self.blocks[0](x)
        film = self.cond_encoder(cond)[:, :, None]
        if self.cond_predict_scale:
            scale, bias = film.chunk(2, dim=1)
            h = torch.addcmul(bias, scale, h)
        else:
            h = h + film
        return self.blocks[1](h) + self.residual_conv(x)


class ConditionalUnet1D(nn.Module):
    """Denoiser of action chunks, conditioned on the timestep, one global vector, and one local vector per action.

    Rows do not see each other: there are no batch statistics and no dropout, which the speculative sampler relies on.
    The local condition is added after the first block only. Published networks have a second encoder of it, for the
    way up, whose output they never add; it is here for its weights.

    Args:
        input_dim: D, dimensions of one step of the plan.
        global_cond_dim: G, dimensions of the global condition; 0 for none.
        diffusion_step_embed_dim: size of the timestep embedding.
        down_dims: channels per level; the chunk length must be divisible by 2 ** (levels - 1).
        kernel_size: odd length of the convolutions.
        n_groups: groups of the group normalisation; every level's channels must be divisible by it.
        cond_predict_scale: FiLM with scale and bias (published low-dimensional runs) or bias only.
        local_cond_dim: L, dimensions of the local condition; 0 for none.

    Raises:
        ValueError: an even kernel, or channels that the groups do not divide.
    """

    def __init__(
        self,
        input_dim: int,
        global_cond_dim: int,
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        n_groups: int = 8,
        cond_predict_scale: bool = True,
        local_cond_dim: int = 0,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        if not down_dims or any(d < 1 or d % n_groups for d in down_dims):
            raise ValueError(f"down_dims must be multiples of n_groups={n_groups}, got {list(down_dims)}")
        self.input_dim = input_dim
        self.global_cond_dim, self.local_cond_dim = global_cond_dim, local_cond_dim
        self.down_dims = tuple(down_dims)
        embed = diffusion_step_embed_dim
        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalEmbedding(embed), nn.Linear(embed, embed * 4), nn.Mish(), nn.Linear(embed * 4, embed)
        )

        def residual(dim_in: int, dim_out: int) -> ConditionalResidualBlock1D:
            return ConditionalResidualBlock1D(
                dim_in, dim_out, embed + global_cond_dim, kernel_size, n_groups, cond_predict_scale
            )

        self.local_cond_encoder = None
        if local_cond_dim:
            self.local_cond_encoder = nn.ModuleList(residual(local_cond_dim, down_dims[0]) for _ in range(2))
        levels = list(zip([input_dim, *down_dims[:-1]], down_dims, strict=True))
        self.down_modules = nn.ModuleList(
            nn.ModuleList(
                [
                    residual(dim_in, dim_out),
                    residual(dim_out, dim_out),
                    _Downsample(dim_out) if i < len(levels) - 1 else nn.Identity(),
                ]
            )
            for i, (dim_in, dim_out) in enumerate(levels)
        )
        self.mid_modules = nn.ModuleList([residual(down_dims[-1], down_dims[-1]) for _ in range(2)])
        # Skip connections double the channels that enter a level on the way up.
        self.up_modules = nn.ModuleList(
            nn.ModuleList([residual(dim_out * 2, dim_in), residual(dim_in, dim_in), _Upsample(dim_in)])
            for dim_in, dim_out in reversed(levels[1:])
        )
        # Published networks use 8 groups here whatever n_groups is.
        self.final_conv = nn.Sequential(
            _ConvBlock(down_dims[0], down_dims[0], kernel_size, 8), nn.Conv1d(down_dims[0], input_dim, 1)
        )

    def forward(self, sample: Tensor, timestep: Tensor | int, condition: Tensor | None = None) -> Tensor:
        """Predict the noise (or whatever the policy was trained to predict).

        Args:
            sample: (N, T, D).
            timestep: (N,), a scalar tensor or an int.
            condition: (N, G + T * L), the global condition, then each action's local one; None when there is neither.

        Returns:
            (N, T, D).

        Raises:
            ValueError: T not divisible by 2 ** (levels - 1), wrong D, or a condition of the wrong shape.
        """
        self._check(sample, condition)
        t = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        cond, local = self.diffusion_step_encoder(t), None
        if condition is not None:
            cond = torch.cat([cond, condition[:, : self.global_cond_dim]], dim=-1)
        if condition is not None and self.local_cond_encoder is not None:
            beside = condition[:, self.global_cond_dim :].unflatten(1, (-1, self.local_cond_dim)).transpose(1, 2)
            local = self.local_cond_encoder[0](beside, cond)
        x = sample.transpose(1, 2)
        skips = []
        for level in self.down_modules:
            first, second, down = _children(level)
            x = first(x, cond)
            if local is not None:
                x, local = x + local, None
            x = second(x, cond)
            skips.append(x)
            x = down(x)
        for module in self.mid_modules:
            x = module(x, cond)
        for level in self.up_modules:
            first, second, up = _children(level)
            x = up(second(first(torch.cat([x, skips.pop()], dim=1), cond), cond))
        return self.final_conv(x).transpose(1, 2)

    def _check(self, sample: Tensor, condition: Tensor | None) -> None:
        factor = 2 ** (len(self.down_dims) - 1)
        if sample.ndim != 3 or sample.shape[2] != self.input_dim or sample.shape[1] % factor:
            raise ValueError(
                f"sample must be (N, T, {self.input_dim}) with T divisible by {factor}, got {tuple(sample.shape)}"
            )
        expected = (sample.shape[0], self.global_cond_dim + sample.shape[1] * self.local_cond_dim)
        found = (sample.shape[0], 0) if condition is None else tuple(condition.shape)
        if found != expected:
            raise ValueError(f"condition must be {expected}, got {found}")


def _children(level: nn.Module) -> list[nn.Module]:
    return list(level.children())
