"""Events on their way to whoever listens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffpolicy_spec.control.events import (
    ChunkArrived,
    Fault,
    Intervention,
    LoopStarted,
    LoopStopped,
    Subscriber,
    Tick,
)

__all__ = ["METHODS", "Publisher"]

METHODS: Mapping[type, str] = {
    LoopStarted: "on_start",
    Tick: "on_tick",
    ChunkArrived: "on_chunk",
    Intervention: "on_intervention",
    Fault: "on_fault",
    LoopStopped: "on_stop",
}
"""A subscriber's method for each event."""


class Publisher:
    """Keeps events until the loop has time to tell them.

    Args:
        subscribers: told in this order.
        failed: told which one raised what; that one is not called again.
    """

    def __init__(self, subscribers: Sequence[Subscriber], failed: Callable[[Subscriber, Exception], None]) -> None:
        self._subscribers, self._failed = list(subscribers), failed
        self._events: deque[Any] = deque()

    def put(self, event: Any) -> None:
        """Keep an event; from any thread."""
        self._events.append(event)

    def add(self, subscriber: Subscriber) -> None:
        """One more listener, from the next event on; from any thread."""
        self._subscribers = [*self._subscribers, subscriber]

    def flush(self) -> None:
        """Tell all that is kept."""
        while self._events:
            event = self._events.popleft()
            method = METHODS[type(event)]
            for subscriber in self._subscribers:
                try:
                    getattr(subscriber, method)(event)
                except Exception as error:
                    self._subscribers = [one for one in self._subscribers if one is not subscriber]
                    self._failed(subscriber, error)
