"""Parts of samplers with one slip each, for the tests that must catch them."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import patch

import torch

from diffpolicy_spec import Nearest, Picard
from diffpolicy_spec.coupling import log_ratio, reflect, residual_quantile, residual_step
from diffpolicy_spec.trees import _accept
from diffpolicy_spec.verification import verify_block


def accepts_too_often(v, xi, u):
    return torch.log1p(-u) <= 0.15 - ((xi + 0.5 * v) * v).sum(-1)


def reflects_fresh_noise_the_wrong_way(v, xi):
    fresh = torch.randn(xi.shape, generator=torch.Generator().manual_seed(9))
    e = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp(min=1e-30)
    return fresh + (e * fresh).sum(-1, keepdim=True).abs() * e


def keeps_the_noise(tables, window, draft, m, xi, u):
    outcome = verify_block(tables, window, draft, m, xi, u)
    return type(outcome)(accepted=outcome.accepted, rejected=outcome.rejected, x=outcome.x)


def uncapped(tables, window, draft, m, xi, u):
    """P as the plain product of likelihood ratios: 0 in place of max(0, S_1, ..., S_i)."""

    def no_maximum(walk, dim):
        return SimpleNamespace(values=torch.zeros_like(walk))

    with patch.object(torch.Tensor, "cummax", no_maximum):
        return verify_block(tables, window, draft, m, xi, u)


def without_its_distance(log_p, d):
    """N with the threshold at 0 instead of d / 2 - ln(P) / d."""
    p, half = log_p.exp(), torch.full_like(d, 0.5)
    return (p * (0.5 * torch.erfc(-d * 0.5**0.5)) - half).clamp(min=0.0)


def from_the_wrong_side(v, xi, log_p, w):
    """The residual of (draft - P target)_+: s mirrored in d / 2."""
    d = torch.linalg.vector_norm(v, dim=-1)
    e = -v / d.unsqueeze(-1).clamp(min=1e-30)
    s = (d.double() - residual_quantile(log_p, d.double(), w.double())).to(v.dtype)
    return v + xi + (s - (e * xi).sum(-1)).unsqueeze(-1) * e


def as_if_p_were_1(v, xi, log_p, w):
    return residual_step(v, xi, torch.zeros_like(log_p), w)


def mirrored(v, xi, log_p, w):
    """The reflection of step verification: right for one step, wrong for a block."""
    return reflect(v, xi)


def one_uniform_for_all_siblings(v, xi, u):
    return _accept(v, xi, u[:, :1].expand_as(u))


def every_sibling_against_the_whole_target(v, xi, u):
    """min(1, p / q) for each: no residual between them."""
    kept = (1 - u) <= log_ratio(v.unsqueeze(1), xi).exp()
    return kept, _accept(v, xi, u)[1]


def the_best_sibling_first(v, xi, u):
    """Tried in the order of their likelihood ratios."""
    order = log_ratio(v.unsqueeze(1), xi).argsort(dim=1, descending=True)
    kept, left = _accept(v, xi.gather(1, order.unsqueeze(-1).expand_as(xi)), u)
    return torch.zeros_like(kept).scatter(1, order, kept), left


class SeesItsOwnNoise(Nearest):
    """A draft of x0 that leans towards where the step's own noise goes."""

    def start(self, tables, prior, small):
        running = super().start(tables, prior, small)
        honest = running.draft

        def draft(window, x, xi):
            out = honest(window, x, xi)
            return type(out)(m=out.m + 0.3 * xi, x=out.x + 0.0)

        running.draft = draft
        return running


class CorrectsAtTheNextState(Picard):
    """A corrector that is asked where its own step leads: row i at row i + 1's state, which holds xi_i."""

    def start(self, tables, prior, small):
        def peek(window, x, steps):
            return small(window, torch.cat([x[:, 1:], x[:, -1:]], dim=1), steps)

        return super().start(tables, prior, peek)
