"""What a drafter is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from diffpolicy_spec.schedule import StepTables
from diffpolicy_spec.verification import Outcome
from diffpolicy_spec.window import Draft, Window

__all__ = ["Drafter", "Running", "SmallNetwork"]

# small(window, x: (b, n, D), steps: (b, n)) -> (b, n, D): the draft network's x0 at n states of each chain of a window.
SmallNetwork = Callable[[Window, Tensor, Tensor], Tensor]


class Running(Protocol):
    """A drafter at work on one batch of chains.

    It keeps what it remembers in tensors that stay where they are; `draft` and `observe` are device operations only.
    """

    def begin(self, prior: Tensor, chain: Tensor) -> None:
        """Forget everything about chains: (b,); prior: (b, D) is an x0 to draft their first round with."""

    def sizes(self, chain: Tensor, wanted: Tensor) -> Tensor:
        """(b,) rows of the next round of the chains, at most `wanted`; committed history may decide."""

    def draft(self, window: Window, x: Tensor, xi: Tensor) -> Draft:
        """Draft from committed states x: (b, D); xi: (b, N, D) is the noise of each row's step."""

    def observe(self, window: Window, draft: Draft, m: Tensor, outcome: Outcome) -> None:
        """Learn the network's x0, m: (b, N, D), at the drafted states, and what was committed."""


class Drafter(Protocol):
    """A way to draft."""

    def start(self, tables: StepTables, prior: Tensor, small: SmallNetwork | None) -> Running:
        """Make room for B chains and begin them all; prior: (B, D) as in `Running.begin`, small: the draft network.

        Raises:
            ValueError: what it needs is missing or does not fit.
        """
