"""The Transformer of Diffusion Policy, with the state-dict names of the published checkpoints.

Architecture: Chi et al., "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion", RSS 2023, section III and
appendix: a decoder (Vaswani et al. 2017, normalisation first) over the T noisy actions, cross-attending to condition
tokens, one of the timestep and one of each of To observations. Attribute names follow from the names in the published
state dicts and must not change: `cond_pos_emb`, `encoder.{0,2}`, `decoder.layers.i.multihead_attn`, ... A published
state dict also has `_dummy_variable`, which is empty: a reader drops it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffpolicy_spec.policies.unet import SinusoidalEmbedding

__all__ = ["TransformerForDiffusion", "masks"]


class TransformerForDiffusion(nn.Module):
    """Denoiser of action chunks, conditioned on the timestep and To observations per row.

    Rows do not see each other; in evaluation mode there is no dropout. The defaults are the published low-dimensional
    runs (9.0M parameters), with time as a condition token; the variant with time among the actions is not here.

    Args:
        input_dim: Da, dimensions of one action.
        horizon: T, actions of a chunk.
        n_obs_steps: To, observations.
        cond_dim: Do, dimensions of one observation; 0 for no condition beside the timestep.
        n_layer, n_head, n_emb: layers, heads and width of the decoder.
        p_drop_emb, p_drop_attn: dropout in training.
        causal_attn: an action sees itself and earlier ones, and observation s only if it is not before it (action t,
            s <= t); otherwise everything sees everything.
        n_cond_layers: layers of a Transformer encoder over the condition tokens; 0: a perceptron on each of them.

    Raises:
        ValueError: heads that do not divide the width.
    """

    mask: Tensor | None
    memory_mask: Tensor | None

    def __init__(
        self,
        input_dim: int,
        horizon: int,
        n_obs_steps: int,
        cond_dim: int,
        n_layer: int = 8,
        n_head: int = 4,
        n_emb: int = 256,
        p_drop_emb: float = 0.0,
        p_drop_attn: float = 0.3,
        causal_attn: bool = True,
        n_cond_layers: int = 0,
    ) -> None:
        super().__init__()
        if n_emb % n_head:
            raise ValueError(f"n_emb={n_emb} must be divisible by n_head={n_head}")
        self.input_dim, self.horizon = input_dim, horizon
        self.cond_dim, self.obs_tokens = cond_dim, n_obs_steps if cond_dim else 0
        self.global_cond_dim = self.obs_tokens * cond_dim
        tokens = 1 + self.obs_tokens

        self.input_emb = nn.Linear(input_dim, n_emb)
        self.pos_emb = nn.Parameter(torch.zeros(1, horizon, n_emb))
        self.drop = nn.Dropout(p_drop_emb)
        self.time_emb = SinusoidalEmbedding(n_emb)
        self.cond_obs_emb = nn.Linear(cond_dim, n_emb) if cond_dim else None
        self.cond_pos_emb = nn.Parameter(torch.zeros(1, tokens, n_emb))
        block: dict[str, Any] = {
            "dim_feedforward": 4 * n_emb,
            "dropout": p_drop_attn,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": True,
        }
        self.encoder: nn.TransformerEncoder | nn.Sequential
        if n_cond_layers:
            layer = nn.TransformerEncoderLayer(n_emb, n_head, **block)
            self.encoder = nn.TransformerEncoder(layer, n_cond_layers, enable_nested_tensor=False)
        else:
            self.encoder = nn.Sequential(nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb))
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(n_emb, n_head, **block), n_layer)
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, input_dim)

        made = masks(horizon, self.obs_tokens) if causal_attn else (None, None)
        for name, mask in zip(("mask", "memory_mask"), made, strict=True):
            self.register_buffer(name, None if mask is None else mask.to(self.pos_emb.device))
        if not self.pos_emb.is_meta:  # drawing into a meta tensor imports torch's compiler: seconds, for nothing
            self.apply(_initialise)
            nn.init.normal_(self.pos_emb, std=0.02)
            nn.init.normal_(self.cond_pos_emb, std=0.02)

    def forward(self, sample: Tensor, timestep: Tensor | int, condition: Tensor | None = None) -> Tensor:
        """Predict the noise (or whatever the policy was trained to predict).

        Args:
            sample: (N, T, Da).
            timestep: (N,), a scalar tensor or an int.
            condition: (N, To * Do), oldest observation first; None when cond_dim is 0.

        Returns:
            (N, T, Da).

        Raises:
            ValueError: sample or condition of the wrong shape.
        """
        self._check(sample, condition)
        t = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        tokens = self.time_emb(t).to(sample.dtype)[:, None]
        if self.cond_obs_emb is not None and condition is not None:
            observations = condition.unflatten(1, (self.obs_tokens, self.cond_dim))
            tokens = torch.cat([tokens, self.cond_obs_emb(observations)], dim=1)
        memory = self.encoder(self.drop(tokens + self.cond_pos_emb))
        x = self.drop(self.input_emb(sample) + self.pos_emb)
        x = self.decoder(x, memory, tgt_mask=self.mask, memory_mask=self.memory_mask)
        return self.head(self.ln_f(x))

    def _check(self, sample: Tensor, condition: Tensor | None) -> None:
        if sample.shape[1:] != (self.horizon, self.input_dim):
            raise ValueError(f"sample must be (N, {self.horizon}, {self.input_dim}), got {tuple(sample.shape)}")
        expected = (sample.shape[0], self.global_cond_dim)
        found = (sample.shape[0], 0) if condition is None else tuple(condition.shape)
        if found != expected:
            raise ValueError(f"condition must be {expected}, got {found}")


def masks(horizon: int, obs_tokens: int) -> tuple[Tensor, Tensor | None]:
    """What is added to causal attention's scores, 0 or -inf: `mask` (T, T) and `memory_mask` (T, 1 + To).

    The latter is None without observation tokens; token 0 is the timestep, which every action sees. Made on the CPU.
    """
    t = torch.arange(horizon, device="cpu")[:, None]
    seen = t >= torch.arange(1 + obs_tokens, device="cpu") - 1
    return _additive(t >= t.T), _additive(seen) if obs_tokens else None


def _additive(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape, device="cpu").masked_fill(~seen, float("-inf"))


def _initialise(module: nn.Module) -> None:
    """Published: normal weights of standard deviation 0.02, no biases."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=0.02)
        nn.init.zeros_(module.in_proj_bias)
