"""In which order sequences are trained on, and how processes share them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy_spec.seeds import hashed_generator

__all__ = ["Order", "Share"]


@dataclass(frozen=True)
class Share:
    """A process's part of each batch: the `rank`-th of `size` equal ones."""

    rank: int = 0
    size: int = 1

    def of(self, rows: int) -> slice:
        """Which of so many rows are this process's."""
        each = rows // self.size
        return slice(self.rank * each, (self.rank + 1) * each)


class Order:
    """Which sequences make a batch: a function of (seed, step)."""

    def __init__(self, total: int, batch_size: int, seed: int) -> None:
        self.total, self.batch_size, self.seed = total, min(batch_size, total), seed
        self.steps_per_epoch = max(total // self.batch_size, 1)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def rows(self, step: int) -> Tensor:
        """(N,) sequences of step number `step`, of all processes."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(self.total, generator=hashed_generator(self.seed, 0, epoch))
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]
