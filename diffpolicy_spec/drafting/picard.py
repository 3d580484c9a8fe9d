"""Picard drafts: every row drafts its own x0 of the round before, moved along with its state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy_spec.gains import Gains
from diffpolicy_spec.schedule import StepTables
from diffpolicy_spec.verification import Outcome
from diffpolicy_spec.window import Draft, Response, Window

from .model import need_small
from .protocol import SmallNetwork

__all__ = ["Picard"]


@dataclass(frozen=True)
class Picard:
    """Each row drafts its own x0 of the round before: Picard iteration over the whole chain, the noise kept.

    The correction to the state the row has now, dx = x - x_of_that_evaluation, is optional:

        m = m_newest + Y' c + G (dx - S' c),   c = (S S' + ridge tr(S S') / h I)^-1 S dx

    S: differences of up to h = `memory` older states of that step against the newest, Y those of their x0 (a least-
    squares secant); G: a calibrated gain. Rows never evaluated take their neighbour's m, plus G sigma xi of the last
    step. The corrections are evaluated at the states of a draft made without them, then drafted again, `sweeps` times.
    The first round drafts from the prior plan around its mean states, x = sqrt(abar) m.

    With a corrector all of this is done for what the draft network s leaves unexplained, r = m - s(x), in place of m:
    the draft is m = r_newest + s(x) (+ the corrections of r), s a control variate for the network's move from state to
    state. The first round drafts from s alone, with `first_sweeps` sweeps.

    Attributes:
        memory: h, older evaluations kept per step; 0 for none.
        gains: calibrated gains; None for none.
        ridge: relative regularisation of the secant.
        sweeps: corrections a round; with a corrector, calls of the draft network a round less one.
        corrector: whether the draft network corrects the drafts.
        first_sweeps: sweeps of the first round, with a corrector.
    """

    memory: int = 3
    gains: Gains | None = None
    ridge: float = 0.03
    sweeps: int = 2
    corrector: bool = False
    first_sweeps: int = 6

    def __post_init__(self) -> None:
        if self.memory < 0 or min(self.sweeps, self.first_sweeps) < 1 or not self.ridge > 0:
            raise ValueError(
                f"Picard needs memory >= 0, sweeps and first_sweeps >= 1 and ridge > 0, got memory={self.memory}, "
                f"sweeps={self.sweeps}, first_sweeps={self.first_sweeps}, ridge={self.ridge}"
            )

    def start(self, tables: StepTables, prior: Tensor, small: SmallNetwork | None) -> _PicardTable:
        if self.gains is not None:
            self.gains.check(tables, prior.shape[1])
        return _PicardTable(self, tables, prior, need_small(small) if self.corrector else None)


class _PicardTable:
    """The last evaluations, pairs (x, r), of every step of every chain, in rings of `memory` + 1 slots.

    r is what is left of m without the draft network: m itself where there is none.
    """

    def __init__(self, options: Picard, tables: StepTables, prior: Tensor, small: SmallNetwork | None) -> None:
        self._options, self._tables, self._small = options, tables, small
        (B, D), K, self._slots = prior.shape, tables.sigma.shape[0], options.memory + 1
        # One step more than there are: a bin for padding.
        self._seen = prior.new_zeros(B, K + 1, self._slots, 2, D)
        if small is not None:
            self._m = prior.new_zeros(B, K + 1, D)  # newest m: where the sweeps start
        self._count = torch.zeros(B, K + 1, dtype=torch.long, device=prior.device)
        self._frontier = torch.zeros(B, dtype=torch.long, device=prior.device)
        self._fresh = torch.zeros(B, dtype=torch.bool, device=prior.device)  # its first round has not been seen
        self._older = torch.arange(2, self._slots + 1, device=prior.device)
        self.begin(prior, torch.arange(B, device=prior.device))

    def begin(self, prior: Tensor, chain: Tensor) -> None:
        """The prior stands in for an evaluation of every step until the first round has been seen.

        It is in the slot before the first one: evaluations of a step are counted from 0.
        """
        self._seen[chain] = 0.0
        self._seen[chain, :-1, -1, 0] = self._tables.abar.sqrt()[:, None] * prior[:, None]
        if self._small is None:
            self._seen[chain, :-1, -1, 1] = prior[:, None].expand(-1, self._seen.shape[1] - 1, -1)
        else:
            self._m[chain] = prior[:, None].expand(-1, self._m.shape[1], -1)
        self._count[chain] = 0
        self._frontier[chain] = self._count.shape[1] - 1
        self._fresh[chain] = True

    def sizes(self, chain: Tensor, wanted: Tensor) -> Tensor:
        return wanted

    def draft(self, window: Window, x: Tensor, xi: Tensor) -> Draft:
        response, options = Response(self._tables, window, x, xi), self._options
        chain, frontier = window.chain[:, None], self._frontier[window.chain, None]
        source = torch.minimum(window.steps, frontier - 1)  # rows never evaluated: their neighbour's
        count = self._count[chain, source]
        newest = self._seen[chain, source, (count - 1) % self._slots]
        x0, r0 = newest.unbind(2)
        gains, secant = options.gains, None
        opening = window.turn.opening
        if options.memory and opening < len(window.start):  # chains in their first round have none
            slot = (count.unsqueeze(-1) - self._older) % self._slots
            older = self._seen[chain.unsqueeze(-1), source.unsqueeze(-1), slot]
            used = count.unsqueeze(-1) >= self._older
            secant = _Secant(older - newest.unsqueeze(2), used, options.ridge)
        m = r0 if self._small is None else self._m[chain, source]
        if gains is None and secant is None and self._small is None:
            return Draft(m=m, x=response.states(m))

        own = (window.steps < frontier).unsqueeze(-1)
        carried = (window.steps >= frontier - 1).unsqueeze(-1)
        innovation = self._innovations(window, x, xi, x0[:, 0], m[:, 0]) if gains is not None else None
        for of in self._sweeps(window):
            w, states, mine = window.of(of), response.states(m[of], of), own[of]
            dx = (states - x0[of]) * mine
            correction, rest = secant.predict(dx, of) if secant is not None else (torch.zeros_like(dx), dx)
            if gains is not None and innovation is not None:
                correction = correction + gains.apply(w, torch.where(mine, rest, innovation[of]))
            swept = r0[of] + torch.where(mine, correction, (correction * carried[of]).cumsum(dim=1))
            if self._small is not None:
                swept = swept + self._small(w, states, w.steps)
            m = swept if len(swept) == len(m) else torch.cat([m[: of.start], swept, m[of.stop :]])
        return Draft(m=m, x=response.states(m))

    def _sweeps(self, window: Window) -> Iterator[slice]:
        """Which of the window's chains each sweep is of: with a corrector those in their first round, which come first,
        have sweeps of their own number."""
        b, opening, options = len(window.start), window.turn.opening, self._options
        first = options.sweeps if self._small is None else options.first_sweeps
        first, later = first if opening else 0, options.sweeps if opening < b else 0
        for i in range(max(first, later)):
            yield slice(0 if i < first else opening, b if i < later else opening)

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
        chain, slots = window.chain[:, None], window.slots(self._count.shape[1] - 1)
        r = m
        if self._small is not None:
            r = m - self._small(window, draft.x, window.steps)
            self._m[chain, slots] = m
        count = self._count[chain, slots]
        self._seen[chain, slots, count % self._slots] = torch.stack([draft.x, r], 2)
        self._count[chain, slots] = count + 1
        ends, fresh = window.start + window.sizes, self._fresh[window.chain]
        before = self._frontier[window.chain].masked_fill(fresh, 0)  # forget the prior
        self._frontier[window.chain] = torch.maximum(before, ends)
        self._fresh[window.chain] = False


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
        self._inverse = 1 / gram if gram.shape[-1] == 1 else _inverse(gram)

    def predict(self, dx: Tensor, of: slice) -> tuple[Tensor, Tensor]:
        """(Y' c, dx - S' c), each (b, N, D), of some of the chains."""
        c = (dx.unsqueeze(2) @ self._S[of].transpose(-1, -2)) @ self._inverse[of]
        along, dm = (c @ self._differences[of].flatten(3)).squeeze(2).chunk(2, dim=-1)
        return dm, dx - along


def _inverse(gram: Tensor) -> Tensor:
    """Inverses of small positive definite matrices (..., h, h), by Gauss-Jordan without pivoting.

    torch.linalg.inv makes the host wait to learn whether it went well.
    """
    for i in range(gram.shape[-1]):
        row = gram[..., i : i + 1, :] / gram[..., i : i + 1, i : i + 1]
        column = gram[..., :, i : i + 1]
        swept = gram - column * row
        swept[..., :, i] = -column[..., 0] / gram[..., i, i].unsqueeze(-1)
        swept[..., i, :] = row[..., 0, :]
        swept[..., i, i] = 1 / gram[..., i, i]
        gram = swept
    return gram
