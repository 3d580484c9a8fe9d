"""The parts of the battery against brute force, and its false-alarm rate."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from diffpolicy_spec.certify.battery import TESTS, compare, holm, needed_permutations, run_tests, sees
from diffpolicy_spec.certify.classifier import classifier_test, features
from diffpolicy_spec.certify.energy import energy_test
from diffpolicy_spec.certify.modes import find_modes, modes_test
from diffpolicy_spec.certify.permutation import labels, permutation_p
from diffpolicy_spec.certify.pool import RESOLUTION, make_pool
from diffpolicy_spec.certify.projections import kolmogorov_p, ks_distances, projections_test

OBS, TP, DA = 2, 4, 2
CONDITIONS = torch.tensor([[0.0, 1.0], [1.0, -1.0]])


def chunks(n: int, seed: int, weight: float = 0.3) -> Tensor:
    """(O, n, Tp, Da): correlated in time, two modes, wider and elsewhere for the second observation."""
    g = torch.Generator().manual_seed(seed)
    path = torch.randn(OBS, n, TP, DA, generator=g).cumsum(2) * torch.tensor([0.1, 0.2]).view(OBS, 1, 1, 1)
    mode = (torch.rand(OBS, n, 1, 1, generator=g) < weight).float()
    return path + mode + torch.tensor([0.0, 0.5]).view(OBS, 1, 1, 1)


def test_equal_laws_are_called_different_at_the_stated_rate_only():
    """250 batteries on equal laws: p-values of every test are at most as often below a level as the level says."""
    p: dict[str, list[float]] = {name: [] for name in TESTS}
    repeats, alarms = 250, 0
    for i in range(repeats):
        scores = run_tests(make_pool(chunks(40, 2 * i), chunks(40, 2 * i + 1), CONDITIONS), needed_permutations(0.1))
        for name, score in scores.items():
            p[name].append(score.p)
        alarms += any(holm([s.p for s in scores.values()], 0.1)[1])
    for name, values in p.items():
        for level in (0.02, 0.05, 0.1, 0.25, 0.5):
            most = stats.binom.ppf(1 - 1e-4, repeats, level)
            assert sum(v <= level for v in values) <= most, f"{name}: {sum(v <= level for v in values)} below {level}"
    # Permutation tests are exact, not merely safe: their p-values are uniform. KS on many views is safe.
    for name in ("energy distance", "classifier"):
        assert stats.kstest(p[name], "uniform").pvalue > 1e-3, name
    assert alarms <= stats.binom.ppf(1 - 1e-4, repeats, 0.1)
    assert alarms > 0  # the battery is able to say "different" at all


def test_each_test_sees_what_it_is_for():
    x, y = chunks(200, 1), chunks(200, 2)
    alpha = 1e-3

    def blames(changed: Tensor) -> set[str]:
        return {c.test for c in compare(x, changed, CONDITIONS, alpha=alpha) if c.different}

    assert blames(y) == set()
    assert blames(y + 0.5 * y.std(1, keepdim=True)) >= {"projections (KS)", "energy distance", "classifier"}
    assert "extremes (KS)" in blames(y + 0.3 * torch.randn(y.shape))
    assert "mode choice" in blames(chunks(200, 2, weight=0.55))
    opposite = y + torch.tensor([0.35, -0.35]).view(OBS, 1, 1, 1) * y.std(1, keepdim=True)
    assert blames(opposite) & {"energy distance", "classifier"}  # merged views cancel, these do not
    # Noise in the direction in which chunks vary least, twice what they vary there: 3 % of their spread.
    _, _, axes = torch.linalg.svd((y - y.mean(1, keepdim=True)).flatten(0, 1).flatten(1), full_matrices=False)
    assert blames(y + 0.17 * torch.randn(OBS, 200, 1, 1) * axes[-1].view(TP, DA)) >= {"classifier"}


def test_a_battery_stops_early_with_the_same_answer():
    x, y = chunks(60, 1), chunks(60, 2)
    for candidate in (y, y + 0.2 * y.std(1, keepdim=True), y + 0.7 * y.std(1, keepdim=True), 1.5 * y):
        full = any(c.different for c in compare(x, candidate, CONDITIONS, alpha=0.01))
        assert sees(x, candidate, CONDITIONS, alpha=0.01) == full


def test_holm_is_holm():
    thresholds, rejected = holm([0.04, 0.001, 0.012, 0.02], 0.05)
    assert thresholds == pytest.approx([0.05, 0.0125, 0.05 / 3, 0.025])
    assert rejected == [True, True, True, True]
    assert holm([0.04, 0.001, 0.03, 0.03], 0.05)[1] == [False, True, False, False]
    assert holm([0.02, 0.03], 0.03)[1] == [False, False]  # the second may not pass where the first did not


def test_the_smallest_p_value_can_reject():
    for alpha in (0.05, 1e-3):
        assert 1 / (1 + needed_permutations(alpha)) < alpha / len(TESTS)
    with pytest.raises(ValueError, match="alpha"):
        needed_permutations(0.0)
    with pytest.raises(ValueError, match="alpha"):
        needed_permutations(1.0)


def test_ks_distances_are_scipys_also_with_ties():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 80, generator=g), 1.2 * torch.randn(5, 70, generator=g) + 0.1
    a[3], b[3] = a[3].round(), b[3].round()
    a[4], b[4] = 1.0, 1.0
    distances = ks_distances(a, b)
    for i in range(5):
        assert float(distances[i]) == pytest.approx(stats.ks_2samp(a[i].numpy(), b[i].numpy()).statistic, abs=1e-12)


@pytest.mark.parametrize("x", [0.25, 0.5, 1.0, 1.36, 2.5, 4.0])
def test_the_kolmogorov_law_is_scipys(x: float):
    n = 800
    assert kolmogorov_p(x / (n / 2) ** 0.5, n, n) == pytest.approx(stats.kstwobign.sf(x), rel=1e-6)


def test_the_energy_distance_is_the_textbook_one():
    pool = make_pool(chunks(30, 1), chunks(30, 2), CONDITIONS)
    expected = []
    for z in pool.z.double().numpy() / (TP * DA) ** 0.5:
        x, y = z[:30], z[30:]

        def mean(a, b):
            return np.linalg.norm(a[:, None] - b[None], axis=-1).mean()

        expected.append(2 * mean(x, y) - mean(x, x) - mean(y, y))
    assert energy_test(pool, 99).statistic == pytest.approx(np.mean(expected), rel=1e-3)


def test_the_classifier_statistic_is_that_of_classifiers_fitted_one_by_one():
    n, half = 40, 20
    pool = make_pool(chunks(n, 1), 1.3 * chunks(n, 2), CONDITIONS)
    phi = features(pool).double().numpy()
    folds = [np.r_[0:half, n : n + half], np.r_[half:n, n + half : 2 * n]]
    s = np.tile(np.r_[np.ones(half), -np.ones(half)], OBS)
    margins = []
    for train, test in (folds, folds[::-1]):
        X, Y = (phi[:, rows].reshape(-1, phi.shape[-1]) for rows in (train, test))
        beta = np.linalg.solve(X.T @ X + 0.01 * len(X) * np.eye(X.shape[1]), X.T @ s)
        margins.append(Y @ beta * s)
    score = classifier_test(pool, 99)
    assert score.statistic == pytest.approx(np.mean(margins), rel=1e-3)
    assert f"{100 * np.mean(np.array(margins) > 0):.1f} %" in score.detail


def test_modes_are_found_whatever_the_order():
    g = torch.Generator().manual_seed(5)
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    truth = torch.arange(3).repeat_interleave(torch.tensor([50, 30, 20]))
    points = centres[truth] + 0.3 * torch.randn(100, 2, generator=g)
    clusters = find_modes(points)
    assert len(set(zip(truth.tolist(), clusters.tolist(), strict=True))) == 3
    order = torch.randperm(100, generator=g)
    again = find_modes(points[order])
    assert len(set(zip(clusters[order].tolist(), again.tolist(), strict=True))) == 3


def test_mode_counts_are_compared_by_chi_square():
    x, y = chunks(100, 1), chunks(100, 2, weight=0.6)
    score = modes_test(make_pool(x, y, CONDITIONS), 9999)
    chi2 = 0.0
    for a, b in zip(x.flatten(2).mean(-1), y.flatten(2).mean(-1), strict=True):
        middle = torch.cat([a, b])
        clusters = find_modes(middle[:, None])
        table = [[int((side == c).sum()) for c in range(2)] for side in (clusters[:100], clusters[100:])]
        chi2 += stats.chi2_contingency(table, correction=False).statistic
    assert score.statistic == pytest.approx(chi2, rel=0.3)  # its clusters are of all coordinates, these of the mean
    assert score.p < 1e-3


def test_permutation_p_values_are_exact_for_a_known_statistic():
    """The sum of one sample: the permutation law is that of scipy's own test."""
    values = torch.randn(1, 24, generator=torch.Generator().manual_seed(2))
    values[0, :12] += 0.8

    def statistic(signs: Tensor) -> Tensor:
        return (signs * values).sum((1, 2))

    observed, p = permutation_p(statistic, 12, 1, 50_000)
    assert observed == pytest.approx(float((labels(12) * values[0]).sum()), rel=1e-5)
    expected = stats.permutation_test(
        (values[0, :12].numpy(), values[0, 12:].numpy()), lambda a, b: a.sum() - b.sum(),
        n_resamples=50_000, alternative="greater", rng=np.random.default_rng(0),
    ).pvalue  # fmt: skip
    assert p == pytest.approx(expected, rel=0.15)


