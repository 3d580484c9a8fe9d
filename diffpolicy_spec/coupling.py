"""Maximal couplings of two Gaussians that differ in their means, vectorised over leading axes.

In units of sigma the draft is N(v, I) and the target N(0, I), v = (mu_draft - mu_target) / sigma; the drafted point is
v + xi with xi ~ N(0, I). A coupling turns it into a point that is exactly N(0, I), as often as possible the same one.

Both laws differ along e = -v / |v| only, from the draft towards the target, d = |v| apart: with s = <e, xi> the draft
has density phi(s), the target phi(s - d), and everything across e is the same standard normal.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "accept_reflection",
    "log_ratio",
    "reflect",
    "reflection_coupling",
    "residual_mass",
    "residual_quantile",
    "residual_step",
]

_ROOT = 0.5**0.5


def accept_reflection(v: Tensor, xi: Tensor, u: Tensor) -> Tensor:
    """Whether the drafted point v + xi is kept (ASD, arXiv 2505.03983, Alg. 3; arXiv 2501.05370, Alg. 4).

        accept iff 1 - U <= phi(v + xi) / phi(xi),   log of the ratio = -<xi, v> - |v|^2 / 2

    P(accept) = 2 Phi(-|v| / 2) = 1 - TV(N(v, I), N(0, I)), the maximum.

    Args:
        v: (..., D) distance of the means in units of sigma, over ALL coordinates that are noised.
        xi: (..., D) the draft's noise.
        u: (...,) uniforms in [0, 1).

    Returns:
        (...,) bool.
    """
    return torch.log1p(-u) <= log_ratio(v, xi)


def log_ratio(v: Tensor, xi: Tensor) -> Tensor:
    """log of target over draft density at the drafted point v + xi: -<xi, v> - |v|^2 / 2. (..., D) -> (...,)."""
    return -((xi + 0.5 * v) * v).sum(-1)


def reflect(v: Tensor, xi: Tensor) -> Tensor:
    """The target's noise after a rejection: xi mirrored, xi - 2 <e, xi> e with e = v / |v|. (..., D)."""
    e = _direction(v)
    return xi - 2 * (e * xi).sum(-1, keepdim=True) * e


def reflection_coupling(v: Tensor, xi: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(accepted (...,), z (..., D)): z ~ N(0, I) given any v that does not depend on xi and u; z = v + xi if accepted.

    The output of the step is mu_target + sigma z.
    """
    accepted = accept_reflection(v, xi, u)
    return accepted, torch.where(accepted[..., None], v + xi, reflect(v, xi))


def residual_mass(log_p: Tensor, d: Tensor) -> Tensor:
    """Mass of (P target - draft)_+: what P times the target has beyond the draft (arXiv 2606.13426).

        N = P SF(th - d) - SF(th),   th = d / 2 - ln(P) / d,   SF(s) = P(N(0, 1) > s)

    P phi(s - d) exceeds phi(s) beyond th. P = 1 gives N = TV = 2 Phi(d / 2) - 1; d = 0 gives (P - 1)_+.

    Args:
        log_p: (...,) float64, ln P; P > 1 is allowed.
        d: (...,) float64, distance of the means, >= 0.
    """
    apart = d > 0
    th = _threshold(log_p, d)
    mass = log_p.exp() * _survival(th - d) - _survival(th)
    return torch.where(apart, mass.clamp(min=0.0), log_p.expm1().clamp(min=0.0))


def residual_quantile(log_p: Tensor, d: Tensor, w: Tensor) -> Tensor:
    """s with density proportional to (P phi(s - d) - phi(s))_+, from w: (...,) uniform in [0, 1); float64.

    Inverts R(s) = P SF(s - d) - SF(s), which falls from N at th to 0, at (1 - w) N: a grid search whose last bracket is
    1e-7 wide or less, in few launches for few numbers and in little memory for many.
    """
    # In units of sqrt(2), in which SF(s) = erfc(s) / 2; SF(9) = 1e-19.
    begin = torch.where(d > 0, torch.maximum(_threshold(log_p, d), d - 9.0), torch.zeros_like(d)).clamp(min=-9.0)
    left, shift = begin * _ROOT, d * _ROOT
    right = torch.maximum(left, shift) + 9.0 * _ROOT
    wanted = (2 * (1 - w.to(d)) * residual_mass(log_p, d)).unsqueeze(-1)
    points, rounds = (512, 3) if d.numel() <= 64 else (32, 6)
    grid = torch.linspace(0, 1, points + 1, dtype=d.dtype, device=d.device)
    p, shift, left, right = log_p.exp().unsqueeze(-1), shift.unsqueeze(-1), left.unsqueeze(-1), right.unsqueeze(-1)
    for _ in range(rounds):
        s = torch.lerp(left, right, grid)
        above = p * torch.erfc(s - shift) - torch.erfc(s) >= wanted
        last = above[..., 1:-1].sum(-1, keepdim=True)
        left, right = s.gather(-1, last), s.gather(-1, last + 1)
    return ((left + right) * _ROOT).squeeze(-1)


def residual_step(v: Tensor, xi: Tensor, log_p: Tensor, w: Tensor) -> Tensor:
    """The target's noise drawn from the residual of (P target - draft)_+: (s - d) e + (xi without its part along e).

    The part of xi across e is re-used: whether the draft was kept depended on its part along e only.

    Args:
        v: (..., D) distance of the means in units of sigma.
        xi: (..., D) the draft's noise.
        log_p: (...,) ln P, float64.
        w: (...,) uniforms in [0, 1) that nothing else has seen.
    """
    e, d = -_direction(v), torch.linalg.vector_norm(v, dim=-1).double()
    s = (residual_quantile(log_p, d, w.double()) - d).to(v.dtype)  # seen from the target: v = -d e
    return xi + (s - (e * xi).sum(-1)).unsqueeze(-1) * e


def _direction(v: Tensor) -> Tensor:
    """v / |v|, 0 for v = 0; scaled first, so that no square underflows."""
    v = v / v.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
    return v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)


def _threshold(log_p: Tensor, d: Tensor) -> Tensor:
    safe = d.clamp(min=1e-300)
    return d / 2 - log_p / safe


def _survival(s: Tensor) -> Tensor:
    return 0.5 * torch.erfc(s * _ROOT)
