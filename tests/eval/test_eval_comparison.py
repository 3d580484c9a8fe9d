"""Paired comparison: published values, scipy, and exact enumeration of how often it is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from diffpolicy_spec.eval.comparison import (
    compare_scores,
    compare_successes,
    episodes_needed,
    episodes_needed_for_scores,
    holm,
    mcnemar,
)  # fmt: skip
from diffpolicy_spec.eval.intervals import mean_interval, paired_interval, paired_statistic


def outcomes(both, only_a, only_b, neither):
    """(a, b) with these counts."""
    pairs = [(1, 1)] * both + [(1, 0)] * only_a + [(0, 1)] * only_b + [(0, 0)] * neither
    return np.array(pairs, dtype=bool).T


def counts(n):
    """Every (b, c) with b + c <= n."""
    b, c = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    keep = b + c <= n
    return b[keep], c[keep]


def chances(b, c, n, p_b, p_c):
    return stats.multinomial.pmf(np.stack([b, c, n - b - c], 1), n, [p_b, p_c, 1 - p_b - p_c])


def test_interval_of_fagerland_lydersen_and_laake():
    """Statistics in Medicine 33 (2014), airway hyper-responsiveness: 21 pairs, 1 and 7 discordant."""
    assert paired_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)


def test_statistic_of_tango():
    """Tango (1998), soft contact lenses: 44 pairs, 0 and 1 discordant, margin 10 points: Z = 1.709."""
    assert paired_statistic(0, 1, 44, -0.1) == pytest.approx(1.709, abs=5e-4)


def test_interval_in_closed_form():
    """Without discordant pairs T(d)^2 = n d / (1 - d); on all of them the bounds are Wilson's."""
    z = stats.norm.ppf(0.975)
    assert paired_interval(0, 0, 30) == pytest.approx((-(z**2) / (30 + z**2), z**2 / (30 + z**2)))
    low, high = paired_interval(12, 0, 12)
    assert (low, high) == pytest.approx((stats.binomtest(12, 12).proportion_ci(method="wilson").low * 2 - 1, 1.0))
    assert paired_interval(0, 0, 0) == (-1, 1)
    assert paired_interval(3, 9, 40) == pytest.approx(tuple(-v for v in paired_interval(9, 3, 40)[::-1]))


def test_interval_is_where_the_statistic_is_z():
    for b, c, n in ((5, 2, 40), (0, 3, 25), (30, 10, 200)):
        low, high = paired_interval(b, c, n, 0.9)
        z = stats.norm.ppf(0.95)
        assert paired_statistic(b, c, n, [low, high]) == pytest.approx([z, -z], abs=1e-6)
    assert paired_statistic(9, 4, 50, 0.0) == pytest.approx(5 / np.sqrt(13))


def test_impossible_counts():
    with pytest.raises(ValueError, match="gained \\+ lost <= pairs = 5"):
        paired_interval(4, 3, 5)
    with pytest.raises(ValueError, match="the same seeds"):
        compare_successes([True], [True, False], margin=0.05)
    with pytest.raises(ValueError, match="margin must be positive"):
        compare_successes([True], [True], margin=0.0)


@pytest.mark.parametrize("n", [20, 50, 100])
def test_interval_covers(n):
    """Enumerated, not simulated: 95 % intervals hold 93.8 % or more at every law of this grid, 95 % on average."""
    b, c = counts(n)
    low, high = paired_interval(b, c, n)
    found = [
        chances(b, c, n, q + d, q)[(low <= d) & (d <= high)].sum()
        for d in (0, 0.05, 0.1, 0.2, 0.5)
        for q in (0.005, 0.02, 0.05, 0.1, 0.2, 0.24)
    ]
    assert min(found) > 0.938
    assert 0.95 < np.mean(found) < 0.97


