"""ROS 2 without a bridge: topics, services and the clock of an rclpy node, as a `Transport`.

    rclpy.init()
    node = rclpy.create_node("policy")
    transport = RclpyTransport(node)

Observations are subscribed to as sensor data (best effort, the newest kept): such a subscription hears reliable
publishers, too. Commands are published reliably, as controllers want them. Whoever made the node spins it; callbacks
come in that thread.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from typing import Any

from diffpolicy_spec.ros.rclpy_messages import as_dict, fill
from diffpolicy_spec.ros.transport import Message, ServiceHandler, type_name

__all__ = ["RclpyTransport", "ros2_module"]


def ros2_module(name: str) -> Any:
    """Import a module of ROS 2.

    Raises:
        ImportError: it is not there; the message says what to do.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        python = ".".join(map(str, sys.version_info[:2]))
        raise ImportError(
            f"{name} cannot be imported ({error}): source your ROS 2 installation's setup file, of a release that is "
            f"for this Python, {python}. Without ROS 2 here, use dps-ros-bridge and rosbridge"
        ) from error


class RclpyTransport:
    """See `Transport`. There is no connection that could be lost: it is connected until it is closed.

    Args:
        node: an rclpy node; a lifecycle node, too.

    Raises:
        ImportError: rclpy is not installed.
    """

    ros = 2

    def __init__(self, node: Any) -> None:
        self._node = node
        self._qos = ros2_module("rclpy.qos")
        self._find = ros2_module("rosidl_runtime_py.utilities")
        self._group = ros2_module("rclpy.callback_groups").MutuallyExclusiveCallbackGroup()
        self._lock = threading.Lock()
        self._open = True
        self._made: list[tuple[Callable[[Any], Any], Any]] = []
        self._problem_callbacks: list[Callable[[str, str], None]] = []

    @property
    def connected(self) -> bool:
        return self._open

    def on_connect(self, callback: Callable[[], None]) -> None:
        callback()

    def on_disconnect(self, callback: Callable[[str], None]) -> None:
        """Never called: see the class."""

    def on_problem(self, callback: Callable[[str, str], None]) -> None:
        self._problem_callbacks.append(callback)

    def subscribe(
        self,
        topic: str,
        type: str,
        callback: Callable[[Message, float], None],
        *,
        queue_length: int = 1,
        throttle_ms: int = 0,
    ) -> None:
        newest = [-float("inf")]

        def receive(message: Any) -> None:
            received = self.now()
            # Of a clock that was set back, as at a simulation's reset, the next one is taken.
            if 0 <= received - newest[0] < throttle_ms / 1000:
                return
            newest[0] = received
            try:
                callback(as_dict(message), received)
            except Exception as error:
                self._tell(f"{topic}: {error}")

        qos = self._profile(queue_length, self._qos.ReliabilityPolicy.BEST_EFFORT)
        kind = self._find.get_message(type_name(type, self.ros))
        made = self._node.create_subscription(kind, topic, receive, qos, callback_group=self._group)
        self._made.append((self._node.destroy_subscription, made))

    def advertise(self, topic: str, type: str, *, queue_length: int = 1) -> Callable[[Message], bool]:
        kind = self._find.get_message(type_name(type, self.ros))
        qos = self._profile(queue_length, self._qos.ReliabilityPolicy.RELIABLE)
        publisher = self._node.create_publisher(kind, topic, qos)
        self._made.append((self._node.destroy_publisher, publisher))

        def publish(message: Message) -> bool:
            filled = fill(kind(), message, self._find.get_message)
            with self._lock:  # not while it is closed, which destroys the publisher
                if self._open:
                    publisher.publish(filled)
                return self._open

        return publish

    def advertise_service(self, name: str, type: str, handler: ServiceHandler) -> None:
        kind = self._find.get_service(type_name(type, self.ros, "srv"))

        def answer(request: Any, response: Any) -> Any:
            try:
                return fill(response, handler(as_dict(request)), self._find.get_message)
            except Exception as error:
                self._tell(f"service {name}: {error}")
                return response

        made = self._node.create_service(kind, name, answer, callback_group=self._group)
        self._made.append((self._node.destroy_service, made))

    def now(self) -> float:
        return 1e-9 * self._node.get_clock().now().nanoseconds

    def close(self) -> None:
        with self._lock:
            self._open = False
        while self._made:
            destroy, what = self._made.pop()
            destroy(what)

    def _profile(self, depth: int, reliability: Any) -> Any:
        return self._qos.QoSProfile(reliability=reliability, history=self._qos.HistoryPolicy.KEEP_LAST, depth=depth)

    def _tell(self, message: str) -> None:
        for callback in list(self._problem_callbacks):
            callback("bad_message", message)
