"""A robot's clock in terms of the loop's: how late a reading is, and when a command is due over there.

A reading with stamp s that is received at r has r - s = offset + delay, the delay being at least 0. The smallest
difference of a while is the offset (and the smallest delay with it), as in NTP's clock filter (Mills, RFC 5905, section
10): what is larger is lateness. A robot that tells its clock (`now()`) leaves nothing to be guessed.
"""

from __future__ import annotations

from collections import deque

__all__ = ["FUTURE", "JUMP", "NORMAL", "PAST", "ClockMap"]

NORMAL = "normal"
"""A reading as it should be, however late."""
PAST = "past"
"""Read long before one that is known: late and overtaken, or the clock was set back."""
FUTURE = "future"
"""Read later than it was received: not to be used; the clock was set forward, or the stamp is wrong."""
JUMP = "jump"
"""The clock has jumped: the offset begins anew with this reading, and so should whatever had stamps of before."""


_TOLD = 20


class ClockMap:
    """The offset between two clocks, followed by readings.

    One odd stamp is a bad stamp; a clock has jumped when `confirm` readings in a row say the same. Readings that are
    late look like a clock set back, but for one thing: their stamps go on growing.

    Args:
        max_jump: s, what two readings may differ by without one of them being odd.
        window: s, how long a smallest difference counts: a drift of 1e-4 is followed within window * 1e-4.
        confirm: readings in a row that make a jump.
    """

    def __init__(self, max_jump: float, window: float = 10.0, confirm: int = 3) -> None:
        self._max_jump, self._window, self._confirm = max_jump, window, confirm
        self._told: deque[tuple[float, float]] = deque(maxlen=_TOLD)  # how long it took to be told, and the offset
        self._restart()
        self._odd: list[tuple[float, float]] = []

    def _restart(self) -> None:
        # Differences that are the smallest from their time on, with their times: the first is the window's smallest.
        self._smallest: deque[tuple[float, float]] = deque()
        self._newest = -float("inf")
        self._offset: float | None = None

    @property
    def offset(self) -> float | None:
        """s, loop's time - robot's time; None before the first reading."""
        return self._offset

    def to_loop(self, stamp: float) -> float:
        """The loop's time of a robot's time; the same one before the first reading."""
        return stamp + (self._offset or 0.0)

    def to_robot(self, time: float) -> float:
        """The robot's time of a loop's time; the same one before the first reading."""
        return time - (self._offset or 0.0)

    def synchronise(self, robot_now: float, before: float, after: float) -> bool:
        """Take the offset from a robot that tells its clock.

        Args:
            robot_now: s on the robot's clock, read between the loop's `before` and `after`.

        Returns:
            Whether the clock has jumped since.
        """
        # Held up in between, it says less: of the last readings the quickest one counts.
        width, offset = after - before, (before + after) / 2 - robot_now
        jumped = bool(self._told) and abs(offset - min(self._told)[1]) > self._max_jump + width
        if jumped:
            self._newest = -float("inf")
            self._told.clear()
        self._told.append((width, offset))
        self._offset = min(self._told)[1]
        return jumped

    def see(self, stamp: float, received: float) -> str:
        """Take a reading: NORMAL, PAST, FUTURE or JUMP.

        Args:
            stamp: s on the robot's clock; received: s on the loop's.
        """
        difference = received - stamp
        if self._offset is None:
            self._follow(stamp, received, difference)
            return NORMAL
        if self._offset - difference > self._max_jump:
            kind = FUTURE
        elif stamp < self._newest - self._max_jump:
            kind = PAST
        else:
            self._odd.clear()
            self._follow(stamp, received, difference)
            return NORMAL
        if self._told:  # jumps are seen by `synchronise`
            return kind
        if self._odd and not self._agrees(stamp, difference):
            self._odd.clear()
        self._odd.append((stamp, difference))
        if len(self._odd) < self._confirm:
            return kind
        odd, self._odd = self._odd, []
        self._restart()
        self._follow(stamp, received, min(one for _, one in odd))
        return JUMP

    def _agrees(self, stamp: float, difference: float) -> bool:
        last_stamp, last_difference = self._odd[-1]
        return stamp > last_stamp and abs(difference - last_difference) <= self._max_jump

    def _follow(self, stamp: float, received: float, difference: float) -> None:
        self._newest = max(self._newest, stamp)
        if self._told:
            return
        smallest = self._smallest
        while smallest and smallest[-1][1] >= difference:
            smallest.pop()
        smallest.append((received, difference))
        while smallest[0][0] < received - self._window:
            smallest.popleft()
        self._offset = smallest[0][1]
