"""Chunks: asked for when they are due, taken as they come, looked up by time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.config import ControlConfig
from diffpolicy_spec.control.events import FAULTS, ChunkArrived
from diffpolicy_spec.control.faults import FaultBook
from diffpolicy_spec.control.history import Stack
from diffpolicy_spec.control.protocols import Failure, Plan, Planner, PolicyInfo
from diffpolicy_spec.control.queue import Chunk, ChunkQueue, Wanted, invalid_actions
from diffpolicy_spec.control.requests import Pending, Requests

__all__ = ["Supply"]

_UNTIL_A_CHUNK = (
    "worker_died", "worker_failed", "server_unreachable", "server_error", "unauthorized", "connection_lost",
    "late_inference", "bad_message",
)  # fmt: skip
"""What a planner complains of: over when it says so, or, as it works, when it has made a chunk."""


class Supply:
    """A planner's chunks.

    Args:
        tell: what is called with each ChunkArrived.
    """

    def __init__(
        self,
        planner: Planner,
        config: ControlConfig,
        faults: FaultBook,
        tell: Callable[[ChunkArrived], None],
    ) -> None:
        self._planner, self._config, self._faults, self._tell = planner, config, faults, tell
        self._period = 1 / config.control_hz
        self._queue = ChunkQueue(config)
        self._requests = Requests(config)
        self._info: PolicyInfo | None = None
        self._complaints: set[str] = set()  # a robot may have faults of the same kinds

    def know(self, info: PolicyInfo) -> None:
        """Ask for chunks of this policy from now on."""
        self._info = info
        self._requests.know(info)

    def reset(self, now: float) -> None:
        """Forget all chunks, and what was asked for: it is late no more."""
        self._queue.clear()
        self._requests.clear()
        self._complaints.discard("late_inference")
        for kind in ("late_inference", "deadline_missed"):
            self._faults.over(kind, now, "what was asked for is not waited for any more")

    @property
    def waiting(self) -> bool:
        """Whether a chunk is asked for."""
        return self._requests.newest is not None

    def wanted(self, time: float) -> Wanted | None:
        """What the chunks want at `time`; with `meanwhile` "hold", nothing while a chunk is being made."""
        if self._config.meanwhile == "hold" and self.waiting:
            return None
        return self._queue.wanted(time)

    def following(self, time: float, count: int, step: float) -> NDArray[np.float64] | None:
        """(n, Da): what is wanted at time, time + step, ...; None: nothing."""
        return self._queue.following(time, count, step)

    def ask(self, observed: float | None, stack: Callable[[], Stack | None], now: float) -> None:
        """Ask for a chunk if it is time to.

        Args:
            observed: s on the loop's clock, of the newest observation; stack: the history up to it.
        """
        if self._info is None or observed is None or not self._planner.ready:
            return
        if not self._requests.due(observed, now):
            return
        found, late = stack(), self._requests.newest
        if found is None:
            return
        if late is not None:
            age = 1e3 * (now - late.request.time)
            message = f"chunk {late.request.id} is not there {age:.0f} ms after its observation: another is asked for"
            self._complain("late_inference", message, now)
        if found.lost:
            self._faults.happened(
                "observation_lost", f"older ones stand for {found.lost} observations of the history", now,
                times=found.lost,
            )  # fmt: skip
        freeze = self._requests.to_freeze
        committed = self._queue.following(found.time, freeze, self._config.dt) if freeze else None
        request = self._requests.ask(found, committed, now)
        try:
            self._planner.submit(request)
        except Exception as error:
            self._complain("worker_failed", f"the planner cannot be asked: {type(error).__name__}: {error}", now)
            self._requests.lost(request.id)

    def receive(self, now: float, time: float) -> None:
        """Take what the planner has.

        Args:
            now: s; time: s, what the next command is for.
        """
        try:
            answers = self._planner.poll()
        except Exception as error:
            self._complain("worker_failed", f"the planner cannot be asked: {type(error).__name__}: {error}", now)
            answers = ()
        for answer in answers:
            if isinstance(answer, Failure):
                self._failed(answer, now)
            else:
                self._arrived(answer, now, time)
        for pending in self._requests.missed(now):
            self._miss(pending, f"is not there after {1e3 * (now - pending.asked):.0f} ms", now)
        self._queue.forget_before(time)

    def _failed(self, failure: Failure, now: float) -> None:
        kind = failure.kind if failure.kind in FAULTS else "worker_failed"
        if failure.recovered:
            self._complaints.discard(kind)
            self._faults.over(kind, now, failure.message)
        else:
            self._complain(kind, failure.message, now)
        if failure.id is not None:
            self._requests.lost(failure.id)

    def _complain(self, kind: str, message: str, now: float) -> None:
        lasting = kind in _UNTIL_A_CHUNK
        if lasting:
            self._complaints.add(kind)
        self._faults.happened(kind, message, now, lasting=lasting)

    def _arrived(self, plan: Plan, now: float, time: float) -> None:
        if self._info is None:
            return
        wrong = invalid_actions(plan.actions, self._info.action_dim, self._info.horizon - self._info.first)
        if wrong:
            self._faults.happened("invalid_chunk", f"chunk {plan.id} is dropped: {wrong}", now)
            self._requests.lost(plan.id)
            return
        overtaken = self._requests.overtaken(plan.id)
        pending = self._requests.answered(plan.id, now)
        if pending is None:  # of before a reset
            return
        request = pending.request
        actions = np.array(plan.actions, np.float64)
        stale = self._queue.put(Chunk(plan.id, request.time, actions), time, self._period)
        useless = stale == len(actions) and not overtaken
        for kind in self._complaints - ({"late_inference"} if useless else set()):
            self._complaints.discard(kind)
            self._faults.over(kind, now)
        if useless:
            message = f"chunk {plan.id} came {1e3 * (now - request.time):.0f} ms after its observation: nothing is left"
            self._complain("late_inference", message, now)
        late = pending.deadline is not None and (now > pending.deadline or not plan.exact)
        if late and not pending.missed:
            how = "came late" if plan.exact else "was finished by DDIM steps to be there in time"
            self._miss(pending, how, now)
        elif pending.deadline is not None and not late:
            self._faults.over("deadline_missed", now)
        self._tell(
            ChunkArrived(
                time=now,
                id=plan.id,
                latency_ms=1e3 * (now - pending.asked),
                observation_age_ms=1e3 * (now - request.time),
                cost=plan.cost,
                exact=plan.exact,
                deadline_ms=self._config.deadline_ms,
                deadline_missed=late,
                on_deadline=self._config.on_deadline,
                stale=stale,
                usable=len(actions) - stale,
                frozen=pending.frozen,
                actions=actions,
            )
        )

    def _miss(self, pending: Pending, how: str, now: float) -> None:
        pending.missed = True
        message = f"chunk {pending.request.id} {how}, its deadline is {self._config.deadline_ms:g} ms"
        self._faults.happened("deadline_missed", message, now, lasting=True)
