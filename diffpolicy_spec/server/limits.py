"""How much each client may ask for: token buckets, and counts of connections."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

__all__ = ["Bucket", "Buckets", "Places"]

_FORGET_ABOVE = 1024


class Bucket:
    """`burst` at once, then `rate` a second."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._then = float(burst), clock()

    def take(self) -> float:
        """Take one; returns s until it is really there, 0 where it was. What is taken in advance is owed."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._then) * self._rate) - 1
        self._then = now
        return max(0.0, -self._left / self._rate)

    def give_back(self) -> None:
        """Undo the last take."""
        self._left = min(self._burst, self._left + 1)

    @property
    def full(self) -> bool:
        """Whether it is as good as a new one."""
        return self._left + (self._clock() - self._then) * self._rate >= self._burst


class Buckets:
    """One bucket a name; a name that asks too early is told no, and owes nothing."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._make = lambda: Bucket(rate, burst, clock)
        self._of: dict[str, Bucket] = {}

    def take(self, name: str) -> bool:
        """Whether this one may."""
        bucket = self._of.setdefault(name, self._make())
        if len(self._of) > _FORGET_ABOVE:
            self._of = {other: one for other, one in self._of.items() if not one.full} | {name: bucket}
        allowed = bucket.take() == 0
        if not allowed:
            bucket.give_back()
        return allowed


class Places:
    """Connections of all clients, and of each."""

    def __init__(self, all_clients: int, one_client: int) -> None:
        self._all, self._one = all_clients, one_client
        self._taken: Counter[str] = Counter()

    def full(self, client: str) -> str | None:
        """Why there is no place, or None."""
        if self._taken.total() >= self._all:
            return f"all {self._all} connections are taken"
        if self._taken[client] >= self._one:
            return f"all {self._one} connections of one client are taken"
        return None

    def enter(self, client: str) -> str | None:
        """Take a place; returns why there is none, or None."""
        why = self.full(client)
        if why is None:
            self._taken[client] += 1
        return why

    def leave(self, client: str) -> None:
        """Give it back."""
        self._taken[client] -= 1
        if self._taken[client] <= 0:
            del self._taken[client]
