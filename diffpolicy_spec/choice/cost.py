"""c(n): what one network call with n rows costs on this device, for one robot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diffpolicy_spec.clock import clock
from diffpolicy_spec.networks import Denoise
from diffpolicy_spec.runtime.capture import capture, compiled
from diffpolicy_spec.runtime.config import RuntimeConfig
from diffpolicy_spec.schedule import Schedule
from diffpolicy_spec.window import widths_to

from .runtimes import keeping_threads

__all__ = ["ROWS", "CallCost", "measure_call_cost"]

ROWS = (1, 2, 4, 8, 16, 32, 64)
"""Rows a call is measured with, beside all K of the chain."""


@dataclass(frozen=True)
class CallCost:
    """Seconds of a network call as a function of its rows, never falling.

    Attributes:
        rows: measured numbers of rows, ascending.
        seconds: of a call with as many.

    Raises:
        ValueError: not one time per number of rows, rows that do not ascend, or times that are not positive.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in pairwise((0, *self.rows)))
        if not self.rows or len(self.rows) != len(self.seconds) or not ascending:
            raise ValueError(
                f"a call's cost needs one time for each of ascending rows, got {self.rows}, {self.seconds}"
            )
        if not all(0 < s < float("inf") for s in self.seconds):
            raise ValueError(f"seconds of a call must be positive and finite, got {self.seconds}")

    def __call__(self, n: ArrayLike) -> NDArray[np.float64]:
        """Seconds for n rows (any shape): linear between the measured ones and beyond the last two."""
        rows = np.asarray(n, dtype=np.float64)
        known, seconds = np.asarray(self.rows, dtype=np.float64), isotonic(self.seconds)
        inside = np.interp(rows, known, seconds)
        if len(known) == 1:
            return inside
        slope = (seconds[-1] - seconds[-2]) / (known[-1] - known[-2])
        return inside + slope * np.maximum(rows - known[-1], 0)


def isotonic(values: ArrayLike) -> NDArray[np.float64]:
    """The nearest non-decreasing sequence in least squares: neighbours that fall are pooled to their mean.

    More rows never cost less; where a measurement says so, it is noise.
    """
    blocks: list[tuple[float, int]] = []
    for value in np.asarray(values, dtype=np.float64):
        mean, size = float(value), 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    return np.concatenate([np.full(size, mean) for mean, size in blocks])


@torch.no_grad()
def measure_call_cost(
    denoise: Denoise,
    schedule: Schedule,
    chunk: tuple[int, int],
    device: torch.device,
    *,
    runtime: RuntimeConfig | None = None,
    rows: Sequence[int] | None = None,
    repeats: int = 20,
) -> CallCost:
    """Time calls of n rows of one chain, each at its own step, as a round has them.

    The median over `repeats`; all n take turns, so that a machine that slows down slows all of them.

    Args:
        denoise: of one observation; gets chain = 0.
        chunk: (Tp, Da).
        runtime: how calls are run: compiled, captured, with how many threads; None: eagerly, with those there are.
        rows: numbers of rows; default `ROWS` and K, or where rounds are padded what they are padded to.
    """
    K, runtime = schedule.num_steps, RuntimeConfig() if runtime is None else runtime
    if rows is None:
        rows = [n for n in ROWS if n < K] + [K] if runtime.mode == "eager" else widths_to(K)
    sizes, source = sorted(set(rows)), torch.Generator().manual_seed(0)
    work: dict[int, Callable[[], None]] = {}
    for n in sizes:
        steps = torch.arange(n, device=device) % K
        x = torch.randn((n, *chunk), generator=source).to(device)
        chain = torch.zeros(n, dtype=torch.long, device=device)
        # What is returned is kept: a compiler drops a call that nobody looks at.
        call = partial(_keep, torch.empty_like(x), denoise, x, schedule.on(device).timesteps[steps], chain)
        work[n] = compiled(call) if runtime.compiles else call
    with keeping_threads(runtime.threads):
        ready = capture(work, lambda n: None, device, warm=runtime.compiles, graphs=runtime.captures)
        for n in sizes * 2:  # memory, kernels and caches are chosen in the first calls
            ready.run(n)
        times: dict[int, list[float]] = {n: [] for n in sizes}
        for _ in range(repeats):
            for n in sizes:
                begin = clock(device)
                ready.run(n)
                times[n].append(clock(device) - begin)
    return CallCost(tuple(sizes), tuple(statistics.median(times[n]) for n in sizes))


def _keep(out: Tensor, denoise: Denoise, x: Tensor, t: Tensor, chain: Tensor) -> None:
    out.copy_(denoise(x, t, chain))
