"""Maximal couplings of two Gaussians that differ in their means, vectorised over leading axes.

In units of sigma the draft is N(v, I) and the target N(0, I), v = (mu_draft - mu_target) / sigma; the drafted point is
v + xi with xi ~ N(0, I). A coupling turns it into a point that is exactly N(0, I), as often as possible the same one.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accept_reflection", "reflect", "reflection_coupling"]


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
    return torch.log1p(-u) <= -((xi + 0.5 * v) * v).sum(-1)


def reflect(v: Tensor, xi: Tensor) -> Tensor:
    """The target's noise after a rejection: xi mirrored, xi - 2 <e, xi> e with e = v / |v|. (..., D)."""
    e = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
    return xi - 2 * (e * xi).sum(-1, keepdim=True) * e


def reflection_coupling(v: Tensor, xi: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(accepted (...,), z (..., D)): z ~ N(0, I) given any v that does not depend on xi and u; z = v + xi if accepted.

    The output of the step is mu_target + sigma z.
    """
    accepted = accept_reflection(v, xi, u)
    return accepted, torch.where(accepted[..., None], v + xi, reflect(v, xi))
