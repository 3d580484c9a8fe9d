"""The conditional U-Net laid out for inference: matrix products, tables of FiLM terms, positions first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, linear, mish

from diffpolicy_spec.policies.inference.convolution import Convolution, Down, Up
from diffpolicy_spec.policies.inference.matrix import Made, Matrix
from diffpolicy_spec.policies.unet import ConditionalUnet1D
from diffpolicy_spec.runtime.network import Watch

__all__ = ["InferenceUnet"]

# From this many values on, several vectorised passes are faster on CPU than torch's own kernels (mish: 4 ns a value).
_PASSES_FROM = 2**13

_Layer = TypeVar("_Layer", "Convolution", "Down", "Up", "_Norm")


class InferenceUnet:
    """ConditionalUnet1D, called as an InferenceNetwork.

    A block's FiLM term is W mish([e_t; c]) + b = (W_t mish(e_t) + b) + W_c mish(c): the first part of all blocks is one
    table (num_train_timesteps, F), the second is in `features`. A call gathers and adds once, and slices. A local
    condition stands behind it there.

    Args:
        network: stays the owner of the weights; it is read again when they change.
        num_train_timesteps: of the training chain; t is below it.
        dtype: of weights and activations; group norms, FiLM and the residual sums are computed in float32.
    """

    def __init__(
        self, network: ConditionalUnet1D, num_train_timesteps: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self.network, self.num_train_timesteps, self.dtype = network, num_train_timesteps, dtype
        self._watch = Watch(network)
        self._device: torch.device | None = None
        self._refresh()

    def _lay_out(self) -> None:
        network = self.network
        self._table, self._condition = Made(self._film_table), Made(self._film_condition)
        self._parts: list[Made | Matrix] = [self._table, self._condition]
        self._films: list[nn.Linear] = []
        # Of its two encoders the second is not part of what the network computes.
        self._local = None if network.local_cond_encoder is None else _Residual(self, network.local_cond_encoder[0])
        self._down = [self._level(level) for level in network.down_modules]
        self._mid = [_Residual(self, block) for block in network.mid_modules]
        self._up = [self._level(level) for level in network.up_modules]
        self._final, self._last = _Block(self, network.final_conv[0]), self.layer(Convolution, network.final_conv[1])

    @property
    def nbytes(self) -> int:
        """Held beside the network's parameters: all weights laid out anew (in float32 on CPU 2.6 times), and tables."""
        return sum(part.nbytes for part in self._parts)

    def features(self, condition: Tensor) -> Tensor:
        """(B, G + T L) -> (B, F + T L): the global condition's part of all FiLM terms, and the local one as it is."""
        self._refresh()
        given = condition.float()
        film = linear(mish(given[:, : self.network.global_cond_dim]), self._condition.value)
        return film if self._local is None else torch.cat([film, given[:, self.network.global_cond_dim :]], dim=1)

    def __call__(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """x: (N, T, D), t: (N,), features: (N, F + T L) -> (N, T, D).

        Raises:
            ValueError: T is not divisible by 2 ** (levels - 1).
        """
        if x.shape[1] % (factor := 2 ** (len(self._down) - 1)):
            raise ValueError(f"x must be (N, T, D) with T divisible by {factor}, got {tuple(x.shape)}")
        table = self._table.value
        film = table[t] + features[:, : table.shape[1]]
        beside = None
        if self._local is not None:
            local = features[:, table.shape[1] :].unflatten(1, (x.shape[1], -1)).transpose(0, 1)
            beside = self._local(local.to(self.dtype).contiguous(), film)
        x = x.transpose(0, 1).to(self.dtype).contiguous()
        skips = []
        for first, second, down in self._down:
            x = first(x, film)
            if beside is not None:
                x, beside = x + beside, None
            x = second(x, film)
            skips.append(x)
            x = down(x)
        for block in self._mid:
            x = block(x, film)
        for first, second, up in self._up:
            x = up(second(first(torch.cat([x, skips.pop()], dim=2), film), film))
        return self._last(self._final(x).to(self.dtype)).transpose(0, 1).float()

    def layer(self, kind: Callable[[Any, torch.dtype], _Layer], module: nn.Module) -> _Layer:
        """A layer of the network's own module, kept up to date."""
        layer = kind(module, self.dtype)
        self._parts += layer.parts
        return layer

    def film(self, encoder: nn.Linear) -> slice:
        """Where the FiLM term of the next block is among F."""
        start = sum(film.out_features for film in self._films)
        self._films.append(encoder)
        return slice(start, start + encoder.out_features)

    def _level(self, level: Any) -> tuple[_Residual, _Residual, Callable[[Tensor], Tensor]]:
        first, second, resample = level
        blocks = _Residual(self, first), _Residual(self, second)
        if isinstance(resample, nn.Identity):
            return *blocks, resample
        if isinstance(resample.conv, nn.ConvTranspose1d):
            return *blocks, self.layer(Up, resample.conv)
        return *blocks, self.layer(Down, resample.conv)

    def _refresh(self) -> None:
        # Ordinary tensors, also when called in inference mode: they are written to again.
        with torch.inference_mode(False), torch.no_grad():
            if not self._watch.changed():
                return
            device = next(self.network.parameters()).device
            if device != self._device:
                self._lay_out()
                self._device = device
            for part in self._parts:
                part.refresh()

    def _film_table(self) -> Tensor:
        """(num_train_timesteps, F): W_t mish(e_t) + b of all blocks."""
        steps = torch.arange(self.num_train_timesteps, device=self._device)
        embedded = mish(self.network.diffusion_step_encoder(steps))
        return torch.cat([linear(embedded, f.weight[:, : embedded.shape[1]], f.bias) for f in self._films], dim=1)

    def _film_condition(self) -> Tensor:
        """(F, C): W_c of all blocks."""
        return torch.cat([f.weight[:, f.in_features - self.network.global_cond_dim :] for f in self._films])


class _Norm:
    """nn.GroupNorm, then Mish, on (L, N, C) float32."""

    def __init__(self, norm: nn.GroupNorm, dtype: torch.dtype) -> None:
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = Made(lambda: norm.weight), Made(lambda: norm.bias)
        self.parts = [self.weight, self.bias]

    def __call__(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and (x.numel() >= _PASSES_FROM or torch.compiler.is_compiling()):
            return _mish(self._normalise(x))
        x = group_norm(x.permute(1, 2, 0), self.groups, self.weight.value, self.bias.value, self.eps)
        return mish(x).permute(2, 0, 1)

    def _normalise(self, x: Tensor) -> Tensor:
        """Variance by E[x^2] - E[x]^2, as torch's channels-last kernel."""
        length, rows, channels = x.shape
        share = self.groups / (length * channels)
        mean = x.sum(0).view(rows, self.groups, -1).sum(2) * share
        square = (x * x).sum(0).view(rows, self.groups, -1).sum(2) * share
        inverse = torch.rsqrt(torch.addcmul(square, mean, mean, value=-1) + self.eps)
        scale = self.weight.value.view(self.groups, -1) * inverse[:, :, None]
        shift = torch.addcmul(self.bias.value.view(self.groups, -1), mean[:, :, None], scale, value=-1)
        return torch.addcmul(shift.view(rows, channels), scale.view(rows, channels), x)


def _mish(x: Tensor) -> Tensor:
    """x tanh(log(1 + e^x)) = x n / (n + 1), n = e^x + e^2x / 2; from x = 20 on it is x."""
    e = x.clamp(max=20).exp()
    n = torch.addcmul(e, e, e, value=0.5)
    return x * (n / (n + 1))


class _Block:
    """Convolution, group normalisation, Mish: (L, N, I) -> (L, N, O) float32."""

    def __init__(self, unet: InferenceUnet, block: Any) -> None:
        conv, norm, _ = block.block
        self.conv, self.norm = unet.layer(Convolution, conv), unet.layer(_Norm, norm)

    def __call__(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).float())


class _Residual:
    """ConditionalResidualBlock1D on (L, N, C)."""

    def __init__(self, unet: InferenceUnet, block: Any) -> None:
        self.first, self.second = (_Block(unet, b) for b in block.blocks)
        self.film, self.scales, self.dtype = unet.film(block.cond_encoder[1]), block.cond_predict_scale, unet.dtype
        residual = block.residual_conv
        self.residual = residual if isinstance(residual, nn.Identity) else unet.layer(Convolution, residual)

    def __call__(self, x: Tensor, film: Tensor) -> Tensor:
        h, film = self.first(x), film[:, self.film]
        if self.scales:
            scale, bias = film.chunk(2, dim=1)
            h = torch.addcmul(bias, scale, h)
        else:
            h = h + film
        return (self.second(h.to(self.dtype)) + self.residual(x)).to(self.dtype)
