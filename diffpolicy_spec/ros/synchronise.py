"""Messages of several topics that belong to one time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Synchroniser", "Taken"]

T = TypeVar("T")

BACKWARDS_S = 1.0
"""A stamp so much older than the newest is of a clock that was set back, not of a message that was overtaken."""


@dataclass(frozen=True)
class Taken(Generic[T]):
    """Messages of one time.

    Attributes:
        time: s. messages: topic -> its message nearest to that time.
        topic, apart: the topic that is furthest from it, and by how many s.
    """

    time: float
    messages: Mapping[str, T]
    topic: str
    apart: float


class Synchroniser(Generic[T]):
    """Keeps the last messages of each topic, and finds those of one time.

    The time is the newest of which all topics have something: that of the slowest topic's newest message. Of the other
    topics the message nearest to it is taken.

    Args:
        topics: their names. depth: messages kept of each.
    """

    def __init__(self, topics: Sequence[str], depth: int = 64) -> None:
        self._kept: dict[str, deque[tuple[float, T]]] = {topic: deque(maxlen=depth) for topic in topics}
        self._last: float | None = None

    def put(self, topic: str, time: float, message: T) -> bool:
        """Keep a message; False: a newer one of its topic is here already, and it comes in before that."""
        kept = self._kept[topic]
        if kept and time < kept[-1][0] - BACKWARDS_S:
            self.clear()
        in_order = not kept or time > kept[-1][0]
        if in_order:
            kept.append((time, message))
        elif all(time != other for other, _ in kept):
            # Not into a full deque: it would push the newest out.
            if len(kept) == kept.maxlen:
                kept.popleft()
            place = sum(other < time for other, _ in kept)
            kept.insert(place, (time, message))
        return in_order

    def take(self) -> Taken[T] | None:
        """What belongs to the newest time that was not taken before; None: nothing yet."""
        if not all(self._kept.values()):
            return None
        time = min(kept[-1][0] for kept in self._kept.values())
        if self._last is not None and time <= self._last:
            return None
        self._last = time
        chosen = {topic: min(kept, key=lambda one: abs(one[0] - time)) for topic, kept in self._kept.items()}
        furthest = max(chosen, key=lambda topic: abs(chosen[topic][0] - time))
        messages = {topic: message for topic, (_, message) in chosen.items()}
        return Taken(time, messages, furthest, abs(chosen[furthest][0] - time))

    def clear(self) -> None:
        """Forget everything."""
        for kept in self._kept.values():
            kept.clear()
        self._last = None
