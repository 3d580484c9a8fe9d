"""The double of rclpy (fake_rclpy), begun for a test and ended after it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

__all__ = ["FAKE", "begun", "wait"]

FAKE = Path(__file__).parent / "fake_rclpy"


@contextmanager
def begun(monkeypatch: pytest.MonkeyPatch, *, init: bool = True) -> Iterator[Any]:
    """rclpy; with `rclpy.spun(node)`, which has a thread spin a node and returns it."""
    monkeypatch.syspath_prepend(str(FAKE))
    import rclpy
    import rclpy.executors
    import rclpy.qos

    if init:
        rclpy.init()
    threads = []

    def spun(node: Any, workers: int = 1) -> Any:
        executor = rclpy.executors.MultiThreadedExecutor(workers)
        executor.add_node(node)

        def spin() -> None:
            with suppress(rclpy.executors.ExternalShutdownException):
                executor.spin()

        threads.append(threading.Thread(target=spin))
        threads[-1].start()
        return node

    rclpy.spun = spun
    try:
        yield rclpy
    finally:
        rclpy.try_shutdown()
        for thread in threads:
            thread.join(10)
        for name in [name for name in sys.modules if name.partition(".")[0] in ("rclpy", "rosidl_runtime_py")]:
            del sys.modules[name]


def wait(what: Callable[[], Any], timeout: float = 10.0, message: str = "what was waited for did not happen") -> None:
    """Until it is true."""
    end = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < end, message
        time.sleep(0.002)
