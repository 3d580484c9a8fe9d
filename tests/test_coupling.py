"""One coupled step: its output law given any two means, and how often it keeps the draft."""

import math

import pytest
import torch
from closed_form import ALPHA
from scipy import stats

from diffpolicy_spec.coupling import accept_reflection, reflect, reflection_coupling

N = 200_000


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
