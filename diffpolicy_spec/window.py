"""The rows of one round: which steps of which chains, and the states drafted for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .schedule import StepTables

__all__ = ["DEFAULT_WINDOW", "Draft", "Response", "Turn", "Window", "WindowSize", "make_window", "widths_to",
           "window_sizes"]  # fmt: skip

DEFAULT_WINDOW = 32
"""Rows of a round where nothing else is asked for."""

WindowSize = int | str | Sequence[int] | Tensor
"""Rows of a round: a number, one for each of the K steps, or "all" (ASD's infinite speculation length)."""


@dataclass(frozen=True)
class Turn:
    """What the host knows of a round before it runs.

    Attributes:
        chain: (b,) long, the chains that take part, each once.
        rows: of a chain at most.
        low, high: every row that counts is a step in low ... high - 1; None: not known, any.
        padded: whether a chain may have fewer rows than `rows`, or none.
        dense: evaluate padding, too: no shape depends on what the device knows.
        opening: the first so many of `chain` are in their first round, the others are not.
    """

    chain: Tensor
    rows: int
    low: int | None = None
    high: int | None = None
    padded: bool = True
    dense: bool = True
    opening: int = 0


@dataclass(frozen=True)
class Window:
    """Rows of b chains, N at most; row i of a chain is the state before step start + i.

    Attributes:
        turn: what the host knows.
        start: (b,) long, the committed step, held at K - 1.
        sizes: (b,) long, rows of each chain, 1 ... N; 0 for chains that are done.
        steps: (b, N) long, start + i, held at K - 1 beyond the last step.
        valid: (b, N) bool, i < sizes; the other rows are padding: whatever is computed there is not used.
        tested: (b, N) bool, i < sizes - 1: rows whose step leads to a drafted row.
    """

    turn: Turn
    start: Tensor
    sizes: Tensor
    steps: Tensor
    valid: Tensor
    tested: Tensor

    @property
    def chain(self) -> Tensor:
        """(b,) long, index of each chain in the sampler's batch."""
        return self.turn.chain

    def of(self, chains: slice) -> Window:
        """That of some of its chains."""
        if chains == slice(0, len(self.start)):
            return self
        turn = replace(self.turn, chain=self.chain[chains], low=None, high=None)  # theirs are others
        parts = (self.start, self.sizes, self.steps, self.valid, self.tested)
        return Window(turn, *(part[chains] for part in parts))

    def slots(self, bin: int) -> Tensor:
        """(b, N) long, `steps`, and `bin` for padding: where to write what must not be written twice."""
        return torch.where(self.valid, self.steps, bin) if self.turn.padded else self.steps


@dataclass(frozen=True)
class Draft:
    """m: (b, N, D) draft of each row's x0; x: (b, N, D) drafted states, x[:, 0] the committed one."""

    m: Tensor
    x: Tensor


def make_window(turn: Turn, start: Tensor, sizes: Tensor, num_steps: int) -> Window:
    """Window of `sizes` rows, at most turn.rows, from `start`: (b,) each; none of them beyond the last step."""
    i = torch.arange(turn.rows, device=start.device)
    start = start.clamp(max=num_steps - 1)
    steps = start[:, None] + i
    return Window(
        turn=turn, start=start, sizes=sizes, steps=steps.clamp_(max=num_steps - 1) if turn.padded else steps,
        valid=i < sizes[:, None], tested=i < sizes[:, None] - 1,
    )  # fmt: skip


def widths_to(widest: int) -> list[int]:
    """A few sizes that windows of at most `widest` rows are padded to: 1, 8, 16, 32, ... and the widest."""
    return [n for n in (1, 8, 16, 32, 64, 128, 256, 512) if n < widest] + [widest]


class Response:
    """States of a window as a linear function of the draft of x0: no scan over its rows.

        x_j = decay[j, k] x_k + sum_{k <= i < j} response[j, i] (A_i m_i + sigma_i xi_i)

    Everything but the term in m is computed once a round.
    """

    def __init__(self, tables: StepTables, window: Window, x: Tensor, xi: Tensor) -> None:
        """x: (b, D) committed states; xi: (b, N, D) the noise of each row's step."""
        steps = window.steps
        low = window.turn.low
        if steps.shape[0] == 1 and low is not None:  # one chain: the tables' block is a view
            rows = slice(low, low + steps.shape[1])
            response = tables.response[rows, rows].unsqueeze(0)
            A, sigma = tables.A[rows].unsqueeze(0), tables.sigma[rows].unsqueeze(0)
        else:
            response = tables.response[steps[:, :, None], steps[:, None, :]]
            A, sigma = tables.A[steps], tables.sigma[steps]
        decay = tables.decay[steps, window.start[:, None]]
        self._to_m = response * A.unsqueeze(1)
        self._base = torch.baddbmm(decay.unsqueeze(-1) * x.unsqueeze(1), response * sigma.unsqueeze(1), xi)

    def states(self, m: Tensor, of: slice = slice(None)) -> Tensor:
        """(b, N, D) drafted states for the draft m: (b, N, D), of some of the chains."""
        return torch.baddbmm(self._base[of], self._to_m[of], m)


def window_sizes(window: WindowSize, num_steps: int, device: torch.device | str) -> Tensor:
    """(K,) long: rows of a round that starts at step k, from a number, one number per step, or "all".

    Raises:
        ValueError: not a whole number, a number below 1, or not one per step.
    """
    if isinstance(window, str):
        if window != "all":
            raise ValueError(f'window must be a whole number, one for each step, or "all", got {window!r}')
        window = num_steps
    given = window.tolist() if isinstance(window, Tensor) else window
    numbers = [given] if isinstance(given, int | float | str) else list(given)
    if any(isinstance(n, bool | str) or int(n) != n for n in numbers):
        raise ValueError(f"window must be a whole number or one for each step, got {window!r}")
    sizes = torch.as_tensor(window, dtype=torch.long, device=device)
    if sizes.dim() == 0:
        sizes = sizes.expand(num_steps)
    if tuple(sizes.shape) != (num_steps,):
        raise ValueError(f"window must be a number or one number for each of {num_steps} steps, got {len(sizes)}")
    if int(sizes.min()) < 1:
        raise ValueError(f"window must be at least 1, got {int(sizes.min())}")
    return sizes
