"""A drafted window against the target: which steps are committed, and the state after them.

A verifier is a function (tables, window, draft, m, xi, u) -> Outcome. m: (b, N, D) is the network's x0 at the drafted
states, xi: (b, N, D) and u: (b, N) the noise and uniform of each row's step. In units of sigma row i drafted its step
v_i = A_i (m_draft - m) / sigma_i away from the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .coupling import accept_reflection, log_ratio, reflect, residual_mass, residual_step
from .schedule import StepTables
from .window import Draft, Window

__all__ = ["VERIFIERS", "Outcome", "Verifier", "verify_block", "verify_steps"]


@dataclass(frozen=True)
class Outcome:
    """What a round commits for each of its b chains.

    Attributes:
        accepted: (b,) long, a: drafted steps committed as drafted; the round commits a + 1 steps.
        rejected: (b,) bool, whether step a + 1 failed its test and was corrected (else it needed none).
        x: (b, D) the state after the committed steps.
        spent: (b, N) bool, rows of steps that are not committed but whose noise has been looked at: it must be drawn
            anew. None: no such rows.
    """

    accepted: Tensor
    rejected: Tensor
    x: Tensor
    spent: Tensor | None = None

    @property
    def freshest(self) -> Tensor:
        """(b,) the row whose evaluation is nearest to the new state: the last committed one or the rejected one."""
        return self.accepted + self.rejected


Verifier = Callable[[StepTables, Window, Draft, Tensor, Tensor, Tensor], Outcome]


def verify_steps(tables: StepTables, window: Window, draft: Draft, m: Tensor, xi: Tensor, u: Tensor) -> Outcome:
    """Test step by step with the reflection coupling (ASD, arXiv 2505.03983, Alg. 2 and 3).

    The step of row i is accepted by `accept_reflection`; the first failure is mirrored and ends the round. The last
    row's successor was not drafted into the window, so its step is drawn from the target directly: x = A m + B x +
    sigma xi. The noises after a failure were not looked at and may be kept.
    """
    v = tables.shift[window.steps].unsqueeze(-1) * (draft.m - m)
    accept = accept_reflection(v, xi, u) & window.tested
    a = accept.cumprod(dim=1).sum(dim=1)
    b = torch.arange(a.shape[0], device=a.device)
    rejected = window.tested[b, a]
    z = torch.where(rejected[:, None], reflect(v[b, a], xi[b, a]), xi[b, a])
    return Outcome(accepted=a, rejected=rejected, x=_target(tables, window, draft, m, a, z))


def verify_block(tables: StepTables, window: Window, draft: Draft, m: Tensor, xi: Tensor, u: Tensor) -> Outcome:
    """Test a window as a block (arXiv 2606.13426): with r_i the likelihood ratio of drafted step i, d_i = |v_i|,

        P_0 = 1,  P_i = min(1, P_{i-1} r_i),   N_i = P_i SF(th - d_{i+1}) - SF(th)  (`residual_mass`)
        h_i = N_i / (N_i + 1 - P_i),  h_L = P_L,   tau = max{i : U_i <= h_i} over all i

    tau = L commits the block and one step from the target; else tau steps and one drawn from the residual at parent tau
    (`residual_step`). P is a reflected random walk, ln P_i = S_i - max(0, S_1, ..., S_i) with S the sums of ln r: no
    scan. U_i, i >= 1, is the uniform of drafted step i; that of the last row's own step is not needed by any test and
    draws the residual. All noises of the block have been looked at: those not committed are spent.
    """
    v = tables.shift[window.steps].unsqueeze(-1) * (draft.m - m)
    L = window.sizes - 1
    log_r = torch.where(window.tested, log_ratio(v, xi).double(), 0.0)
    walk = log_r.cumsum(dim=1)
    log_p = walk - walk.cummax(dim=1).values.clamp(min=0.0)  # (b, N): P after row i's step
    log_p = torch.cat([torch.zeros_like(log_p[:, :1]), log_p], dim=1)  # P_0 ... P_N
    d = torch.linalg.vector_norm(v, dim=-1).double()
    N = residual_mass(log_p[:, :-1], d)
    h = N / (N - log_p[:, :-1].expm1()).clamp(min=1e-300)
    i, b = torch.arange(h.shape[1], device=h.device), torch.arange(h.shape[0], device=h.device)
    h = torch.where(i == L[:, None], log_p[:, :-1].exp(), h)
    before = torch.cat([torch.zeros_like(u[:, :1]), u[:, :-1]], dim=1).double()  # U_i is the draw of row i - 1
    passed = (before <= torch.where(log_p[:, :-1] == 0, 1.0, h)) & window.valid
    tau = torch.where(passed, i, 0).max(dim=1).values
    rejected = tau < L
    residual = residual_step(v[b, tau], xi[b, tau], log_p[b, tau], u[b, L.clamp(min=0)])
    z = torch.where(rejected[:, None], residual, xi[b, tau])
    x = _target(tables, window, draft, m, tau, z)
    return Outcome(accepted=tau, rejected=rejected, x=x, spent=window.valid & (i > tau[:, None]))


VERIFIERS: dict[str, Verifier] = {"steps": verify_steps, "block": verify_block}
"""Verifiers by name."""


def _target(tables: StepTables, window: Window, draft: Draft, m: Tensor, row: Tensor, z: Tensor) -> Tensor:
    """(b, D) A m + B x + sigma z at one row of each chain."""
    b = torch.arange(row.shape[0], device=row.device)
    k = window.steps[b, row]
    A, B, sigma = (table[k].unsqueeze(-1) for table in (tables.A, tables.B, tables.sigma))
    return A * m[b, row] + B * draft.x[b, row] + sigma * z
