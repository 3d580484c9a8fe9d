"""Two samplers on the same seeds: is there a difference, are they equal within a margin, or is it too early to say?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffpolicy_spec.eval.intervals import paired_interval, paired_statistic, quantile
from diffpolicy_spec.optional import require

__all__ = [
    "Comparison", "compare_scores", "compare_successes", "episodes_needed", "episodes_needed_for_difference",
    "episodes_needed_for_scores", "holm", "mcnemar",
]  # fmt: skip

POWER = 0.8
_MOST = 10_000_000


@dataclass(frozen=True)
class Comparison:
    """Sampler b against sampler a, on the seeds that both have. Rates and scores are in their own units, not in points.

    Attributes:
        quantity: "success" or "score".
        pairs: seeds that both have.
        a, b: mean of each over these seeds.
        both, only_a, only_b, neither: seeds by who succeeded; None for a score.
        difference: b - a, with low and high, its interval at 1 - alpha.
        p_value: of "no difference": McNemar's exact test, or the paired t test; adjusted where a report compares often.
        different: p_value < alpha.
        margin: the difference that would not matter.
        equal_low, equal_high: interval of the difference at 1 - 2 alpha.
        equal: that interval lies inside (-margin, margin): both one-sided tests at level alpha say so (TOST).
        needed: episodes after which `needed_for` would be said with probability POWER, if the true difference is
            `assumed` and pairs go on to disagree as often as they did. None where "equal" is said already, where more
            than ten million would be needed, or where as many are there already.
        needed_for: "equal" or "different"; "" where no plan follows from the data.
        assumed: 0, no difference. Where as many episodes as that needs are there and said nothing, the difference seen;
            once that is no smaller than the margin, `needed_for` is "different".
        disagreement: that rate, (only_a + only_b + 1) / (pairs + 2), or the standard deviation of the differences.
        alpha: level of every test.
    """

    quantity: str
    pairs: int
    a: float
    b: float
    both: int | None
    only_a: int | None
    only_b: int | None
    neither: int | None
    difference: float
    low: float
    high: float
    p_value: float
    different: bool
    margin: float
    equal_low: float
    equal_high: float
    equal: bool
    needed: int | None
    needed_for: str
    assumed: float
    disagreement: float
    alpha: float

    @property
    def verdict(self) -> str:
        """ "equal", "different", "different, but within the margin" or "undecided"."""
        if self.equal:
            return "different, but within the margin" if self.different else "equal"
        return "different" if self.different else "undecided"


def mcnemar(only_a: int, only_b: int) -> float:
    """p value of McNemar's exact test: given the discordant pairs, either side is as likely, Binomial(n, 1/2)."""
    if only_a + only_b == 0:
        return 1.0
    stats: Any = require("scipy.stats", extra="eval", needed_by="McNemar's test")
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: the chance that any of them is falsely below alpha stays below alpha."""
    m, adjusted, largest = len(p_values), [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def compare_successes(a: ArrayLike, b: ArrayLike, *, margin: float, alpha: float = 0.05) -> Comparison:
    """Compare successes (n,) bool of two samplers, seed by seed; margin in (0, 1).

    The difference has Tango's score interval, and equality is the pair of Tango's tests at -margin and margin.
    """
    x, y = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    n = _pairs(x, y, margin, alpha)
    only_a, only_b = int((x & ~y).sum()), int((~x & y).sum())
    low, high = paired_interval(only_b, only_a, n, 1 - alpha)
    equal_low, equal_high = paired_interval(only_b, only_a, n, 1 - 2 * alpha)
    equal = -margin < equal_low and equal_high < margin
    discordance, found = (only_a + only_b + 1) / (n + 2), (only_b - only_a) / n
    p = mcnemar(only_a, only_b)
    plan = _plan(
        equal, n, found, margin,
        lambda d: episodes_needed(discordance, margin, alpha, difference=d),
        lambda: episodes_needed_for_difference(discordance, found, alpha),
    )  # fmt: skip
    return Comparison(
        "success", n, float(x.mean()), float(y.mean()), int((x & y).sum()), only_a, only_b, int((~x & ~y).sum()),
        found, low, high, p, p < alpha, margin, equal_low, equal_high, equal, *plan, discordance, alpha,
    )  # fmt: skip


def compare_scores(a: ArrayLike, b: ArrayLike, *, margin: float, alpha: float = 0.05) -> Comparison:
    """Compare scores (n,) of two samplers, seed by seed, by Student's t of the differences; margin in its units.

    Differences that are all the same have no deviation to judge by; then nothing is said but that more are needed.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    n = _pairs(x, y, margin, alpha)
    d = y - x
    mean, deviation = float(d.mean()), float(d.std(ddof=1)) if n > 1 else 0.0
    if deviation == 0:
        p, wide, narrow = 1.0, math.inf, math.inf
    else:
        t: Any = require("scipy.stats", extra="eval", needed_by="the comparison of scores").t
        error = deviation / math.sqrt(n)
        p = float(2 * t.sf(abs(mean) / error, n - 1))
        wide, narrow = (float(t.ppf(q, n - 1)) * error for q in (1 - alpha / 2, 1 - alpha))
    equal = -margin < mean - narrow and mean + narrow < margin
    spread = deviation * deviation
    plan = _plan(
        equal or deviation == 0, n, mean, margin,
        lambda d: episodes_needed_for_scores(deviation, margin, alpha, difference=d),
        lambda: math.ceil(spread * ((quantile(1 - alpha / 2) + quantile(POWER)) / mean) ** 2),
    )  # fmt: skip
    return Comparison(
        "score", n, float(x.mean()), float(y.mean()), None, None, None, None, mean, mean - wide, mean + wide, p,
        p < alpha, margin, mean - narrow, mean + narrow, equal, *plan, deviation, alpha,
    )  # fmt: skip


