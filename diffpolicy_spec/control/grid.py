"""A fixed grid of periods on the loop's clock, and keeping to it."""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Grid", "sleep_until", "undisturbed"]

_SWITCH_INTERVAL = 5e-4


class Grid:
    """Periods t_n = t_0 + n / hz. One that is over before it could begin is left out, never made up for.

    Args:
        start: t_0, s; hz: periods a second.
    """

    def __init__(self, start: float, hz: float) -> None:
        self._start, self._hz = start, hz

    def time(self, n: int) -> float:
        """t_n, s."""
        return self._start + n / self._hz

    def after(self, n: int, now: float) -> int:
        """The period to come after period n, at `now`.

        The next one if it can still begin within its first half; else the first one that lies ahead of that. So two
        commands are never closer together than half a period.
        """
        return max(n + 1, math.ceil((now - self._start) * self._hz - 0.5))


def sleep_until(due: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
    """Sleep until `due`, s.

    `time.sleep` of Python 3.11 sleeps until an absolute time, to within 0.1 ms on an idle core; spinning would take the
    core from inference.
    """
    while (left := due - clock()) > 0:
        sleep(left)


@contextmanager
def undisturbed(realtime: bool) -> Iterator[None]:
    """For the thread that keeps time: what would hold it up is held off, as far as it may be.

    Garbage collection leaves alone what there was before: a full one of a process with torch takes longer than a period
    at 100 Hz, one of what a loop leaves 0.1 ms. Other threads hand over within 0.5 ms. With `realtime`, the thread is
    scheduled before everything that is not (SCHED_FIFO), where the system permits it. All is put back after.
    """
    interval = sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(min(interval, _SWITCH_INTERVAL))
    before = _raise_priority() if realtime else None
    try:
        yield
    finally:
        if before is not None:
            os.sched_setscheduler(0, before, os.sched_param(0))
        sys.setswitchinterval(interval)
        gc.unfreeze()


def _raise_priority() -> int | None:
    """The scheduling policy there was before; None: it stays as it is."""
    if not hasattr(os, "sched_setscheduler"):
        return None
    try:
        before = os.sched_getscheduler(0)
        # Processes started from here are not real-time ones.
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        return None
    return before
