"""A drafted window against the target: which steps are committed, and the state after them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .coupling import accept_reflection, reflect
from .schedule import StepTables
from .window import Draft, Window

__all__ = ["Outcome", "verify_steps"]


@dataclass(frozen=True)
class Outcome:
    """What a round commits for each of its b chains.

    Attributes:
        accepted: (b,) long, a: drafted steps committed as drafted; the round commits a + 1 steps.
        rejected: (b,) bool, whether step a + 1 failed its test and was corrected (else it needed none).
        x: (b, D) the state after the committed steps.
    """

    accepted: Tensor
    rejected: Tensor
    x: Tensor


def verify_steps(tables: StepTables, window: Window, draft: Draft, m: Tensor, xi: Tensor, u: Tensor) -> Outcome:
    """Test step by step with the reflection coupling (ASD, arXiv 2505.03983, Alg. 2 and 3).

    Row i holds the state before step i of the window. With v = A (m_draft - m) / sigma its step is accepted by
    `accept_reflection`; the first failure is mirrored and ends the round. The last row's successor was not drafted
    into the window, so its step is drawn from the target directly: x = A m + B x + sigma xi.

    Args:
        m: (b, N, D) the network's x0 at the drafted states.
        xi: (b, N, D) and u: (b, N), the noise and uniform of each row's step.
    """
    v = tables.shift[window.steps].unsqueeze(-1) * (draft.m - m)
    accept = accept_reflection(v, xi, u) & window.tested
    a = accept.cumprod(dim=1).sum(dim=1)
    b = torch.arange(a.shape[0], device=a.device)
    rejected = window.tested[b, a]
    k = window.steps[b, a]
    z = torch.where(rejected[:, None], reflect(v[b, a], xi[b, a]), xi[b, a])
    A, B, sigma = (table[k].unsqueeze(-1) for table in (tables.A, tables.B, tables.sigma))
    return Outcome(accepted=a, rejected=rejected, x=A * m[b, a] + B * draft.x[b, a] + sigma * z)
