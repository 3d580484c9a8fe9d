"""Where a planner takes requests in and lays answers out; both sides are threads of their own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from diffpolicy_spec.control.protocols import Failure, Plan, PlanRequest

__all__ = ["Desk"]

_KEPT = 4096  # answers nobody asks for


class Desk:
    """One request under way at most, and one waiting: the newest. Every request is answered once.

    Nobody waits here but in `take` and `pause`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._changed = clock, threading.Condition()
        self._answers: deque[Plan | Failure] = deque(maxlen=_KEPT)
        self._waiting: PlanRequest | None = None
        self._under_way: tuple[PlanRequest, float] | None = None
        self._closed = Failure("worker_failed", "the planner has not been started")
        self._open, self.ended = False, False

    @property
    def open(self) -> bool:
        """Whether requests are taken in."""
        return self._open

    @property
    def under_way(self) -> tuple[PlanRequest, float] | None:
        """The request that is worked on, and since when."""
        return self._under_way

    def unlock(self) -> None:
        """Take requests in from now on."""
        with self._changed:
            self._open = not self.ended

    def lock(self, kind: str, message: str) -> int | None:
        """Take none in for now: answer all, those there are and those that come, with this Failure.

        Returns the id of the request that was under way, or None.
        """
        with self._changed:
            self._open, self._closed = False, Failure(kind, message)
            lost = None if self._under_way is None else self._under_way[0]
            for request in (lost, self._waiting):
                if request is not None:
                    self._answers.append(Failure(kind, message, request.id))
            self._under_way = self._waiting = None
            self._changed.notify_all()
            return None if lost is None else lost.id

    def end(self) -> None:
        """Nothing is taken in any more; whoever waits goes on."""
        with self._changed:
            self.ended = True
            self.lock("worker_failed", "the planner is closed")

    def submit(self, request: PlanRequest) -> None:
        """Take a request in. One that waits already has come too late: its answer is a Failure."""
        with self._changed:
            if not self._open:
                self._answers.append(Failure(self._closed.kind, self._closed.message, request.id))
                return
            if self._waiting is not None:
                message = f"request {self._waiting.id} was overtaken by request {request.id} before its turn came"
                self._answers.append(Failure("late_inference", message, self._waiting.id))
            self._waiting = request
            self._changed.notify_all()

    def take(self, timeout: float | None = None) -> PlanRequest | None:
        """The waiting request, as soon as none is under way; it is then. None: the time is up, or the end."""
        with self._changed:
            self._changed.wait_for(self._can_take, timeout)
            if self.ended or self._waiting is None or self._under_way is not None:
                return None
            request, self._waiting = self._waiting, None
            self._under_way = request, self._clock()
            return request

    def _can_take(self) -> bool:
        return self.ended or (self._waiting is not None and self._under_way is None)

    def answer(self, answer: Plan | Failure) -> None:
        """Of the request under way; of another one it is dropped: that has an answer."""
        with self._changed:
            if self._under_way is not None and self._under_way[0].id == answer.id:
                self._under_way = None
                self._answers.append(answer)
                self._changed.notify_all()

    def tell(self, failure: Failure) -> None:
        """Something that is not an answer."""
        with self._changed:
            self._answers.append(failure)

    def poll(self) -> Sequence[Plan | Failure]:
        """What has been laid out since."""
        with self._changed:
            answers = tuple(self._answers)
            self._answers.clear()
        return answers

    def pause(self, seconds: float) -> None:
        """Wait so long, or until the end."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended, seconds)
