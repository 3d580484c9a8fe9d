"""Where the drafts of x0 come from. Any draft is exact as long as it does not depend on its own step's noise.

A drafter is a frozen description (`Parent`, `Nearest`, `Picard`); `start` makes the state it keeps during one call of
the sampler: what it remembers of network outputs already paid for. Row i of a window is drafted from the noises of
earlier steps only, also where it re-uses outputs at states that were discarded: those depend on earlier noises, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .gains import Gains
from .schedule import StepTables
from .verification import Outcome
from .window import Draft, Response, Window

__all__ = ["Drafter", "Nearest", "Parent", "Picard", "Running"]


class Running(Protocol):
    """A drafter at work on one batch of chains."""

    def sizes(self, chain: Tensor, wanted: Tensor) -> Tensor:
        """(b,) rows of the next round of the chains, at most `wanted`; committed history may decide."""

    def draft(self, window: Window, x: Tensor, xi: Tensor) -> Draft:
        """Draft from committed states x: (b, D); xi: (b, N, D) is the noise of each row's step."""

    def observe(self, window: Window, draft: Draft, m: Tensor, outcome: Outcome) -> None:
        """Learn the network's x0, m: (b, N, D), at the drafted states, and what was committed."""


class Drafter(Protocol):
    """A way to draft."""

    def start(self, tables: StepTables, start: Tensor, prior: Tensor) -> Running:
        """Begin B chains at start: (B, D); prior: (B, D) is an x0 to draft the first round with."""


@dataclass(frozen=True)
class Nearest:
    """Every row drafts the freshest x0 there is, in one call a round (fused; the Free Drafter's family).

    That is the last accepted row's, or after a rejection the rejected state's, which is at the same step.
    """

    def start(self, tables: StepTables, start: Tensor, prior: Tensor) -> Running:
        return _Frozen(tables, prior, reopen=False)


@dataclass(frozen=True)
class Parent:
    """ASD as published (arXiv 2505.03983, Alg. 1): every row drafts x0 at the round's first state.

    That x0 costs a call of its own, one row, unless the round before was accepted whole: then the leaf was evaluated
    with it and is re-used.
    """

    def start(self, tables: StepTables, start: Tensor, prior: Tensor) -> Running:
        return _Frozen(tables, prior, reopen=True)


@dataclass(frozen=True)
class Picard:
    """Each row drafts its own x0 of the round before: Picard iteration over the whole chain, the noise kept.

    The correction to the state the row has now, dx = x - x_of_that_evaluation, is optional:

        m = m_newest + Y' c + G (dx - S' c),   c = (S S' + ridge tr(S S') / h I)^-1 S dx

    S: differences of up to h = `memory` older states of that step against the newest, Y those of their x0 (a least-
    squares secant); G: a calibrated gain. Rows never evaluated take their neighbour's m, plus G sigma xi of the last
    step. The corrections are evaluated at the states of a draft made without them, then drafted again, `sweeps` times.
    The first round drafts from the prior plan around its mean states, x = sqrt(abar) m.

    Attributes:
        memory: h, older evaluations kept per step; 0 for none.
        gains: calibrated gains; None for none.
        ridge: relative regularisation of the secant.
        sweeps: corrections a round.
    """

    memory: int = 3
    gains: Gains | None = None
    ridge: float = 0.03
    sweeps: int = 2

    def __post_init__(self) -> None:
        if self.memory < 0 or self.sweeps < 1 or not self.ridge > 0:
            raise ValueError(
                f"Picard needs memory >= 0, sweeps >= 1 and ridge > 0, got memory={self.memory}, "
                f"sweeps={self.sweeps}, ridge={self.ridge}"
            )

    def start(self, tables: StepTables, start: Tensor, prior: Tensor) -> Running:
        if self.gains is not None:
            self.gains.check(tables, start.shape[1])
        return _PicardTable(self, tables, prior)


class _Frozen:
    """One x0 per chain, drafted for every row (`Nearest`, `Parent`)."""

    def __init__(self, tables: StepTables, prior: Tensor, *, reopen: bool) -> None:
        self._tables, self._m, self._reopen = tables, prior.clone(), reopen
        self._stale = torch.ones(prior.shape[0], dtype=torch.bool, device=prior.device)

    def sizes(self, chain: Tensor, wanted: Tensor) -> Tensor:
        return torch.where(self._stale[chain], 1, wanted) if self._reopen else wanted

    def draft(self, window: Window, x: Tensor, xi: Tensor) -> Draft:
        m = self._m[window.chain].unsqueeze(1).expand(-1, window.steps.shape[1], -1)
        return Draft(m=m, x=Response(self._tables, window, x, xi).states(m))

    def observe(self, window: Window, draft: Draft, m: Tensor, outcome: Outcome) -> None:
        freshest = outcome.accepted + outcome.rejected
        self._m[window.chain] = m[torch.arange(m.shape[0], device=m.device), freshest]
        self._stale[window.chain] = outcome.rejected


