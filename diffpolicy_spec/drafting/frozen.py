"""Frozen drafts: what the network said at one state stands for every row of a window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy_spec.schedule import StepTables
from diffpolicy_spec.verification import Outcome
from diffpolicy_spec.window import Draft, Response, Window

from .protocol import SmallNetwork

__all__ = ["FORMS", "Nearest", "Parent"]

FORMS = ("x0", "drift")


@dataclass(frozen=True)
class Parent:
    """Every row drafts what the network says at the round's first state: two calls a round.

    form "x0" is ASD as published (arXiv 2505.03983, Alg. 1): m_i = m at the first state. form "drift" is the frozen
    draft of arXiv 2501.05370 to the letter: the step's mean increment is frozen, x_{i+1} = x_i + b + sigma_i xi_i with
    b = mu(x) - x at the first state.

    The first state costs a call of its own, one row, unless the round before was accepted whole: then the leaf was
    evaluated with it and is re-used.
    """

    form: str = "x0"

    def __post_init__(self) -> None:
        _check_form(self.form)

    def start(self, tables: StepTables, prior: Tensor, small: SmallNetwork | None) -> _Frozen:
        return _Frozen(tables, prior, drift=self.form == "drift", reopen=True)


@dataclass(frozen=True)
class Nearest:
    """Every row drafts from the freshest evaluation there is, in one call a round.

    That is the last accepted row's, or after a rejection the rejected state's, which is at the same step: the re-use of
    verification results in arXiv 2501.05370, and the Free Drafter's family in arXiv 2606.13426. Forms as in `Parent`.
    """

    form: str = "x0"

    def __post_init__(self) -> None:
        _check_form(self.form)

    def start(self, tables: StepTables, prior: Tensor, small: SmallNetwork | None) -> _Frozen:
        return _Frozen(tables, prior, drift=self.form == "drift", reopen=False)


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"a frozen draft has form {' or '.join(FORMS)}, got {form!r}")


class _Frozen:
    """One evaluation per chain, drafted for every row: (x, m) and the step it was made at."""

    def __init__(self, tables: StepTables, prior: Tensor, *, drift: bool, reopen: bool) -> None:
        self._tables, self._drift, self._reopen = tables, drift, reopen
        self._m, self._x = torch.empty_like(prior), torch.empty_like(prior)
        self._at = torch.empty(prior.shape[0], dtype=torch.long, device=prior.device)
        self._stale = torch.empty(prior.shape[0], dtype=torch.bool, device=prior.device)
        self.begin(prior, torch.arange(len(prior), device=prior.device))

    def begin(self, prior: Tensor, chain: Tensor) -> None:
        self._m[chain] = prior
        self._x[chain] = self._tables.abar[0].sqrt() * prior
        self._at[chain] = 0
        self._stale[chain] = True

    def sizes(self, chain: Tensor, wanted: Tensor) -> Tensor:
        return torch.where(self._stale[chain], 1, wanted) if self._reopen else wanted

    def draft(self, window: Window, x: Tensor, xi: Tensor) -> Draft:
        if self._drift:
            return self._frozen_drift(window, x, xi)
        m = self._m[window.chain].unsqueeze(1).expand(-1, window.steps.shape[1], -1)
        return Draft(m=m, x=Response(self._tables, window, x, xi).states(m))

    def _frozen_drift(self, window: Window, x: Tensor, xi: Tensor) -> Draft:
        """x_{i+1} = x_i + b + sigma_i xi_i; the x0 that says the same is m_i = (x_i + b - B_i x_i) / A_i."""
        at = self._at[window.chain]
        A, B = self._tables.A[at].unsqueeze(-1), self._tables.B[at].unsqueeze(-1)
        b = A * self._m[window.chain] + (B - 1) * self._x[window.chain]
        A, B, sigma = (t[window.steps].unsqueeze(-1) for t in (self._tables.A, self._tables.B, self._tables.sigma))
        moved = (b.unsqueeze(1) + sigma * xi).cumsum(dim=1)
        states = x.unsqueeze(1) + torch.cat([torch.zeros_like(moved[:, :1]), moved[:, :-1]], dim=1)
        return Draft(m=(b.unsqueeze(1) + (1 - B) * states) / A, x=states)

    def observe(self, window: Window, draft: Draft, m: Tensor, outcome: Outcome) -> None:
        b, row = torch.arange(m.shape[0], device=m.device), outcome.freshest
        self._m[window.chain] = m[b, row]
        if self._drift:
            self._x[window.chain] = draft.x[b, row]
            self._at[window.chain] = window.steps[b, row]
        if self._reopen:
            self._stale[window.chain] = outcome.rejected
