"""Learning-rate schedule and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["Ema", "cosine_lr"]


def cosine_lr(step: int, *, peak: float, warmup_steps: int, max_steps: int) -> float:
    """Learning rate of step 0 ... max_steps - 1: linear to `peak` over the warm-up, then half a cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (max_steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


class Ema:
    """Exponential moving average of parameters with a decay that grows with the step.

        ema <- d ema + (1 - d) parameter,   d = min(max_decay, 1 - (1 + step) ** -power),   d = 0 for step < 1

    With power 0.75 the average forgets the first steps quickly and reaches over ~step ** 0.75 steps
    (diffusion_policy's EMAModel, after EMA Warmup by @crowsonkb).
    """

    def __init__(self, parameters: Iterable[Tensor], *, power: float, max_decay: float) -> None:
        self.power, self.max_decay = power, max_decay
        self.average = [p.detach().clone() for p in parameters]

    def decay(self, step: int) -> float:
        """d after `step` updates were already made."""
        return 0.0 if step < 1 else min(self.max_decay, 1.0 - (1.0 + step) ** -self.power)

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor], step: int) -> None:
        """Take in the parameters after optimiser step number `step` (from 0)."""
        torch._foreach_lerp_(self.average, [p.detach() for p in parameters], 1.0 - self.decay(step))
