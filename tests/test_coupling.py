"""One coupled step: its output law given any two means, and how often it keeps the draft."""

import math

import numpy as np
import pytest
import torch
from closed_form import ALPHA
from coupling_inputs import ROWS, dims, directions, distances, draws, dtypes, laws, properties, seeds, unit, unit_rows
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from diffpolicy_spec.coupling import accept_reflection, reflect, reflection_coupling

N = 200_000

# --- the reflection coupling at chosen means ---


@pytest.mark.parametrize("dim", [1, 3, 32])
@pytest.mark.parametrize("distance", [0.0, 1e-6, 0.1, 1.0, 3.0, 20.0])
def test_the_output_is_the_target_whatever_the_means(dim, distance):
    g = torch.Generator().manual_seed(dim * 100 + int(distance * 10))
    e = torch.randn(dim, generator=g)
    v = distance * e / e.norm()
    xi, u = torch.randn(N, dim, generator=g), torch.rand(N, generator=g)
    accepted, z = reflection_coupling(v.expand_as(xi), xi, u)
    views = {"along v": z @ (e / e.norm()), "first": z[:, 0], "last": z[:, -1]}
    for name, view in views.items():
        p = stats.kstest(view.double().numpy(), "norm").pvalue
        assert p > ALPHA, (name, p)
    p = stats.kstest((z.double() ** 2).sum(1).numpy(), "chi2", args=(dim,)).pvalue
    assert p > ALPHA
    assert torch.equal(z[accepted], (v + xi)[accepted])
    # P(accept) = 2 Phi(-|v| / 2): an exact binomial test
    expected = math.erfc(distance / 2 / math.sqrt(2))
    assert stats.binomtest(int(accepted.sum()), N, expected).pvalue > ALPHA


def test_equal_means_are_always_accepted_also_at_the_ends_of_u():
    xi = torch.randn(4, 5)
    u = torch.tensor([0.0, 0.5, 1 - 2**-24, 0.999])
    assert bool(accept_reflection(torch.zeros(4, 5), xi, u).all())
    assert bool(torch.isfinite(reflect(torch.zeros(4, 5), xi)).all())


def test_reflection_is_an_isometry_that_swaps_the_means():
    v, xi = torch.randn(50, 6, dtype=torch.float64), torch.randn(50, 6, dtype=torch.float64)
    mirrored = reflect(v, xi)
    torch.testing.assert_close(mirrored.norm(dim=1), xi.norm(dim=1))
    torch.testing.assert_close(reflect(v, mirrored), xi)
    # the drafted point seen from one mean is the mirror image of the corrected one seen from the other
    e = v / v.norm(dim=1, keepdim=True)
    torch.testing.assert_close((mirrored * e).sum(1), -(xi * e).sum(1))


@pytest.mark.parametrize("wrong", ["always", "fresh"])
def test_a_wrong_coupling_fails_the_same_check(wrong):
    g = torch.Generator().manual_seed(0)
    v = torch.tensor([1.0, 0.0])
    xi, u = torch.randn(N, 2, generator=g), torch.rand(N, generator=g)
    accepted = accept_reflection(v.expand_as(xi), xi, u)
    z = v + xi if wrong == "always" else torch.where(accepted[:, None], v + xi, torch.randn(N, 2, generator=g))
    assert stats.kstest(z[:, 0].double().numpy(), "norm").pvalue < ALPHA


# --- properties over extreme means and scales ---

