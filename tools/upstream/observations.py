"""Observations that are no one's data: smooth random vectors and pictures of waves and discs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["images", "vectors"]


def vectors(size: int, batch: int, steps: int, seed: int, low: float = -0.8, high: float = 0.9) -> Tensor:
    """(batch, steps, size) values, rounded to multiples of 1/1024; each step a little further."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(low, high, (batch, 1, size)) + 0.05 * rng.standard_normal((batch, steps, size)).cumsum(1)
    return torch.from_numpy((x * 1024).round() / 1024).float()


def images(shape: tuple[int, int, int], batch: int, steps: int, seed: int) -> Tensor:
    """(batch, steps, C, H, W) uint8: two waves and a disc in each, moving with the step."""
    rng = np.random.default_rng(seed)
    C, H, W = shape
    y, x = np.mgrid[0:H, 0:W] / max(H, W)
    out = np.empty((batch, steps, C, H, W))
    for b in range(batch):
        freq, phase = rng.uniform(2, 12, (C, 2, 2)), rng.uniform(0, 6, (C, 2))
        centre, radius, colour = rng.uniform(0.2, 0.8, 2), rng.uniform(0.1, 0.3), rng.uniform(-1, 1, C)
        for s in range(steps):
            disc = ((y - centre[0] - 0.04 * s) ** 2 + (x - centre[1] + 0.03 * s) ** 2) < radius**2
            for c in range(C):
                waves = sum(np.sin(freq[c, i, 0] * x + freq[c, i, 1] * y + phase[c, i] + 0.2 * s) for i in (0, 1))
                out[b, s, c] = waves / 4 + colour[c] * disc / 2
    return (
        torch.from_numpy(((out - out.min()) / (out.max() - out.min()) * 31).round() * 8).clamp(0, 255).to(torch.uint8)
    )
