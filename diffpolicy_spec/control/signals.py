"""A clean stop on SIGINT and SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

__all__ = ["STOPPING", "stop_on_signals"]

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Stoppable(Protocol):
    """What can be stopped from a signal handler: both only set flags."""

    def stop(self, reason: str = ...) -> None:
        """Stop within a period."""

    def emergency_stop(self, reason: str = ...) -> None:
        """The emergency stop."""


@contextmanager
def stop_on_signals(loop: Stoppable, signals: tuple[signal.Signals, ...] = STOPPING) -> Iterator[None]:
    """While this lasts, a signal stops the loop, and a second one is the emergency stop; then it is as it was before.

    Only a process's main thread may set signal handlers: in another one this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        name = signal.Signals(number).name
        if seen == 1:
            loop.stop(name)
        else:
            loop.emergency_stop(f"{name}, the second signal")
            loop.stop(name)

    before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}
    try:
        for number in signals:
            before[number] = signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            # A handler that was not set from Python is None and cannot be put back: the default is nearest.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