@properties
@given(direction=directions, distance=distances, dim=dims, dtype=dtypes, seed=seeds)
@example(direction="one huge coordinate", distance=1e6, dim=512, dtype=torch.float32, seed=0)
@example(direction="all equal", distance=1e-12, dim=512, dtype=torch.float32, seed=1)
@example(direction="random", distance=0.0, dim=1, dtype=torch.float32, seed=2)
def test_the_output_is_the_draft_or_its_noise_mirrored(direction, distance, dim, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    v = (distance * unit(direction, dim, generator)).to(dtype).expand(256, dim)
    xi, u = draws(256, dim, dtype, generator)
    accepted, z = reflection_coupling(v, xi, u)
    assert z.dtype == dtype
    assert bool(torch.isfinite(z).all())
    assert torch.equal(z[accepted], (v + xi)[accepted])
    # a reflection keeps lengths, and turns the component along v round: rejected or not, it must be one
    mirrored, eps = reflect(v, xi), torch.finfo(dtype).eps
    torch.testing.assert_close(z[~accepted], mirrored[~accepted], rtol=0, atol=0)
    torch.testing.assert_close(mirrored.norm(dim=1), xi.norm(dim=1), rtol=16 * eps * math.sqrt(dim), atol=0)
    if distance > 0:
        e = unit_rows(v)
        along, before = (mirrored.double() * e).sum(1), (xi.double() * e).sum(1)
        torch.testing.assert_close(along, -before, rtol=0, atol=64 * eps * math.sqrt(dim))
        torch.testing.assert_close(mirrored.double() - along[:, None] * e, xi.double() - before[:, None] * e,
                                   rtol=0, atol=64 * eps * math.sqrt(dim))  # fmt: skip
    else:
        assert bool(accepted.all())
        assert torch.equal(mirrored, xi)


@laws
@given(direction=directions, distance=distances, dim=dims, dtype=dtypes, seed=seeds)
@example(direction="random", distance=2.0, dim=512, dtype=torch.float32, seed=3)
@example(direction="one huge coordinate", distance=0.5, dim=8, dtype=torch.float32, seed=4)
def test_the_draft_is_kept_as_often_as_can_be(direction, distance, dim, dtype, seed):
    """2 Phi(-|v|/2) = 1 - TV in 4,000 draws, by an exact binomial test: a deviation of 0.04 at most goes unseen."""
    generator = torch.Generator().manual_seed(seed)
    v = (distance * unit(direction, dim, generator)).to(dtype).expand(ROWS, dim)
    xi = torch.randn(ROWS, dim, generator=generator, dtype=dtype)
    u = torch.rand(ROWS, generator=generator, dtype=dtype)
    kept = int(accept_reflection(v, xi, u).sum())
    assert stats.binomtest(kept, ROWS, math.erfc(distance / 2 / math.sqrt(2))).pvalue > ALPHA


@laws
@given(low=st.floats(-6.0, 2.0), width=st.floats(0.0, 4.0), dim=dims, dtype=dtypes, seed=seeds)
@example(low=0.0, width=0.0, dim=512, dtype=torch.float32, seed=5)
def test_the_output_is_normal_for_means_that_differ_from_row_to_row(low, width, dim, dtype, seed):
    """|v| log-uniform, direction random: along each row's own e, and in length, the output is N(0, I)."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (low + width * torch.rand(ROWS, 1, generator=generator, dtype=torch.float64))
    e = torch.randn(ROWS, dim, generator=generator, dtype=torch.float64)
    v = (scale * e / e.norm(dim=1, keepdim=True)).to(dtype)
    xi = torch.randn(ROWS, dim, generator=generator, dtype=dtype)
    u = torch.rand(ROWS, generator=generator, dtype=dtype)
    _, z = reflection_coupling(v, xi, u)
    z = z.double()
    for view in ((z * unit_rows(v)).sum(1), z[:, 0]):
        assert stats.kstest(view.numpy(), "norm").pvalue > ALPHA
    assert stats.kstest((z**2).sum(1).numpy(), "chi2", args=(dim,)).pvalue > ALPHA


@properties
@given(distance=distances, dim=dims, dtype=dtypes, seed=seeds)
def test_rows_do_not_know_of_each_other(distance, dim, dtype, seed):
    """Leading axes are a batch: (4, 8) rows at once are the 32 rows."""
    generator = torch.Generator().manual_seed(seed)
    v = (distance * torch.randn(4, 8, dim, generator=generator, dtype=torch.float64)).to(dtype)
    xi = torch.randn(4, 8, dim, generator=generator, dtype=dtype)
    u = torch.rand(4, 8, generator=generator, dtype=dtype)
    accepted, z = reflection_coupling(v, xi, u)
    flat_accepted, flat = reflection_coupling(v.flatten(0, 1), xi.flatten(0, 1), u.flatten())
    assert torch.equal(accepted.flatten(), flat_accepted)
    assert torch.equal(z.flatten(0, 1), flat)


@properties
@given(logs=st.lists(st.floats(-12.0, 6.0), min_size=2, max_size=8), dim=dims, dtype=dtypes, seed=seeds)
def test_a_larger_u_keeps_more(logs, dim, dtype, seed):
    """accept iff log(1 - U) <= log ratio: once kept, kept for every larger U."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.stack([10.0**p * unit("random", dim, generator) for p in logs]).to(dtype)
    xi = torch.randn(len(logs), dim, generator=generator, dtype=dtype)
    u = torch.from_numpy(np.linspace(0, 1, 65)[:-1]).to(dtype)
    kept = accept_reflection(v[:, None], xi[:, None], u.expand(len(logs), 64))
    assert bool((kept.long().diff(dim=1) >= 0).all())