def _plan(
    equal_already: bool,
    pairs: int,
    found: float,
    margin: float,
    equal: Callable[[float], int | None],
    different: Callable[[], int | None],
) -> tuple[int | None, str, float]:
    """needed, needed_for and assumed of `Comparison`."""
    if equal_already:
        return None, "", 0.0
    needed = equal(0.0)
    if needed is None or needed > pairs:
        return needed, "equal", 0.0
    if abs(found) < margin:
        needed, what = equal(found), "equal"
    else:
        needed, what = different(), "different"
    # As many are there already and it was missed by chance: no plan follows from that.
    return (None, "", found) if needed is not None and needed <= pairs else (needed, what, found)


def _pairs(a: np.ndarray, b: np.ndarray, margin: float, alpha: float) -> int:
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"both samplers need one result for each of the same seeds, got {a.shape} and {b.shape}")
    if not margin > 0 or not 0 < alpha < 0.5:
        raise ValueError(f"margin must be positive and alpha in (0, 0.5), got {margin} and {alpha}")
    return len(a)


def episodes_needed_for_scores(
    deviation: float, margin: float, alpha: float = 0.05, power: float = POWER, *, difference: float = 0.0
) -> int:
    """n = (s (z_{1-alpha} + z_{power'}) / (margin - |d|))^2, for differences with deviation s around d.

    power' = (1 + power) / 2 around d = 0, where either test may fail, else power, as the nearer one decides.
    """
    z = quantile(1 - alpha) + quantile(power if difference else (1 + power) / 2)
    return max(2, math.ceil((deviation * z / (margin - abs(difference))) ** 2))


def episodes_needed_for_difference(
    discordance: float, difference: float, alpha: float = 0.05, power: float = POWER
) -> int:
    """Episodes after which McNemar's test finds the difference d with probability `power`.

    Connor, Biometrics 43 (1987):  n = (z_{1-alpha/2} sqrt(psi) + z_power sqrt(psi - d^2))^2 / d^2,  psi = discordance
    """
    psi, d = discordance, difference
    root = quantile(1 - alpha / 2) * math.sqrt(psi) + quantile(power) * math.sqrt(max(psi - d * d, 0))
    return math.ceil(root * root / (d * d))


def episodes_needed(
    discordance: float, margin: float, alpha: float = 0.05, power: float = POWER, *, difference: float = 0.0
) -> int | None:
    """Episodes after which "equal within margin" is said with probability `power`, if that is true.

    The true difference is `difference`, and a share `discordance` of the seeds ends differently:
    D ~ Binomial(n, discordance) seeds disagree, b ~ Binomial(D, (1 + difference / discordance) / 2) of them in favour
    of one side. The probability is summed exactly, over the pairs (b, D - b) for which both of Tango's tests pass.

    Returns:
        None where more than ten million would be needed.
    """
    if not 0 < discordance <= 1 or not 0 < margin < 1:
        raise ValueError(f"discordance must be in (0, 1] and margin in (0, 1), got {discordance} and {margin}")
    if not abs(difference) < margin:
        raise ValueError(
            f"a difference of {difference} is not within the margin of {margin}: no number of episodes shows it"
        )
    few, many = 1, 16
    while _power(many, discordance, margin, alpha, difference) < power:
        few, many = many, 2 * many
        if many > _MOST:
            return None
    # The probability rises in teeth; what is found is a place where it crosses `power`.
    while many - few > max(1, few // 500):
        middle = (few + many) // 2
        if _power(middle, discordance, margin, alpha, difference) < power:
            few = middle
        else:
            many = middle
    return many


def _power(n: int, discordance: float, margin: float, alpha: float, difference: float = 0.0) -> float:
    """Chance that n pairs are called equal."""
    binom: Any = require("scipy.stats", extra="eval", needed_by="the number of episodes needed").binom
    z = quantile(1 - alpha)
    first, last = (int(v) for v in binom.ppf([1e-6, 1 - 1e-6], n, discordance))
    total = np.unique(np.linspace(first, last, min(last - first + 1, 400)).astype(int))  # D
    if len(total) < last - first + 1:  # of many, every k-th stands for its neighbours
        edges = np.r_[-1, (total[1:] + total[:-1]) // 2, n]
        weight = np.diff(binom.cdf(edges, n, discordance))
    else:
        weight = binom.pmf(total, n, discordance)
    # |2b - D| = D mod 2 + 2j passes for j below a bound, found by bisection; -1: none passes.
    none, all_ = np.full(len(total), -1), total // 2 + 1
    while (all_ - none > 1).any():
        j = (none + all_) // 2
        b = (total + total % 2 + 2 * j) // 2
        passes = (j <= total // 2) & (paired_statistic(b, total - b, n, margin) < -z)
        none, all_ = np.where(passes & (all_ - none > 1), j, none), np.where(~passes & (all_ - none > 1), j, all_)
    most = (total + total % 2 + 2 * none) // 2  # the largest b that passes
    half = min(1.0, max(0.0, (1 + difference / discordance) / 2))
    inside = np.where(none < 0, 0.0, binom.cdf(most, total, half) - binom.cdf(total - most - 1, total, half))
    return float((weight * inside).sum())
