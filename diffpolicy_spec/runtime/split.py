"""Rows of a call in parts, and from how many rows on parts are quicker than the whole."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from diffpolicy_spec.clock import clock

if TYPE_CHECKING:
    from diffpolicy_spec.sampling import Denoise

__all__ = ["Split", "SplitTimes", "measure_split"]

_MARGIN = 0.05  # a split call must save this much of a whole one: less is not worth a second device


@dataclass(frozen=True)
class Split:
    """How the rows of a call are shared out.

    Attributes:
        from_rows: calls of fewer rows stay on the first device, as does everything where it is None. What
            `measure_split` found; the default splits whatever can be.
        speeds: rows a second of each device, in any unit; None: all alike.

    Raises:
        ValueError: less than one row, or a speed that is not positive.
    """

    from_rows: int | None = 2
    speeds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.from_rows is not None and self.from_rows < 1:
            raise ValueError(f"from_rows must be at least 1, or None for never; got {self.from_rows}")
        if self.speeds is not None and not all(0 < s < float("inf") for s in self.speeds):
            raise ValueError(f"speeds must be positive and finite, got {self.speeds}")

    def applies(self, rows: int) -> bool:
        """Whether a call of so many rows is split."""
        return self.from_rows is not None and rows >= self.from_rows

    def sizes(self, rows: int, parts: int) -> list[int]:
        """Rows of each part, in order, summing to `rows`; a part may get none.

        Part i ends at round(rows * (v_1 + ... + v_i) / (v_1 + ... + v_parts)): contiguous, each within one row of its
        share. Equal speeds: the first parts get the rows that are left over.

        Raises:
            ValueError: not one speed per part.
        """
        if self.speeds is None:
            whole, left = divmod(rows, parts)
            return [whole + (i < left) for i in range(parts)]
        if len(self.speeds) != parts:
            raise ValueError(f"{len(self.speeds)} speeds for {parts} devices: give one each")
        ends = [round(rows * sum(self.speeds[: i + 1]) / sum(self.speeds)) for i in range(parts)]
        return [end - begin for begin, end in pairwise([0, *ends])]


@dataclass(frozen=True)
class SplitTimes:
    """Median seconds of calls on the first device alone, and of the same calls split."""

    rows: tuple[int, ...]
    alone: tuple[float, ...]
    split: tuple[float, ...]

    @property
    def from_rows(self) -> int | None:
        """The fewest rows from which on, at all larger sizes measured, a split call is quicker; None: never."""
        pays = None
        for n, alone, split in sorted(zip(self.rows, self.alone, self.split, strict=True), reverse=True):
            if split > (1 - _MARGIN) * alone:
                break
            pays = n
        return pays


@torch.no_grad()
def measure_split(
    alone: Denoise,
    split: Denoise,
    chunk: tuple[int, int],
    device: torch.device,
    *,
    rows: Sequence[int] = (2, 4, 8, 16, 32, 64),
    repeats: int = 20,
) -> SplitTimes:
    """Time the same calls both ways, in turns, so that a machine that slows down slows both.

    Args:
        alone, split: of one observation, loaded; get chain = 0 and t = 0.
        chunk: (Tp, Da).
        device: where rows come from and go to: the first device.
    """
    inputs = []
    for n in sorted(set(rows)):
        zeros = torch.zeros(n, dtype=torch.long, device=device)
        inputs.append((torch.randn((n, *chunk), generator=torch.Generator().manual_seed(n)).to(device), zeros, zeros))
    seconds: dict[tuple[int, int], list[float]] = {}
    for repeat in range(repeats + 2):  # memory, kernels and caches are chosen in the first calls
        for i, given in enumerate(inputs):
            for which, denoise in enumerate((alone, split)):
                begin = clock(device)
                denoise(*given)
                took = clock(device) - begin
                if repeat > 1:
                    seconds.setdefault((which, i), []).append(took)
    alone_at, split_at = ([statistics.median(seconds[w, i]) for i in range(len(inputs))] for w in (0, 1))
    return SplitTimes(tuple(sorted(set(rows))), tuple(alone_at), tuple(split_at))
