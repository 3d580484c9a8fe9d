"""Every normal number that upstream draws, in its order."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor

__all__ = ["RecordedDraws"]


class RecordedDraws:
    """While open, torch.randn's numbers are rounded to multiples of 1/32 (they compress) and kept.

    diffusers draws its innovations through torch.randn, too: the first draw is the chain's start, the others are
    those of the steps, in order. With `again`, the kept numbers are handed out once more, in another dtype if asked.
    """

    def __init__(self, seed: int = 0, again: list[Tensor] | None = None) -> None:
        self.drawn: list[Tensor] = []
        self._seed, self._again = seed, again

    def __enter__(self) -> RecordedDraws:
        self._randn = torch.randn
        torch.manual_seed(self._seed)
        torch.randn = self._draw
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        torch.randn = self._randn

    def _draw(self, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("layout", None)
        x = self._randn(*args, **kwargs)
        if self._again is not None:
            kept = self._again[len(self.drawn)]
            if kept.shape != x.shape:
                raise AssertionError(f"draw {len(self.drawn)} has shape {tuple(x.shape)}, it was {tuple(kept.shape)}")
            x = kept.to(x.dtype)
        else:
            x = (x * 32).round() / 32
        self.drawn.append(x)
        return x.clone()

    def noise(self, num_steps: int, deterministic: bool = False) -> tuple[Tensor, Tensor]:
        """start (B, T, D) and steps (K, B, T, D), the last one zero: it has no noise.

        Raises:
            AssertionError: upstream drew another number of times than a chain of that kind does.
        """
        expected = 1 if deterministic else num_steps
        if len(self.drawn) != expected or len({d.shape for d in self.drawn}) != 1:
            raise AssertionError(f"{len(self.drawn)} draws of {expected}: {[tuple(d.shape) for d in self.drawn]}")
        start = self.drawn[0]
        steps = torch.zeros((num_steps, *start.shape))
        for k, xi in enumerate(self.drawn[1:]):
            steps[k] = xi
        return start, steps
