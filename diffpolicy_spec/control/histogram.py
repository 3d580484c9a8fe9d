"""Percentiles of any number of values in a fixed amount of memory."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Histogram", "Percentiles"]

LOW, HIGH, RATIO = 1e-3, 1e7, 1.01
_LOG = math.log(RATIO)
_BINS = math.ceil(math.log(HIGH / LOW) / _LOG)


@dataclass(frozen=True)
class Percentiles:
    """Of count values; NaN where there is none. p50, p90 and p99 are within 1 %, the others exact."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    def data(self) -> dict[str, float]:
        """Numbers for JSON, without what is not there."""
        return {key: value for key, value in asdict(self).items() if not math.isnan(value)}


class Histogram:
    """Counts of values from 0 on in bins 1 % wide, 0.001 to 10 million; what is below is counted as smallest.

    A percentile is the bin's middle, within 0.5 % of the value of that rank.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS + 2, dtype=np.int64)
        self._sum = 0.0
        self._low, self._high = math.inf, -math.inf

    def add(self, value: float) -> None:
        """One more; NaN is none."""
        if math.isnan(value):
            return
        self._low, self._high = min(self._low, value), max(self._high, value)
        self._sum += value
        index = 0 if value < LOW else min(1 + int(math.log(min(value, HIGH) / LOW) / _LOG), _BINS + 1)
        self._counts[index] += 1

    def percentile(self, percent: float) -> float:
        """The value of rank ceil(percent / 100 * count), NaN of none."""
        return self._of_rank(np.cumsum(self._counts), percent)

    def _of_rank(self, counts: NDArray[np.int64], percent: float) -> float:
        if not counts[-1]:
            return math.nan
        rank = max(1, math.ceil(percent / 100 * int(counts[-1])))
        index = int(np.searchsorted(counts, rank))
        middle = LOW * RATIO ** (index - 0.5) if index else self._low
        return min(max(middle, self._low), self._high)

    def percentiles(self) -> Percentiles:
        """What is reported of it."""
        counts = np.cumsum(self._counts)
        count = int(counts[-1])
        if not count:
            return Percentiles(0, *[math.nan] * 5)
        p50, p90, p99 = (self._of_rank(counts, p) for p in (50, 90, 99))
        return Percentiles(count, self._sum / count, p50, p90, p99, self._high)