@pytest.mark.parametrize(("n", "worst"), [(20, 0.070), (50, 0.054), (100, 0.058)])
def test_equality_is_not_said_falsely(n, worst):
    """A true difference of the margin: "equal" is said in 5 % nominally; enumerated, in 7 % at the very worst."""
    b, c = counts(n)
    low, high = paired_interval(b, c, n, 0.9)
    found = [
        chances(b, c, n, q + m, q)[(-m < low) & (high < m)].sum()
        for m in (0.05, 0.1, 0.2)
        for q in (0.0, 0.002, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
    ]
    assert 0.04 < max(found) < worst


@pytest.mark.parametrize("n", [20, 100])
def test_mcnemar_does_not_raise_more_than_five_percent(n):
    d = np.arange(n + 1)
    raised = []
    for m in d:
        few = [k for k in range(m) if 2 * k < m and mcnemar(k, m - k) < 0.05]
        raised.append(2 * stats.binom.cdf(max(few, default=-1), m, 0.5))
    size = [(stats.binom.pmf(d, n, 2 * q) * raised).sum() for q in (0.02, 0.1, 0.3, 0.5)]
    assert 0.01 < max(size) < 0.05


@pytest.mark.parametrize(("n", "discordance", "margin"), [(60, 0.1, 0.1), (52, 0.02, 0.05), (30, 0.2, 0.2)])
def test_power_against_enumeration(n, discordance, margin):
    from diffpolicy_spec.eval.comparison import _power

    b, c = counts(n)
    low, high = paired_interval(b, c, n, 0.9)
    whole = chances(b, c, n, discordance / 2, discordance / 2)[(-margin < low) & (high < margin)].sum()
    assert _power(n, discordance, margin, 0.05) == pytest.approx(whole, rel=1e-5)


def test_episodes_needed_by_simulation():
    """The printed number does what it promises: 80 % of such evaluations then say "equal"."""
    n = episodes_needed(0.1, 0.05)
    rng = np.random.default_rng(0)
    b, c, _ = rng.multinomial(n, [0.05, 0.05, 0.9], size=20_000).T
    low, high = paired_interval(b, c, n, 0.9)
    assert np.mean((low > -0.05) & (high < 0.05)) == pytest.approx(0.8, abs=0.015)


def test_episodes_needed_for_large_numbers():
    """n -> discordance (z_{0.95} + z_{0.9})^2 / margin^2 where the normal law holds."""
    z = stats.norm.ppf(0.95) + stats.norm.ppf(0.9)
    assert episodes_needed(0.3, 0.01) == pytest.approx(0.3 * (z / 0.01) ** 2, rel=0.01)
    assert episodes_needed(1.0, 0.0005) is None
    with pytest.raises(ValueError, match="discordance must be in"):
        episodes_needed(0.0, 0.05)


def test_verdicts():
    few = compare_successes(*outcomes(19, 0, 0, 1), margin=0.05)
    assert (few.verdict, few.equal, few.difference) == ("undecided", False, 0.0)
    assert few.needed == episodes_needed(1 / 22, 0.05)
    assert few.needed > 52  # without any discordant pair n > z^2 (1 - m) / m = 51.4 suffices
    many = compare_successes(*outcomes(50, 0, 0, 2), margin=0.05)
    assert (many.verdict, many.needed) == ("equal", None)
    assert compare_successes(*outcomes(50, 0, 0, 1), margin=0.05).verdict == "undecided"
    worse = compare_successes(*outcomes(60, 20, 2, 18), margin=0.05)
    assert worse.verdict == "different"
    assert worse.difference == pytest.approx(-0.18)
    assert (worse.low, worse.high) == pytest.approx(paired_interval(2, 20, 100))
    assert worse.p_value == pytest.approx(stats.binomtest(2, 22).pvalue)
    both = compare_successes(*outcomes(9000, 30, 60, 910), margin=0.05)
    assert both.verdict == "different, but within the margin"


def test_scores_against_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.random(80), np.clip(rng.random(80) + 0.02, 0, 1)
    found = compare_scores(a, b, margin=0.05)
    expected = stats.ttest_rel(b, a)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (found.equal_low, found.equal_high) == pytest.approx(tuple(expected.confidence_interval(0.9)))
    z = stats.norm.ppf(0.95) + stats.norm.ppf(0.9)
    assert found.needed == np.ceil((np.std(b - a, ddof=1) * z / 0.05) ** 2)


def test_equal_scores_prove_nothing():
    same = compare_scores([0.5, 0.7], [0.5, 0.7], margin=0.1)
    assert (same.verdict, same.needed) == ("undecided", None)
    one = compare_scores([0.5], [0.9], margin=0.1)
    assert one.verdict == "undecided"


def test_episodes_needed_for_scores_by_simulation():
    n = episodes_needed_for_scores(0.2, 0.05)
    rng = np.random.default_rng(0)
    said = [compare_scores(np.zeros(n), rng.normal(0, 0.2, n), margin=0.05).equal for _ in range(2000)]
    assert np.mean(said) == pytest.approx(0.8, abs=0.03)


def test_false_equality_of_scores():
    """A true difference of the margin is called equal in 5 % of 4000 evaluations, within four standard errors."""
    rng = np.random.default_rng(2)
    said = [compare_scores(np.zeros(100), rng.normal(0.05, 0.1, 100), margin=0.05).equal for _ in range(4000)]
    assert np.mean(said) == pytest.approx(0.05, abs=0.014)


def test_mean_interval():
    x = np.random.default_rng(3).normal(5, 1, 40)
    expected = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert mean_interval(x) == pytest.approx((expected.low, expected.high))
    assert mean_interval([0.4]) is None
    assert mean_interval([2.0, 2.0]) is None
    wilson = stats.binomtest(20, 20).proportion_ci(method="wilson")
    assert mean_interval(np.ones(20)) == pytest.approx((wilson.low, wilson.high))
    low, high = mean_interval([1.0, 1.0, 1.0, 0.2])
    assert (low >= 0, high) == (True, 1.0)


def test_holm():
    """Holm (1979): the smallest is multiplied by m, the next by m - 1, and none falls below one before it."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
