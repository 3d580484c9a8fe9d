"""Executors: whoever spins runs the callbacks."""

from __future__ import annotations

import queue
from typing import Any

import rclpy


class ExternalShutdownException(Exception):
    """ROS ended while it was spun."""


class SingleThreadedExecutor:
    """One thread for all callbacks of its nodes."""

    def __init__(self) -> None:
        self.work: queue.Queue[Any] = queue.Queue()

    def add_node(self, node: Any) -> bool:
        node.executor = self
        return True

    def spin(self) -> None:
        """Run callbacks until ROS ends."""
        while rclpy.ok():
            self.spin_once(0.02)
        raise ExternalShutdownException

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Run one callback, if one comes in time; what it raises is the spinner's, as in rclpy."""
        try:
            callback = self.work.get(timeout=timeout_sec)
        except queue.Empty:
            return
        callback()

    def shutdown(self) -> bool:
        return True
