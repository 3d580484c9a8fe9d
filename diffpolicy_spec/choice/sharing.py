"""Rows of a call that several chains share: as many for each as get all of them on the fastest.

With b chains in every call, each pays for a b-th of it. Were all of them alike, the time of one from step k on would be
the renewal of `windows`, with that price:

    V_b(k) = min_w  T(b w) / b + sum_{j < w - 1} P(j | k) V_b(k + j + 1) + P(none of w - 1 fails | k) V_b(k + w)

T(n) is what a round with n rows takes: the call, measured beforehand, and what stands beside it, measured on the rounds
themselves. P is how often drafted steps were accepted lately, by step and distance. The least V_b(0) is the most chunks
a second: 1 / V_b(0) with all chains together. The more chains, the more a further row costs beside what a call costs
anyway, and the narrower the windows.

The law stays exact. The rows of a chain depend on the step it stands at, on how many chains there are, on clocks, and
on which steps were accepted before: all of it is fixed before the noise of the steps to be tested is looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .acceptance import acceptance, count_tests
from .cost import CallCost
from .rounds import Rounds
from .trial import RoundCost
from .windows import plan_windows

__all__ = ["CREDIT", "Sharing"]

CREDIT = 0.5
"""Share of the price of further rows that is charged: rows behind a rejection are worth something, see `trial.plan`."""

_FIRST, _EVERY = 16, 512  # rounds after which windows are planned: 16, 64, 256, then every so many
_POINTS = 128  # rounds that say what stands beside a call


class Sharing:
    """Shares out the rows of a pool's calls (`pool.Share`), learning from its rounds.

    A chain alone has its sampler's window, and so have all until the first rounds were seen.

    Args:
        num_steps: K.
        call: c(n), seconds of a call with n rows.
        credit: see `CREDIT`.
    """

    def __init__(self, num_steps: int, call: CallCost, *, credit: float = CREDIT) -> None:
        self._K, self._call, self._credit = num_steps, call, credit
        self._tests, self._passes = np.zeros((num_steps,) * 2), np.zeros((num_steps,) * 2)
        self._recent: list[Rounds] = []
        self._beside: deque[tuple[float, float]] = deque(maxlen=_POINTS)
        self._seen, self._planned_at = 0, 0
        self._accept: NDArray[np.float64] | None = None
        self._windows: dict[int, NDArray[np.int64]] = {}

    def __call__(self, at: Sequence[int], most: Sequence[int]) -> list[int]:
        """Rows of chains that stand at steps `at`, at most `most`."""
        b = len(at)
        if b == 1 or self._accept is None:
            return list(most)
        windows = self.windows(b)
        return [min(int(windows[k]), m) for k, m in zip(at, most, strict=True)]

    def saw(self, at: Sequence[int], rows: Sequence[int], committed: Sequence[int]) -> None:
        """A round is over: chains stood at `at`, had so many rows, and went so many steps forward."""
        if not at:
            return
        chain, start, had, went = np.array([range(len(at)), at, rows, committed], dtype=np.int64)
        self._recent.append(Rounds(chain, start, had, went, self._K))
        self._seen += 1
        due = 4 * self._planned_at if self._planned_at else _FIRST
        if self._seen >= min(due, self._planned_at + _EVERY):
            self._learn()

    def took(self, rows: int, seconds: float) -> None:
        """A round with so many rows in all took so long."""
        self._beside.append((rows, seconds - float(self._call(rows))))

    def seconds(self, rows: int) -> float:
        """What a round with so many rows takes."""
        return float(self._cost()(rows))

    def windows(self, chains: int) -> NDArray[np.int64]:
        """(K,) rows of each of so many chains, by the step it stands at; before anything was seen, what a test that
        always passes would make of them."""
        if chains not in self._windows:
            accept = np.ones((self._K,) * 2) if self._accept is None else self._accept
            cost = self._cost()(chains * np.arange(1, self._K + 1)) / chains
            self._windows[chains] = plan_windows(accept, cost[0] + self._credit * (cost - cost[0]))[0]
        return self._windows[chains]

    def _learn(self) -> None:
        tests, passes = count_tests(self._recent)
        # Half of what was known before is forgotten: policies are swapped, tasks change.
        self._tests, self._passes = 0.5 * self._tests + tests, 0.5 * self._passes + passes
        self._accept = acceptance(self._tests, self._passes)
        self._windows.clear()
        self._recent.clear()
        self._planned_at = self._seen

    def _cost(self) -> RoundCost:
        if not self._beside:
            return RoundCost(self._call, 0.0)
        points = np.array(self._beside)
        usual = float(np.median(points[:, 1]))
        # What else the machine did stands in few rounds.
        points[:, 1] = points[:, 1].clip(max=3 * max(usual, 0.0))
        return RoundCost.fit(self._call, [(n, s) for n, s in points])
