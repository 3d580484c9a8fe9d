"""Chains under way: the state every sampler keeps, and the one loop that runs them.

A sampler is a `Chains` with a `round`. A round is device operations only: it reads and writes tensors that stay where
they are, waits for nothing, and has the shapes its `Turn` says. So the same round runs eagerly, with the shapes that
the chains need just now (`run`), and captured, with shapes fixed beforehand (`diffpolicy_spec.runtime`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from .deadline import Deadline, Watch
from .finish import finish
from .inpainting import Inpainting
from .networks import Networks
from .noise import Generator, Noise
from .stats import Sample, SampleStats, TimeSplit
from .window import Turn

__all__ = ["Chains", "finish_now", "go_round", "run", "turn_of"]


class Chains(ABC):
    """B chains of K steps: `begin` fills in their noise, `round` moves them forwards until all stand at step K.

    Attributes:
        x: (B, D) committed states.
        k: (B,) long, committed steps.
        rows: (B,) long, rows of each chain's next round; 0 for chains that are done.
        calls: (B,) long, rounds each chain took part in.
        log: (B, K + 1, 4) long: first step, rows, accepted, rejected of each chain's rounds; the last one is a bin for
            what is not a round.
        finished_at: (B,) long, where `finish` took over; K where it did not.
        flags: (2,) long, what `note` found: rows of any chain's next round at most; chains that broke so far.
        drafts: whether rounds draft anything.
        draws: whether `prepare` draws anything.
        lockstep: whether every chain goes one step forward each round: chains that begin together have K rounds of one
            row, and nobody needs to look where they are.
        narrows: whether rounds may have fewer rows than `rows` says without changing what is sampled.
    """

    drafts = True
    draws = False
    lockstep = False
    narrows = False

    def __init__(self, networks: Networks) -> None:
        self.networks, self.schedule = networks, networks.schedule
        (B, Tp, Da), K, device = networks.shape, networks.schedule.num_steps, networks.device
        self.tables = networks.schedule.on(device)
        self.x = torch.zeros(B, Tp * Da, device=device)
        self.k, self.rows, self.calls = (torch.zeros(B, dtype=torch.long, device=device) for _ in range(3))
        self.log = torch.zeros(B, K + 1, 4, dtype=torch.long, device=device)
        self.finished_at = torch.full_like(self.k, K)
        self.flags = torch.zeros(2, dtype=torch.long, device=device)
        self.everyone = torch.arange(B, device=device)

    @abstractmethod
    def round(self, turn: Turn) -> None:
        """One round of the turn's chains."""

    def sizes(self, chain: Tensor, k: Tensor) -> Tensor:
        """(b,) rows of the next round of chains that stand at steps k: (b,), all before the end."""
        return torch.ones_like(k)

    def widths(self) -> list[int]:
        """Rows that rounds of a fixed shape should have, ascending; the last holds any round."""
        return [1]

    def begin(
        self, noise: Noise, *, generator: Generator = None, warm_start: Tensor | None = None,
        inpaint: Inpainting | None = None, live: int | None = None, chain: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Start chains with this noise.

        Args:
            noise: of all B chains, or of those in `chain`, complete.
            generator: of what is drawn on the way.
            warm_start: (B, Tp, Da) x0 to draft the first round with; None for none.
            inpaint: known coordinates, where the chains were made with some.
            live: the first so many chains are run; None: all.
            chain: (b,) long, these chains begin, the others go on as if nothing had happened. Warm start and inpainting
                are theirs, and each has a generator. None: all.
        """
        to: Tensor | slice = slice(None) if chain is None else chain
        self.networks.begin(inpaint, chain)
        self.x[to] = noise.start.flatten(1)
        self.calls[to] = 0
        self.log[to] = 0
        self.finished_at[to] = self.schedule.num_steps
        self.load(noise, generator, warm_start, chain)
        if chain is not None:
            self.stand(chain, torch.zeros_like(chain))
            return
        if self.lockstep:  # all is known
            self.calls.fill_(self.schedule.num_steps)
            self.log[:, :-1, 0], self.log[:, :-1, 1] = torch.arange(self.schedule.num_steps, device=self.x.device), 1
        k = torch.zeros_like(self.k)
        if live is not None:
            k[live:] = self.schedule.num_steps
        self.stand(self.everyone, k)

    @abstractmethod
    def load(
        self, noise: Noise, generator: Generator, warm_start: Tensor | None, chain: Tensor | None
    ) -> None:  # fmt: skip
        """Take in the noise and what else a sampler keeps beside `Chains`' own state; `begin` calls it."""

    def prepare(self, turn: Turn) -> None:  # noqa: B027
        """Draw what a round may need beside its chains' noise. Not a part of the round: graphs must not draw."""

    def advance(self, chain: Tensor, at: Tensor, rows: Tensor, accepted: Tensor, rejected: Tensor) -> None:
        """Commit accepted + 1 steps of chains that stood at `at` and had `rows`, (b,) each; rows = 0: they are done."""
        live = self.record(chain, at, rows, accepted, rejected)
        self.stand(chain, at + live * (accepted + 1))
        self.networks.clock.lap("verify")

    def record(self, chain: Tensor, at: Tensor, rows: Tensor, accepted: Tensor, rejected: Tensor) -> Tensor:
        """Count a call, arguments as in `advance`; (b,) bool, chains that took part."""
        live, count = rows > 0, self.calls[chain]
        slot = torch.where(live, count, self.log.shape[1] - 1)
        self.log[chain, slot] = torch.stack([at, rows, accepted, rejected.long()], dim=1)
        self.calls[chain] = count + live
        return live

    def halt(self, k: int) -> None:
        """Chains in lockstep stand at step k: what `begin` noted of the steps from there on is not to be."""
        self.k.copy_(torch.where(self.k < self.schedule.num_steps, k, self.k))
        self.calls.clamp_(max=k)
        self.log[:, k:] = 0

    def stand(self, chain: Tensor, k: Tensor) -> None:
        """Chains stand at steps k: (b,) now."""
        K = self.schedule.num_steps
        self.k[chain] = k
        self.rows[chain] = torch.where(k < K, self.sizes(chain, k.clamp(max=K - 1)), 0)

    def note(self) -> None:
        """Put into `flags` what the host must know to go on."""
        self.flags.copy_(torch.stack([self.rows.max(), self.networks.broken]))

    def sample(self, chains: int | Tensor | None = None) -> Sample:
        """The samples of the first so many chains, or of these: (b,) long, all done, and what they cost.

        Raises:
            FloatingPointError: the network returned NaN or infinite values for one of them.
        """
        which = chains if isinstance(chains, Tensor) else slice(chains)
        time = self.networks.clock.split()
        if not self.drafts:
            time = TimeSplit(time.total, time.network)
        self.networks.check(which)
        x0 = self.x.clone().view(self.networks.shape)
        x0 = x0 if self.networks.inpaint is None else self.networks.inpaint.show(x0)
        return Sample(x0=x0[which], stats=self._stats(time, which))

    def _stats(self, time: TimeSplit, live: slice | Tensor) -> SampleStats:
        calls, K = self.calls[live], self.schedule.num_steps
        start, rows, accepted, rejected = self.log[live, :K].unbind(-1)  # (B, K), one column for each round
        took_part = rows > 0

        def counts(at: Tensor, of: Tensor) -> Tensor:
            """(B, K + 1): how often each value of `at` occurs, weighted."""
            return torch.zeros_like(self.log[live, :, 0]).scatter_add_(1, at, of.long())

        # Accepted steps are start ... start + accepted - 1: mark both ends and add up.
        accepted_at = (counts(start, took_part) - counts(start + accepted, took_part)).cumsum(1)[:, :K]
        return SampleStats(
            timesteps=self.schedule.timesteps.clone(), calls=calls.clone(), evaluations=rows.sum(1),
            drafted=(rows.sum(1) - calls) * self.drafts, accepted=accepted.sum(1), rejected=rejected.sum(1),
            draft_calls=self.networks.draft_calls[live].clone(),
            accepted_lengths=counts(accepted, took_part & self.drafts), accepted_at=accepted_at,
            tested_at=accepted_at + counts(start + accepted, rejected)[:, :K], time=time,
            finished_at=self.finished_at[live].clone(),
        )  # fmt: skip


def run(chains: Chains, deadline: Deadline | None = None) -> Sample:
    """The loop: rounds of the chains that are not done yet, as wide as they need, until none is left.

    deadline: chains that would miss it are finished by a few DDIM steps, see `finish`. None: however long it takes.

    Raises:
        FloatingPointError: the network returned NaN or infinite values.
    """
    go_round(chains, None if deadline is None else Watch(deadline, chains.x.device))
    return chains.sample()


def go_round(chains: Chains, watch: Watch | None) -> None:
    """Rounds until all chains stand at their end, however they get there."""
    chains.networks.clock.lap("draft")
    turn = _opening(chains) if chains.lockstep else _next(chains, opening=True)
    while turn is not None:
        if watch is not None and turn.low is not None:
            key = "opening" if turn.opening and not chains.lockstep else "round"
            if watch.late(chains.schedule.num_steps - turn.low, key):
                finish_now(chains, watch, turn.low)
                return
        chains.prepare(turn)
        chains.round(turn)
        turn = _one_further(chains, turn) if chains.lockstep else _next(chains)


def finish_now(chains: Chains, watch: Watch, low: int) -> None:
    """Finish all chains that are not done; low: the step of the one that is farthest behind."""
    since = watch.now()
    if chains.lockstep:
        chains.halt(low)
    # All of them, those that are done idle: the shape of the calls is that of the rounds'.
    calls = finish(chains, chains.everyone, watch.finish_steps)
    watch.finished(since, calls)


def _next(chains: Chains, opening: bool = False) -> Turn | None:
    """The host's one look at the device: who is where, and how many rows come next."""
    B, read = len(chains.k), torch.cat([chains.k, chains.rows, chains.networks.broken.view(1)]).tolist()
    chains.networks.clock.lap("sync")
    if read[-1]:
        chains.networks.check()
    k, rows = read[:B], read[B:-1]
    live = [b for b in range(B) if rows[b]]
    return turn_of(chains, live, k, rows, opening=len(live) if opening else 0) if live else None


def turn_of(chains: Chains, live: list[int], k: Sequence[int], rows: Sequence[int], *, opening: int = 0) -> Turn:
    """A round of the chains `live`, of which the first `opening` are in their first round.

    k, rows: of all B chains.
    """
    chain = chains.everyone
    if live != list(range(len(k))):
        chain = torch.tensor(live, device=chain.device)
    widest = max(rows[b] for b in live)
    return Turn(
        chain, widest, min(k[b] for b in live), max(k[b] + rows[b] for b in live),
        padded=any(rows[b] < widest for b in live), dense=False, opening=opening,
    )  # fmt: skip


def _opening(chains: Chains) -> Turn:
    return Turn(chains.everyone, 1, 0, 1, padded=False, opening=len(chains.everyone))


def _one_further(chains: Chains, turn: Turn) -> Turn | None:
    assert turn.high is not None
    if turn.high == chains.schedule.num_steps:
        return None
    return Turn(turn.chain, 1, turn.high, turn.high + 1, padded=False)
