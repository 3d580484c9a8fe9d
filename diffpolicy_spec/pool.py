"""A pool: chains of one sampler that begin and end one by one, and share every network call while they are under way.

Each chain has a slot. A round takes the chains under way, wherever they stand, through one call; slots without a chain
cost nothing. A chain's path is what it would be alone, but for the rounding of another batch's arithmetic and, where
rows are shared out (`Share`), for the number of rows its rounds have: that moves the path and not the law.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from .chains import Chains, turn_of
from .inpainting import Inpainting
from .networks import Networks
from .noise import Noise
from .sampling import prepare_noise
from .stats import Sample
from .window import Turn

__all__ = ["Pool", "Share"]


class Share(Protocol):
    """How many rows each chain of a round has.

    It may depend on where the chains stand, on what was committed before, and on what calls cost. It must not depend on
    a chain's noise beyond the steps it has committed: then every choice is exact.
    """

    def __call__(self, at: Sequence[int], most: Sequence[int]) -> Sequence[int]:
        """Rows of chains that stand at steps `at`: at least 1, and at most what their sampler's window says."""

    def saw(self, at: Sequence[int], rows: Sequence[int], committed: Sequence[int]) -> None:
        """A round is over: chains stood at `at`, had so many rows, and went so many steps forward."""


class Pool:
    """Slots for chains.

    A slot is empty, under way, or through: at its end or broken, its result being kept until it `leave`s.

    Args:
        make: the sampler's chains for given networks, such as `BoundSampler.chains`.
        networks: of as many chains as there are slots; memory is taken for all of them.
        share: shares out the rows of a call, where the sampler lets it (`Chains.narrows`); None: each chain has the
            rows its sampler's window says.

    Attributes:
        share: as given; it may be replaced between rounds.
        evaluated: rows of the last call.
    """

    def __init__(self, make: Callable[[Networks], Chains], networks: Networks, share: Share | None = None) -> None:
        self.chains, self._networks = make(networks), networks
        self.share, self.evaluated = share, 0
        self._empty = list(range(networks.shape[0]))
        self._opening: list[int] = []
        self._live: list[int] = []
        self._calls, self._company = [0] * len(self._empty), [0] * len(self._empty)
        self._at = self._rows = self._failed = [0] * len(self._empty)

    @property
    def free(self) -> int:
        """Empty slots."""
        return len(self._empty)

    @property
    def under_way(self) -> list[int]:
        """Slots of the chains that the next round takes part of, those in their first round first."""
        return self._opening + self._live

    def at(self, slot: int) -> int:
        """The step a chain stands at."""
        return self._at[slot]

    def broken(self, slot: int) -> bool:
        """Whether the network has returned NaN or infinite values for this chain."""
        return self._failed[slot] < self.chains.schedule.num_steps

    def shared(self, slot: int) -> float:
        """Mean number of chains in the calls this chain took part in; NaN before the first one."""
        return self._company[slot] / self._calls[slot] if self._calls[slot] else float("nan")

    @torch.no_grad()
    def join(
        self,
        noise: Noise,
        generator: Sequence[torch.Generator],
        *,
        warm_start: torch.Tensor | None = None,
        inpaint: Inpainting | None = None,
    ) -> list[int]:
        """Begin n chains; whatever the networks are to know of them must be there before the next round.

        Args:
            noise: of n chains.
            generator: n of them, of what is drawn on the way.
            warm_start, inpaint: (n, Tp, Da), as in `sample_speculative`; a mask of False is no inpainting.

        Returns:
            their n slots.

        Raises:
            ValueError: more chains than free slots, or noise or inpainting that does not fit.
        """
        noise = prepare_noise(noise, self.chains.schedule, None, inpaint)
        n = len(noise.start)
        if n > len(self._empty):
            raise ValueError(f"{n} chains want to begin and {len(self._empty)} of {len(self._at)} slots are free")
        if tuple(noise.start.shape[1:]) != self._networks.shape[1:] or len(generator) != n:
            raise ValueError(
                f"chains of this pool are (Tp, Da) = {self._networks.shape[1:]} with a generator each, got "
                f"{tuple(noise.start.shape[1:])} and {len(generator)} generators for {n}"
            )
        slots = [heapq.heappop(self._empty) for _ in range(n)]
        self.chains.begin(
            noise, generator=generator, warm_start=warm_start, inpaint=inpaint,
            chain=torch.tensor(slots, device=self.chains.x.device),
        )  # fmt: skip
        for slot in slots:
            self._calls[slot] = self._company[slot] = 0
        self._opening += slots
        self._look()
        return slots

    @torch.no_grad()
    def round(self) -> list[int]:
        """One round of all chains under way; slots of those that are through after it.

        A network that raises leaves the chains where they were, the round half done: let them leave.
        """
        slots, chains = self.under_way, self.chains
        if not slots:
            return []
        chains.networks.clock.start()
        at = [self._at[slot] for slot in slots]
        turn = self._turn(slots, at)
        chains.prepare(turn)
        chains.round(turn)
        for slot in slots:
            self._calls[slot] += 1
            self._company[slot] += len(slots)
        rows = [self._rows[slot] for slot in slots]
        self.evaluated = sum(rows)
        self._live, self._opening = slots, []
        self._look()
        if self.share is not None:
            sound = [i for i, slot in enumerate(slots) if not self.broken(slot)]
            self.share.saw(
                [at[i] for i in sound], [rows[i] for i in sound], [self._at[slots[i]] - at[i] for i in sound]
            )
        return self._settle()

    def finished(self, slots: Sequence[int]) -> None:
        """Chains were brought to their end from outside (`finish`): they are through."""
        self._look()
        gone = set(slots)
        self._live = [slot for slot in self._live if slot not in gone]
        self._opening = [slot for slot in self._opening if slot not in gone]

    def sample(self, slots: Sequence[int]) -> Sample:
        """What chains that are through have drawn.

        Raises:
            FloatingPointError: one of them is broken.
        """
        return self.chains.sample(torch.tensor(list(slots), device=self.chains.x.device))

    def leave(self, slots: Sequence[int]) -> None:
        """Empty slots, wherever their chains stand."""
        gone = set(slots)
        self._live = [slot for slot in self._live if slot not in gone]
        self._opening = [slot for slot in self._opening if slot not in gone]
        for slot in gone.difference(self._empty):
            heapq.heappush(self._empty, slot)

    def _turn(self, slots: list[int], at: list[int]) -> Turn:
        chains = self.chains
        if chains.lockstep:  # each at a step of its own here
            return Turn(
                torch.tensor(slots, device=chains.x.device), 1, padded=False, dense=False, opening=len(self._opening)
            )
        if self.share is not None and chains.narrows:
            rows = list(self.share(at, [self._rows[slot] for slot in slots]))
            self._rows = list(self._rows)
            for slot, n in zip(slots, rows, strict=True):
                self._rows[slot] = n
            chains.rows.copy_(torch.tensor(self._rows))
        return turn_of(chains, slots, self._at, self._rows, opening=len(self._opening))

    def _look(self) -> None:
        """The host's one look at the device."""
        chains = self.chains
        read = torch.stack([chains.k, chains.rows, chains.networks.failed]).tolist()
        self._at, self._rows, self._failed = read
        chains.networks.clock.lap("sync")

    def _settle(self) -> list[int]:
        through = [slot for slot in self._live if self._rows[slot] == 0 or self.broken(slot)]
        gone = set(through)
        self._live = [slot for slot in self._live if slot not in gone]
        return through
