"""The residual of block verification, (P phi(s - d) - phi(s))_+ of mass N(P, d): its mass, its law, its use."""

import math

import numpy as np
import pytest
import torch
from closed_form import ALPHA
from coupling_inputs import ROWS, dims, directions, draws, dtypes, laws, properties, seeds, unit, unit_rows
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import stats

from diffpolicy_spec.coupling import log_ratio, residual_mass, residual_quantile, residual_step

DRAWS = 200_000
# |kept - expected| of ROWS independent draws exceeds this with probability ALPHA at most (Hoeffding's inequality).
HOEFFDING = math.sqrt(ROWS / 2 * math.log(2 / ALPHA))
# residual_step adds v to its noise and takes most of it away again: eps |v| is lost.
CANCELLATION = 0
log_ps = st.one_of(st.just(0.0), st.floats(-12.0, 2.5).map(lambda p: -(10.0**p)))
apart = st.one_of(st.just(0.0), st.floats(-12.0, 6.0).map(lambda p: 10.0**p))
moderate = st.floats(-1.0, 1.2).map(lambda p: 10.0**p)  # d from 0.1 to 16


def double(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def mass(log_p: float, d: float) -> float:
    return float(residual_mass(*double(log_p, d)))


@properties
@given(log_p=log_ps, d=apart, further=st.floats(0.0, 3.0), less=st.floats(0.0, 1.0))
@example(log_p=-1e-12, d=1e-12, further=0.0, less=0.5)
@example(log_p=-300.0, d=1e6, further=1.0, less=1.0)
def test_the_residual_mass_lies_between_0_and_p_and_grows_with_both(log_p, d, further, less):
    """N is convex in P with slope in [0, 1], and grows with the distance of the means."""
    p, n = math.exp(log_p), mass(log_p, d)
    assert 0.0 <= n <= p * (1 + 1e-12)
    smaller = log_p - less
    assert -1e-15 <= n - mass(smaller, d) <= (p - math.exp(smaller)) + 1e-15
    assert mass(log_p, d * (1 + further)) >= n - 1e-15


@laws
@given(log_p=st.floats(-12.0, 0.0), d=st.one_of(moderate, st.floats(-4.0, -1.0).map(lambda p: 10.0**p)))
@example(log_p=0.0, d=1.0)
def test_the_residual_mass_is_the_integral_it_stands_for(log_p, d):
    s, step = np.linspace(-12.0, d + 12.0, 400_001, retstep=True)
    density = np.maximum(math.exp(log_p) * stats.norm.pdf(s - d) - stats.norm.pdf(s), 0.0)
    assert mass(log_p, d) == pytest.approx(density.sum() * step, rel=1e-6, abs=1e-11)


def test_the_residual_mass_at_the_limits():
    for d in (0.0, 1e-12, 1e-3, 0.5, 3.0, 30.0, 1e6):
        assert mass(0.0, d) == pytest.approx(1 - math.erfc(d / 2 / math.sqrt(2)), abs=1e-15)  # P = 1: 1 - 2 Phi(-d/2)
        assert mass(-1e4, d) == 0.0  # P -> 0
    for log_p in (-1e-9, -0.1, -5.0, -600.0):
        assert mass(log_p, 0.0) == 0.0  # d -> 0: nothing is beyond
        assert mass(log_p, 1e-12) == pytest.approx(0.0, abs=1e-12)
        assert mass(log_p, 1e6) == pytest.approx(math.exp(log_p), rel=1e-12)  # d huge: all of P


@laws
@given(log_p=st.floats(-8.0, 0.0), d=st.one_of(moderate, st.sampled_from([40.0, 1e3, 1e6])), seed=seeds)
@example(log_p=0.0, d=1e-3, seed=6)
@example(log_p=-8.0, d=3.0, seed=7)
def test_residual_samples_have_the_residual_law(log_p, d, seed):
    """F(s) = 1 - (P SF(s - d) - SF(s)) / N is inverted to rounding, so that F(s) is uniform."""
    n = mass(log_p, d)
    assume(n > 1e-12)  # else it is never drawn, and rounding is all of N
    w = torch.rand(ROWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w[0], w[1] = 0.0, 1 - 2**-24  # float32 uniforms end here
    log_p_, d_ = (t.expand(ROWS) for t in double(log_p, d))
    s = residual_quantile(log_p_, d_, w).numpy()
    assert np.isfinite(s).all()
    assert s.min() >= (d / 2 - log_p / d) * (1 - 1e-12) - 1e-9  # P phi(s - d) > phi(s) only beyond
    cdf = 1 - (math.exp(log_p) * stats.norm.sf(s - d) - stats.norm.sf(s)) / n
    # what inverting may cost: the last bracket (1e-7), and rounding of N
    np.testing.assert_allclose(cdf, w.numpy(), rtol=0, atol=1e-7 + 1e-15 / n)
    assert stats.kstest(cdf[2:], "uniform").pvalue > ALPHA


@pytest.mark.parametrize(("log_p", "d"), [(0.0, 0.3), (0.0, 4.0), (-0.2, 1.0), (-2.0, 2.0)])
def test_residual_samples_are_those_that_rejection_from_the_target_leaves(log_p, d):
    """An independent way to draw: s ~ N(d, 1), kept with probability (1 - phi(s) / (P phi(s - d)))_+."""
    g = torch.Generator().manual_seed(8)
    s = d + torch.randn(DRAWS, generator=g, dtype=torch.float64)
    keep = 1 - (0.5 * d * d - d * s - log_p).exp()
    rejection = s[torch.rand(DRAWS, generator=g, dtype=torch.float64) < keep]
    # each is drawn from the target with probability N / P
    assert stats.binomtest(len(rejection), DRAWS, mass(log_p, d) / math.exp(log_p)).pvalue > ALPHA
    w = torch.rand(20_000, generator=g, dtype=torch.float64)
    ours = residual_quantile(*(t.expand(20_000) for t in double(log_p, d)), w)
    assert stats.ks_2samp(ours.numpy(), rejection.numpy()).pvalue > ALPHA


@properties
@given(direction=directions, distance=st.floats(-3.0, 6.0).map(lambda p: 10.0**p), log_p=st.floats(-3.0, 0.0), dim=dims,
       dtype=dtypes, seed=seeds)  # fmt: skip
@example(direction="one huge coordinate", distance=1e6, log_p=0.0, dim=512, dtype=torch.float32, seed=9)
@example(direction="all equal", distance=1e-3, log_p=-1e-4, dim=512, dtype=torch.float32, seed=10)
def test_the_residual_step_replaces_what_is_along_v_and_keeps_the_rest(direction, distance, log_p, dim, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    v = (distance * unit(direction, dim, generator)).to(dtype).expand(64, dim)
    xi, w = draws(64, dim, dtype, generator)
    log_p_ = torch.full((64,), log_p, dtype=torch.float64)
    z = residual_step(v, xi, log_p_, w)
    assert z.dtype == dtype
    assert bool(torch.isfinite(z).all())
    d = torch.linalg.vector_norm(v.double(), dim=1)
    e = -unit_rows(v)
    along = (z.double() * e).sum(1)
    eps = torch.finfo(dtype).eps
    tolerance = 64 * eps * math.sqrt(dim) + CANCELLATION * eps * distance
    across, before = (y.double() - (y.double() * e).sum(1, keepdim=True) * e for y in (z, xi))
    torch.testing.assert_close(across, before, rtol=0, atol=tolerance)
    # seen from the target the sample along e is s - d; where P N(0, 1) exceeds the draft it is beyond th - d
    if mass(log_p, distance) > 1e-9:
        expected = residual_quantile(log_p_, d, w.double()) - d
        torch.testing.assert_close(along, expected, rtol=1e-6, atol=tolerance + 1e-9 * (1 + distance))


@laws
@given(low=st.floats(-2.0, 1.0), width=st.floats(0.0, 1.0), log_p=st.floats(-2.0, 0.0), dim=dims, dtype=dtypes,
       seed=seeds)  # fmt: skip
@example(low=0.0, width=0.0, log_p=0.0, dim=512, dtype=torch.float32, seed=11)
@example(low=0.0, width=0.5, log_p=-0.7, dim=3, dtype=torch.float32, seed=12)
def test_what_is_kept_and_the_residual_are_together_the_target(low, width, log_p, dim, dtype, seed):
    """One level of the block rule: min(phi, P target) of the draft is kept, else the residual is drawn with probability
    h = N / (N + 1 - P). The draft is kept with probability P - N, something comes out with probability P, as N(0, I).
    """
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (low + width * torch.rand(ROWS, 1, generator=generator, dtype=torch.float64))
    e = torch.randn(ROWS, dim, generator=generator, dtype=torch.float64)
    v = (scale * e / e.norm(dim=1, keepdim=True)).to(dtype)
    xi = torch.randn(ROWS, dim, generator=generator, dtype=dtype)
    u, again, w = torch.rand(3, ROWS, generator=generator, dtype=torch.float64)
    p, n = math.exp(log_p), residual_mass(torch.full((ROWS,), log_p, dtype=torch.float64), v.double().norm(dim=1))
    keep = u < (log_p + log_ratio(v, xi).double()).exp()
    residual = ~keep & (again < n / (n + 1 - p))
    corrected = residual_step(v, xi, torch.full((ROWS,), log_p, dtype=torch.float64), w)
    z = torch.where(keep[:, None], v + xi, corrected)[keep | residual].double()
    assert abs(int(keep.sum()) - float((p - n).sum())) <= HOEFFDING
    assert stats.binomtest(len(z), ROWS, p).pvalue > ALPHA
    rows = unit_rows(v)[keep | residual]
    for view in ((z * rows).sum(1), z[:, 0]):
        assert stats.kstest(view.numpy(), "norm").pvalue > ALPHA
    assert stats.kstest((z**2).sum(1).numpy(), "chi2", args=(dim,)).pvalue > ALPHA
