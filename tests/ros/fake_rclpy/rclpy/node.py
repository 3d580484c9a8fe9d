"""Nodes, topics, services, parameters, the clock."""

from __future__ import annotations

import copy
import threading
import time
from types import SimpleNamespace
from typing import Any

import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.qos import QoSProfile, ReliabilityPolicy

_nodes: list[Node] = []


class Node:
    """A node of the process's graph. `logged`: what its logger was told."""

    def __init__(self, node_name: str, **_: Any) -> None:
        assert rclpy.ok(), "rclpy.init() has not been called"
        self.name = node_name
        self.executor: Any = None
        self.logged: list[tuple[str, str]] = []
        self.subscriptions: list[Any] = []
        self.publishers: list[Any] = []
        self.services: list[Any] = []
        self.default_callback_group = MutuallyExclusiveCallbackGroup()
        self.time_offset = 0.0
        self._parameters: dict[str, Any] = {}
        _nodes.append(self)

    def get_logger(self) -> Any:
        def log(level: str) -> Any:
            return lambda text: self.logged.append((level, text))

        return SimpleNamespace(**{level: log(level) for level in ("debug", "info", "warning", "error", "fatal")})

    def get_clock(self) -> Any:
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=int(1e9 * (time.time() + self.time_offset))))

    def get_name(self) -> str:
        return self.name

    # Parameters

    def declare_parameter(self, name: str, value: Any = None, descriptor: Any = None) -> Any:
        given = rclpy._overrides.get(name, value)
        if type(given) is not type(value):
            raise TypeError(f"parameter {name} has type {type(value).__name__}, and {given!r} is not of it")
        self._parameters[name] = given
        return SimpleNamespace(name=name, value=given)

    def get_parameter(self, name: str) -> Any:
        return SimpleNamespace(name=name, value=self._parameters[name])

    # Topics

    def create_publisher(self, msg_type: type, topic: str, qos_profile: QoSProfile, **_: Any) -> Any:
        made = Publisher(self, msg_type, topic, qos_profile)
        self.publishers.append(made)
        return made

    def create_subscription(
        self, msg_type: type, topic: str, callback: Any, qos_profile: QoSProfile, *, callback_group: Any = None
    ) -> Any:
        group = callback_group or self.default_callback_group
        made = SimpleNamespace(type=msg_type, topic=topic, callback=callback, qos=qos_profile, node=self, group=group)
        self.subscriptions.append(made)
        return made

    def destroy_subscription(self, subscription: Any) -> bool:
        self.subscriptions.remove(subscription)
        return True

    def destroy_publisher(self, publisher: Any) -> bool:
        self.publishers.remove(publisher)
        publisher.destroyed = True
        return True

    # Services

    def create_service(self, srv_type: type, srv_name: str, callback: Any, *, callback_group: Any = None) -> Any:
        group = callback_group or self.default_callback_group
        made = SimpleNamespace(type=srv_type, name=srv_name, callback=callback, group=group)
        self.services.append(made)
        return made

    def destroy_service(self, service: Any) -> bool:
        self.services.remove(service)
        return True

    def destroy_node(self) -> None:
        _nodes.remove(self)

    # Timers

    def create_timer(self, timer_period_sec: float, callback: Any) -> Any:
        made = Timer(self, timer_period_sec, callback)
        made.start()
        return made

    def destroy_timer(self, timer: Any) -> bool:
        timer.ended.set()
        return True

    def do(self, callback: Any, group: Any = None) -> None:
        """Have a thread that spins call it."""
        assert self.executor is not None, "nobody spins this node"
        self.executor.work.put((group or self.default_callback_group, callback))


class Timer(threading.Thread):
    """Has a callback called in the executor, again and again."""

    def __init__(self, node: Node, period: float, callback: Any) -> None:
        super().__init__(daemon=True)
        self.node, self.period, self.callback, self.ended = node, period, callback, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(self.period):
            self.node.do(lambda: self.ended.is_set() or self.callback())


class Publisher:
    """Publishes to all subscriptions of its topic, type and reliability."""

    def __init__(self, node: Node, msg_type: type, topic: str, qos: QoSProfile) -> None:
        self.node, self.type, self.topic, self.qos, self.destroyed = node, msg_type, topic, qos, False

    def publish(self, msg: Any) -> None:
        if self.destroyed:
            raise RuntimeError("cannot use Destroyable because destruction was requested")
        if not isinstance(msg, self.type):
            raise TypeError(f"Expected {self.type}, got {type(msg)}")
        for node in list(_nodes):
            for found in list(node.subscriptions):
                fits = (
                    self.qos.reliability == ReliabilityPolicy.RELIABLE or self.qos.reliability == found.qos.reliability
                )
                if found.topic == self.topic and found.type is self.type and fits:
                    sent = copy.deepcopy(msg)
                    node.do(
                        lambda found=found, sent=sent: found in found.node.subscriptions and found.callback(sent),
                        found.group,
                    )


def call(name: str, **fields: Any) -> Any:
    """Call a service of any node and wait for its answer (for tests; rclpy has clients for this)."""
    [(node, found)] = [(node, found) for node in _nodes for found in node.services if found.name == name]
    answer, done = [], threading.Event()

    def run() -> None:
        answer.append(found.callback(found.type.Request(**fields), found.type.Response()))
        done.set()

    node.do(run, found.group)
    assert done.wait(20), f"{name} does not answer"
    return answer[0]
