"""Executors: whoever spins runs the callbacks."""

from __future__ import annotations

import queue
import threading
from typing import Any

import rclpy


class ExternalShutdownException(Exception):
    """ROS ended while it was spun."""


class MultiThreadedExecutor:
    """Several threads for the callbacks of its nodes; those of one group never run at once."""

    def __init__(self, num_threads: int | None = None) -> None:
        self.work: queue.Queue[Any] = queue.Queue()
        self.threads, self.ended = num_threads or 2, False

    def add_node(self, node: Any) -> bool:
        node.executor = self
        return True

    def spin(self) -> None:
        """Run callbacks until ROS ends."""
        more = [threading.Thread(target=self._spin) for _ in range(self.threads - 1)]
        for thread in more:
            thread.start()
        self._spin()
        for thread in more:
            thread.join()
        if not rclpy.ok():
            raise ExternalShutdownException

    def shutdown(self) -> bool:
        self.ended = True
        return True

    def _spin(self) -> None:
        while rclpy.ok() and not self.ended:
            try:
                group, callback = self.work.get(timeout=0.02)
            except queue.Empty:
                continue
            with group.lock:
                callback()


class SingleThreadedExecutor(MultiThreadedExecutor):
    """One thread for all callbacks of its nodes."""

    def __init__(self) -> None:
        super().__init__(1)
