"""A million samples of each verifier against the analytic law of the chain: a KS distance of 0.0027 is seen."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from closed_form import ALPHA, gaussian, two_modes
from exactness_cases import CASES, Case, run, schedule_of, sequential, speculate, tree
from scipy import stats

from diffpolicy_spec import Schedule

MILLION, SOME = 1_000_000, 30_000
CASES["gaussian D=1 K=6"] = Case(gaussian(1, seed=3), 6)
CASES["two modes D=1 K=8"] = Case(two_modes(1, seed=3), 8)
NAMES = ("gaussian D=1 K=6", "two modes D=1 K=8")
SAMPLERS = {
    "steps": lambda name: speculate("secant", name, "all", "steps"),
    "block": lambda name: speculate("nearest", name, "all", "block"),
    "tree": lambda name: tree("two children"),
}


@functools.cache
def chain_cdf(name: str, schedule: Schedule, points: int = 3001):
    """The CDF of a one-dimensional chain's result: its density carried from step to step by quadrature.

        p_{k+1}(y) = int p_k(x) N(y; A m(x) + B x, sigma^2) dx

    The last step has no noise and x -> A m(x) + B x increases (a posterior mean does), so F(y) = F_{K-1}(x(y)).
    """
    target = CASES[name].target
    x = np.linspace(-7.0, 7.0, points)
    h = x[1] - x[0]

    def mean(k: int) -> np.ndarray:
        m = target.posterior_mean(torch.from_numpy(x)[:, None], schedule.abar[k])[:, 0].numpy()
        return float(schedule.A[k]) * m + float(schedule.B[k]) * x

    density = stats.norm.pdf(x)
    last = schedule.num_steps - 1
    for k in range(last):
        mu, sigma = mean(k), float(schedule.sigma[k])
        z = (x[:, None] - mu) / sigma
        density = (np.exp(-0.5 * z * z) / (sigma * np.sqrt(2 * np.pi))) @ density * h
    assert abs(density.sum() * h - 1) < 1e-6  # nothing left the grid, and it is fine enough
    assert float(schedule.sigma[last]) == 0
    cdf, end = np.cumsum(density) * h - 0.5 * h * density, mean(last)
    assert bool((np.diff(end) > 0).all())
    return lambda y: np.interp(y, end, cdf)


def assert_analytic(name: str, samples: torch.Tensor) -> None:
    result = stats.kstest(samples[:, 0].double().numpy(), chain_cdf(name, schedule_of(name)), method="asymp")
    assert result.pvalue > ALPHA, f"KS distance {result.statistic:.5f}, p = {result.pvalue:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("verifier", SAMPLERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_million_samples_have_the_analytic_law(name: str, verifier: str):
    assert_analytic(name, run(name, SAMPLERS[verifier](name), MILLION, seed=31))


@pytest.mark.parametrize("name", NAMES)
def test_the_analytic_law_is_the_sequential_chains(name: str):
    """The quadrature against the closed form of a Gaussian chain, and against samples (0.016 is seen)."""
    if name.startswith("gaussian"):
        mean, cov = CASES[name].target.chain_law(schedule_of(name))
        y = np.linspace(-1, 1, 41)
        expected = stats.norm.cdf(y, float(mean[0]), float(cov[0, 0]) ** 0.5)
        np.testing.assert_allclose(chain_cdf(name, schedule_of(name))(y), expected, atol=1e-4)
    assert_analytic(name, run(name, sequential, SOME, seed=30))


@pytest.mark.parametrize("verifier", SAMPLERS)
def test_a_few_samples_have_the_analytic_law(verifier: str):
    """The slow test at a thirtieth of its size."""
    assert_analytic(NAMES[1], run(NAMES[1], SAMPLERS[verifier](NAMES[1]), SOME, seed=32))


def test_a_law_that_is_a_little_off_is_caught():
    """The spread 5 % up, at a thirtieth of the slow test's size."""
    name = NAMES[1]
    samples = run(name, sequential, SOME, seed=33)
    with pytest.raises(AssertionError, match="KS distance"):
        assert_analytic(name, 1.05 * samples)
