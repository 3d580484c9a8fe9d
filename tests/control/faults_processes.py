"""Processes that are too slow, hang or die: what is done to a worker's or server's process from outside."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Throttle:
    """A process that gets only a share of the time: stopped and continued by signals, until `close`.

    Args:
        pid: of the process; share: of the time it runs; period: s.
    """

    def __init__(self, pid: int, share: float = 0.1, period: float = 0.2) -> None:
        self._pid, self._share, self._period = pid, share, period
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Throttle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._over.is_set():
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGSTOP)
            self._over.wait((1 - self._share) * self._period)
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGCONT)
            self._over.wait(self._share * self._period)

    def close(self) -> None:
        """Let it run."""
        self._over.set()
        self._thread.join()
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)


def rss_mb(pid: int) -> float:
    """Memory of a process that is in use now, MB."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Rss:"):
                return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} tells no Rss")


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def wait_for(what: Callable[[], Any], timeout: float, told: str | Callable[[], str] = "") -> None:
    """Until what() is true; told: what it means that it is not.

    Raises:
        AssertionError: it is not, after `timeout` s.
    """
    end = time.monotonic() + timeout
    while not what():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:.0f} s: {told() if callable(told) else told}")
        time.sleep(0.01)