class _PicardTable:
    """The last evaluations, pairs (x, m), of every step of every chain, in rings of `memory` + 1 slots."""

    def __init__(self, options: Picard, tables: StepTables, prior: Tensor) -> None:
        self._options, self._tables = options, tables
        (B, D), K, self._slots = prior.shape, tables.sigma.shape[0], options.memory + 1
        self._seen = prior.new_zeros(B, K, self._slots, 2, D)
        # The prior stands in for an evaluation of every step until the first round has been seen.
        self._seen[:, :, 0, 0] = tables.abar.sqrt()[:, None] * prior[:, None]
        self._seen[:, :, 0, 1] = prior[:, None]
        self._count = torch.ones(B, K, dtype=torch.long, device=prior.device)
        self._frontier = torch.full((B,), K, dtype=torch.long, device=prior.device)
        self._older = torch.arange(2, self._slots + 1, device=prior.device)
        self._first = True

    def sizes(self, chain: Tensor, wanted: Tensor) -> Tensor:
        return wanted

    def draft(self, window: Window, x: Tensor, xi: Tensor) -> Draft:
        response = Response(self._tables, window, x, xi)
        chain, frontier = window.chain[:, None], self._frontier[window.chain, None]
        source = torch.minimum(window.steps, frontier - 1)  # rows never evaluated: their neighbour's
        count = self._count[chain, source]
        newest = self._seen[chain, source, (count - 1) % self._slots]
        x0, m0 = newest.unbind(2)
        gains, secant = self._options.gains, None
        if self._options.memory:
            slot = (count.unsqueeze(-1) - self._older) % self._slots
            older = self._seen[chain.unsqueeze(-1), source.unsqueeze(-1), slot]
            used = count.unsqueeze(-1) >= self._older
            secant = _Secant(older - newest.unsqueeze(2), used, self._options.ridge)
        if gains is None and secant is None:
            return Draft(m=m0, x=response.states(m0))

        own = (window.steps < frontier).unsqueeze(-1)
        carried = (window.steps >= frontier - 1).unsqueeze(-1)
        innovation = self._innovations(window, x, xi, x0[:, 0], m0[:, 0]) if gains is not None else None
        m = m0
        for _ in range(self._options.sweeps):
            dx = (response.states(m) - x0) * own
            correction, rest = secant.predict(dx) if secant is not None else (torch.zeros_like(dx), dx)
            if gains is not None and innovation is not None:
                correction = correction + gains.apply(window, torch.where(own, rest, innovation))
            m = m0 + torch.where(own, correction, (correction * carried).cumsum(dim=1))
        return Draft(m=m, x=response.states(m))

    def _innovations(self, window: Window, x: Tensor, xi: Tensor, x0: Tensor, m0: Tensor) -> Tensor:
        """(b, N, D) sigma xi of the step that led to each row; x0, m0: (b, D) the source of the first row.

        The first row's step is committed. The innovation is read only where the row before it was that step's
        evaluation, so it is what the new state has beyond its mean A m + B x.
        """
        before = (window.start - 1).clamp(min=0)
        A, B = self._tables.A[before].unsqueeze(-1), self._tables.B[before].unsqueeze(-1)
        drafted = self._tables.sigma[window.steps[:, :-1]].unsqueeze(-1) * xi[:, :-1]
        return torch.cat([(x - A * m0 - B * x0).unsqueeze(1), drafted], dim=1)

    def observe(self, window: Window, draft: Draft, m: Tensor, outcome: Outcome) -> None:
        if self._first:  # all chains start together: forget the prior
            self._count.zero_()
            self._frontier.zero_()
            self._first = False
        chain, steps, seen = window.chain[:, None].expand_as(window.steps), window.steps, torch.stack([draft.x, m], 2)
        if not window.full:
            chain, steps, seen = chain[window.valid], steps[window.valid], seen[window.valid]
        count = self._count[chain, steps]
        self._seen[chain, steps, count % self._slots] = seen
        self._count[chain, steps] = count + 1
        ends = window.start + window.sizes
        self._frontier[window.chain] = torch.maximum(self._frontier[window.chain], ends)


class _Secant:
    """Least-squares secants through the evaluations of each row's step, and what they leave unexplained."""

    def __init__(self, differences: Tensor, used: Tensor, ridge: float) -> None:
        """differences: (b, N, h, 2, D) older pairs (x, m) minus the newest; used: (b, N, h), which there are."""
        self._differences = torch.where(used[..., None, None], differences, 0.0)
        self._S = self._differences[..., 0, :]
        gram = self._S @ self._S.transpose(-1, -2)
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        # Empty slots are rows of 0 and stay 0 in c; the floor keeps their inverse finite.
        penalty = ridge * diagonal.sum(-1, keepdim=True) / used.sum(-1, keepdim=True).clamp(min=1)
        diagonal += penalty.clamp(min=1e-20)
        self._inverse = 1 / gram if gram.shape[-1] == 1 else torch.linalg.inv(gram)

    def predict(self, dx: Tensor) -> tuple[Tensor, Tensor]:
        """(Y' c, dx - S' c), each (b, N, D)."""
        c = (dx.unsqueeze(2) @ self._S.transpose(-1, -2)) @ self._inverse
        along, dm = (c @ self._differences.flatten(3)).squeeze(2).chunk(2, dim=-1)
        return dm, dx - along