def test_the_last_bits_of_an_atom_make_no_difference():
    """Coordinates at a clip bound, one side off by a rounding error: not another law."""
    x, y = chunks(100, 1), chunks(100, 2)
    x[:, ::2, 0, 0], y[:, ::2, 0, 0] = 1.0, 1.0 - 2.0**-24
    pool = make_pool(x, y, CONDITIONS)
    assert set(pool.chunks[:, ::2, 0, 0].flatten().tolist()) == {1.0}
    assert projections_test(pool, 99).p > 0.01
    assert RESOLUTION < 1e-4


def test_constant_coordinates_are_no_trouble():
    x, y = chunks(50, 1), chunks(50, 2)
    x[..., 1], y[..., 1] = 0.25, 0.25
    assert not any(c.different for c in compare(x, y, CONDITIONS))
    same = torch.zeros(1, 20, 3, 2)
    assert not any(c.different for c in compare(same, same, torch.zeros(1, 1)))
    y[..., 1] = 0.3
    assert any(c.different for c in compare(x, y, CONDITIONS))


def test_what_does_not_fit_is_refused():
    x = chunks(20, 1)
    with pytest.raises(ValueError, match=r"\(O, n, Tp, Da\)"):
        compare(x, x[:, :10], CONDITIONS)
    with pytest.raises(ValueError, match="conditions"):
        compare(x, x, CONDITIONS[:1])
    with pytest.raises(ValueError, match="at least 8"):
        compare(x[:, :5], x[:, :5], CONDITIONS)
    with pytest.raises(ValueError, match="NaN"):
        compare(x, x / 0.0, CONDITIONS)
