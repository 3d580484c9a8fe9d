"""Windows that depend on the step a round starts at, for the least expected latency.

A round at committed step k with w rows costs c(w) and commits j + 1 steps if test j is the first that fails, w if none
does. Were tests independent given step and distance, the time from k on would be a renewal:

    V(k) = min_w  c(w) + sum_{j < w - 1} P(j | k) V(k + j + 1) + P(none of w - 1 fails | k) V(k + w),   V(K) = 0

Windows are a function of the committed step alone, so whatever the estimate is worth, sampling stays exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["expected_seconds", "plan_windows"]

_Array = NDArray[np.float64]


def plan_windows(accept: _Array, cost: _Array) -> tuple[NDArray[np.int64], _Array]:
    """The best window of every step, and the time from every step on, by dynamic programming from the last step.

    Args:
        accept: (K, K) probability of passing the test at [step, distance], given that it is reached.
        cost: (K,) seconds of a round with 1 ... K rows, overhead included.

    Returns:
        windows (K,), seconds from each step on V (K + 1,).
    """
    K = len(cost)
    V, windows = np.zeros(K + 1), np.ones(K, dtype=np.int64)
    for k in range(K - 1, -1, -1):
        total = _by_window(accept, cost, V, k)
        best = int(total.argmin())
        windows[k], V[k] = best + 1, total[best]
    return windows, V


def expected_seconds(windows: NDArray[np.int64], accept: _Array, cost: _Array) -> _Array:
    """V (K + 1,) of given windows (K,), by the same renewal."""
    K = len(cost)
    V = np.zeros(K + 1)
    for k in range(K - 1, -1, -1):
        V[k] = _by_window(accept, cost, V, k)[min(int(windows[k]), K - k) - 1]
    return V


def _by_window(accept: _Array, cost: _Array, V: _Array, k: int) -> _Array:
    """(K - k,) seconds from step k on if the round there has 1 ... K - k rows."""
    K = len(cost)
    i = np.arange(K - k - 1)
    p = accept[k + i, i]
    reached = np.concatenate([[1.0], np.cumprod(p)])  # the first i tests are passed
    after_failure = np.concatenate([[0.0], np.cumsum(reached[:-1] * (1 - p) * V[k + 1 + i])])
    return cost[: K - k] + after_failure + reached * V[k + 1 :]
