"""Deadlines of a sampler call: how long rounds take, and when a chain has to be finished to be in time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch

from .finish import DEFAULT_FINISH_STEPS

__all__ = ["Deadline", "Pace", "Watch"]

FINISH = "finish"
"""Key of a finishing call's time in a `Pace`."""


class Pace:
    """How long pieces of work take, by key: of the last so many times, the one that nine of ten did not exceed."""

    _KEPT = 16

    def __init__(self) -> None:
        self._seen: dict[Hashable, deque[float]] = {}

    def note(self, key: Hashable, seconds: float) -> None:
        """It took so long this time."""
        self._seen.setdefault(key, deque(maxlen=self._KEPT)).append(seconds)

    def expect(self, key: Hashable, *otherwise: Hashable) -> float:
        """Seconds it will take; of the first key that is known, 0 if none is."""
        for known in (key, *otherwise):
            if known in self._seen:
                times = sorted(self._seen[known])
                return times[int(0.9 * (len(times) - 1))]
        return 0.0

    def doubt(self, key: Hashable) -> None:
        """It was not done because of the time it would take. That is believed a little less each time: whatever made it
        slow may be over, and is not seen to be unless it is tried."""
        if key in self._seen:
            self.note(key, 0.75 * self.expect(key))


@dataclass(frozen=True, eq=False)
class Deadline:
    """When a sample has to be there, and how it is finished if it would not be.

    Attributes:
        at: s on `clock`.
        finish_steps: network calls that finish a chain.
        clock: seconds.
        pace: what is known of the time of rounds; kept from chunk to chunk.

    Raises:
        ValueError: finish_steps below 1.
    """

    at: float
    finish_steps: int = DEFAULT_FINISH_STEPS
    clock: Callable[[], float] = time.monotonic
    pace: Pace = field(default_factory=Pace)

    def __post_init__(self) -> None:
        if self.finish_steps < 1:
            raise ValueError(f"finish_steps must be at least 1, got {self.finish_steps}")


class Watch:
    """A deadline and the clock, looked at between rounds."""

    def __init__(self, deadline: Deadline, device: torch.device) -> None:
        self._deadline, self._device = deadline, device
        self._running: tuple[Hashable, float] | None = None

    def now(self) -> float:
        """s on the deadline's clock, everything on the device done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._deadline.clock()

    def late(self, left: int, key: Hashable = "round") -> bool:
        """Whether to finish now: another round (of this key), and the finishing calls after it, would be too late.

        A chain with no more steps left than finishing takes calls goes on: it needs no more of them.

        left: steps of the chain that is farthest behind.
        """
        now, pace = self.now(), self._deadline.pace
        self._note(now)
        if left <= self._deadline.finish_steps:
            return False
        ahead = pace.expect(key) + self._deadline.finish_steps * pace.expect(FINISH, "round", key)
        if now + ahead > self._deadline.at:
            pace.doubt(key)
            return True
        self._running = key, now
        return False

    def fits(self, rounds: int) -> bool:
        """Whether so many rounds will be in time; False where their time is not known yet."""
        each = self._deadline.pace.expect("round")
        return each > 0 and self.now() + rounds * each <= self._deadline.at

    @property
    def finish_steps(self) -> int:
        """Network calls that finish a chain."""
        return self._deadline.finish_steps

    def finished(self, since: float, calls: int) -> None:
        """Finishing took from `since` until now."""
        self._deadline.pace.note(FINISH, (self.now() - since) / max(calls, 1))

    def _note(self, now: float) -> None:
        if self._running is not None:
            key, since = self._running
            self._deadline.pace.note(key, now - since)
        self._running = None
