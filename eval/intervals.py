"""Confidence intervals: a success rate, a mean score, and the difference of two success rates on the same seeds."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffpolicy_spec.optional import require

__all__ = ["mean_interval", "paired_interval", "paired_statistic", "quantile", "wilson_interval"]


def quantile(probability: float) -> float:
    """Quantile of the standard normal law."""
    return NormalDist().inv_cdf(probability)


def wilson_interval(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a success rate (Wilson 1927); (0, 1) without trials.

    centre = (p + z^2/2n) / (1 + z^2/n),  half width = z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie between 0 and trials = {trials}, got {successes}")
    if trials == 0:
        return 0.0, 1.0
    z = quantile(0.5 + confidence / 2)
    p, shrink = successes / trials, 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / shrink
    # At 0 and n successes the bounds are exactly 0 and 1; rounding must not push them off.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of a mean, mean +- t_{n-1} s / sqrt(n); values: (n,).

    Scores in [0, 1] keep their interval in [0, 1]. Where all of them are equal, s = 0 would claim certainty: a score in
    [0, 1] has a variance of at most p(1-p), for which Wilson's interval is made, so that one is given.

    Returns:
        low and high; None with fewer than two values, or with equal values that are not in [0, 1].
    """
    x = np.asarray(values, dtype=float)
    n, unit = len(x), bool(len(x)) and float(x.min()) >= 0 and float(x.max()) <= 1
    if n < 2:
        return None
    if float(np.ptp(x)) == 0:
        return wilson_interval(float(x[0]) * n, n, confidence) if unit else None
    t: Any = require("scipy.stats", extra="eval", needed_by="the interval of a mean").t
    mean, half = float(x.mean()), float(t.ppf(0.5 + confidence / 2, n - 1) * x.std(ddof=1) / math.sqrt(n))
    low, high = mean - half, mean + half
    return (max(0.0, low), min(1.0, high)) if unit else (low, high)


def paired_statistic(gained: ArrayLike, lost: ArrayLike, pairs: ArrayLike, difference: ArrayLike) -> np.ndarray:
    """Tango's score statistic (Statistics in Medicine 17, 1998) of a difference of two rates on the same seeds.

    With b = gained, c = lost of n pairs, and the difference d = p_b - p_c that is tested,

        T(d) = (b - c - n d) / sqrt(n (2 q + d (1 - d)))

    q is the likelihood's maximum of p_c given p_b = p_c + d, the larger root of 2n q^2 + B q + C = 0 with
    B = (2n - b + c) d - b - c and C = -c d (1 - d). T(0) is McNemar's statistic (b - c) / sqrt(b + c). T falls in d; at
    the true d it is close to standard normal. All arguments broadcast; 0 where T is 0/0.
    """
    b, c, n, d = (np.asarray(v, dtype=float) for v in (gained, lost, pairs, difference))
    linear, constant = (2 * n - b + c) * d - b - c, -c * d * (1 - d)
    root = np.sqrt(np.maximum(linear * linear - 8 * n * constant, 0))
    q = (root - linear) / (4 * n)
    spread = np.sqrt(np.maximum(n * (2 * q + d * (1 - d)), 0))
    top = b - c - n * d
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(top) < 1e-12, 0.0, top / spread)


def paired_interval(gained: ArrayLike, lost: ArrayLike, pairs: int, confidence: float = 0.95) -> tuple[Any, Any]:
    """Tango's score interval: the differences d with |T(d)| <= z (`paired_statistic`); (-1, 1) without pairs.

    gained and lost may be arrays of one shape; the bounds then have it, otherwise they are floats.
    """
    b, c = np.asarray(gained, dtype=float), np.asarray(lost, dtype=float)
    if (b < 0).any() or (c < 0).any() or (b + c > pairs).any():
        raise ValueError(f"discordant pairs must be counts with gained + lost <= pairs = {pairs}, got {b} and {c}")
    if pairs == 0:
        return -1.0, 1.0
    z, found = quantile(0.5 + confidence / 2), (b - c) / pairs

    def solve(inside: np.ndarray, outside: np.ndarray, sign: float) -> np.ndarray:
        """Bisection: |T| <= z at `inside`, and at `outside` it is larger or the end of the range."""
        for _ in range(50):
            middle = (inside + outside) / 2
            accept = sign * paired_statistic(b, c, pairs, middle) <= z
            inside, outside = np.where(accept, middle, inside), np.where(accept, outside, middle)
        return outside

    low, high = solve(found, np.full_like(found, -1.0), 1.0), solve(found, np.full_like(found, 1.0), -1.0)
    return (low, high) if found.ndim else (float(low), float(high))
