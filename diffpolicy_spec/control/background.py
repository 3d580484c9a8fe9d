"""Subscribers that do their work in a thread of their own, so that the loop never waits for it."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from diffpolicy_spec.control.events import (
    ChunkArrived,
    Fault,
    Intervention,
    LoopStarted,
    LoopStopped,
    Subscriber,
    Tick,
)

__all__ = ["Background"]


class Background(Subscriber):
    """Keeps events, `capacity` at most, and hands them to `work` in a thread.

    What does not fit is dropped and counted. The loop only appends to a list. A subclass defines `work`, and starts the
    thread by `_begin` when it is ready.

    Args:
        capacity: events kept.
        every_s: how often the thread looks; small batches, so that it never holds Python's global lock for long.

    Attributes:
        dropped: events that did not fit, or that `work` failed on.
        problem: what it failed with last; None: nothing.
    """

    def __init__(self, capacity: int = 20_000, every_s: float = 0.1) -> None:
        if capacity < 1 or not every_s > 0:
            raise ValueError(f"capacity must be at least 1 and every_s positive, got {capacity} and {every_s}")
        self.dropped = 0
        self.problem: str | None = None
        self._capacity, self._every = capacity, every_s
        self._events: deque[Any] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    def work(self, event: Any) -> None:
        """What is done with an event."""
        raise NotImplementedError

    def idle(self) -> None:
        """Called after each batch."""

    def finish(self) -> None:
        """Called once, after the last event."""

    def _begin(self) -> None:
        """Start the thread; what is left when Python ends is done then."""
        self._thread.start()
        atexit.register(self.close)

    def close(self, timeout: float = 5.0) -> None:
        """Do what is left and end; what is not done within `timeout` s is lost."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def on_start(self, event: LoopStarted) -> None:
        self._put(event)

    def on_tick(self, event: Tick) -> None:
        self._put(event)

    def on_chunk(self, event: ChunkArrived) -> None:
        self._put(event)

    def on_intervention(self, event: Intervention) -> None:
        self._put(event)

    def on_fault(self, event: Fault) -> None:
        self._put(event)

    def on_stop(self, event: LoopStopped) -> None:
        self._put(event)

    def _put(self, event: Any) -> None:
        if len(self._events) >= self._capacity or self._closing.is_set():
            self.dropped += 1
        else:
            self._events.append(event)

    def _run(self) -> None:
        while True:
            last = self._closing.wait(self._every)
            while self._events:
                self._try(self.work, self._events.popleft())
            self._try(self.idle)
            if last:
                self._try(self.finish)
                return

    def _try(self, what: Callable[..., None], *arguments: Any) -> None:
        try:
            what(*arguments)
        except Exception as error:
            self.dropped += len(arguments)
            self.problem = f"{type(error).__name__}: {error}"
