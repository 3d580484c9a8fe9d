"""When a chunk is asked for, and what was asked."""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.config import ControlConfig
from diffpolicy_spec.control.history import Stack
from diffpolicy_spec.control.protocols import PlanRequest, PolicyInfo

__all__ = ["Pending", "Requests"]

_REMEMBERED = 64

numbers = itertools.count()
"""Ids of all loops of this process: a planner that goes from one loop to the next may still owe the first an answer."""


@dataclass
class Pending:
    """A request without an answer.

    Attributes:
        request: what was asked; asked: s on the loop's clock, when.
        deadline: s, None for none; missed: whether that was told.
    """

    request: PlanRequest
    asked: float
    deadline: float | None
    missed: bool = False

    @property
    def frozen(self) -> int:
        """Actions the chunk has to continue."""
        return 0 if self.request.committed is None else len(self.request.committed)


class Requests:
    """Receding horizon: one request at a time, each from an observation Ta policy steps after the one before's."""

    def __init__(self, config: ControlConfig) -> None:
        self._config = config
        # Readings are as far apart as loop periods, or further: the nearest one to the time that is due.
        self._slack = 0.5 * min(config.dt, 1 / config.control_hz)
        self._pending: dict[int, Pending] = {}
        self._planned = -math.inf
        self._count, self._answered = 0, -1
        self._latencies: deque[float] = deque(maxlen=10)

    def know(self, info: PolicyInfo) -> None:
        """The policy: nothing is due before.

        Raises:
            ValueError: more action steps are asked for than its chunks have.
        """
        steps = self._config.n_action_steps or info.n_action_steps
        self._usable = info.horizon - info.first
        if steps > self._usable:
            raise ValueError(f"n_action_steps is {steps}, but a chunk of this policy has {self._usable} usable actions")
        self._every = steps * self._config.dt

    @property
    def newest(self) -> Pending | None:
        """The newest request, if it has no answer yet."""
        pending = next(reversed(self._pending.values()), None)
        return pending if pending is not None and pending.request.id > self._answered else None

    def clear(self) -> None:
        """Forget them: answers to them are none any more. What chunks take is still known."""
        self._pending.clear()
        self._planned = -math.inf

    def due(self, observed: float, now: float) -> bool:
        """Whether to ask now.

        Args:
            observed: s on the loop's clock, of the newest observation.
        """
        waiting = self.newest
        if waiting is not None and now < waiting.request.time + (self._usable - 0.5) * self._config.dt:
            return False  # what is asked for can still be of use
        if observed <= self._planned:
            return False
        return observed >= self._planned + self._every - self._slack or waiting is not None

    @property
    def to_freeze(self) -> int:
        """How many actions from the observation on will be executed before a chunk can be there; 0: not known."""
        config = self._config
        if not config.freeze:
            return 0
        if config.freeze_steps is not None:
            steps = config.freeze_steps
        elif self._latencies:
            steps = math.ceil((max(self._latencies) + 1e-3 * config.lead_ms) / config.dt - 1e-6) + 1
        else:
            return 0
        return min(steps, self._usable - 1)

    def ask(self, stack: Stack, committed: NDArray[np.float64] | None, now: float) -> PlanRequest:
        """Note a request; returns it.

        Args:
            stack: the history, its time on the loop's clock; committed: see `PlanRequest`.
        """
        config, number = self._config, next(numbers)
        deadline = None if config.deadline_ms is None else now + 1e-3 * config.deadline_ms
        seed = None
        if config.seed is not None:  # hashed: neighbouring numbers give unrelated noise
            seed = int(np.random.SeedSequence([config.seed, self._count]).generate_state(1)[0])
        request = PlanRequest(
            id=number,
            obs=stack.obs,
            time=stack.time,
            deadline=deadline if config.on_deadline == "finish" else None,
            committed=committed,
            seed=seed,
            finish_steps=config.finish_steps,
        )
        self._count += 1
        self._pending[number] = Pending(request, now, deadline)
        self._planned = request.time
        if len(self._pending) > _REMEMBERED:
            del self._pending[next(iter(self._pending))]
        return request

    def lost(self, number: int) -> None:
        """A request will have no answer that is of use: if it was the newest, the next one may be made at once."""
        newest = self.newest
        if newest is not None and newest.request.id == number:
            self._planned = -math.inf
        self._pending.pop(number, None)

    def overtaken(self, number: int) -> bool:
        """Whether a newer request has been answered already."""
        return number < self._answered

    def answered(self, number: int, now: float) -> Pending | None:
        """What was asked; None: nothing that counts any more."""
        found = self._pending.pop(number, None)
        if found is not None:
            self._answered = max(self._answered, number)
            self._latencies.append(now - found.request.time)
        return found

    def missed(self, now: float) -> list[Pending]:
        """Those whose deadline has passed since the last call."""
        found = [p for p in self._pending.values() if p.deadline is not None and not p.missed and now > p.deadline]
        for pending in found:
            pending.missed = True
        return found
