"""Inpainting: coordinates of a chunk that are given, overwritten before every network call (diffusion_policy's way)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Inpainting"]


@dataclass(frozen=True, eq=False)
class Inpainting:
    """Known coordinates of each chain.

    The chain then runs over the free coordinates only: at every call the network sees `values` at the masked ones, and
    they are neither noised nor tested. Inside a sampler they are held at 0, where every product and sum leaves them;
    `show` fills them in for the network and for the result.

    Attributes:
        mask: (B, Tp, Da) bool, True where the value is known.
        values: (B, Tp, Da), in the network's (normalised) units; read where mask is True.
    """

    mask: Tensor
    values: Tensor

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if it does not fit chunks of this shape (B, Tp, Da), or a known value is not finite."""
        if self.mask.dtype != torch.bool:
            raise ValueError(f"inpainting mask must be bool, got {self.mask.dtype}")
        if tuple(self.mask.shape) != shape or tuple(self.values.shape) != shape:
            raise ValueError(
                f"inpainting mask and values must have the noise's shape {shape}, got {tuple(self.mask.shape)} and "
                f"{tuple(self.values.shape)}"
            )
        if not torch.isfinite(self.values[self.mask]).all():
            raise ValueError("inpainting values have NaN or infinite numbers where the mask is set")

    def hide(self, x: Tensor) -> Tensor:
        """x: (..., B, Tp, Da) with 0 at the known coordinates."""
        return torch.where(self.mask, 0.0, x)

    def show(self, x: Tensor) -> Tensor:
        """x: (B, Tp, Da) with the known values filled in."""
        return torch.where(self.mask, self.values.to(x), x)

    def of(self, chain: Tensor) -> Inpainting:
        """That of rows of these chains: (N,)."""
        return Inpainting(self.mask[chain], self.values[chain])
