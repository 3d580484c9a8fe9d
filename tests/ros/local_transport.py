"""A transport without a wire: what is published is kept, what is said is heard at once."""

from __future__ import annotations

from collections import defaultdict


class LocalTransport:
    """Says times of a clock that stands until it is moved."""

    def __init__(self, ros: int = 2) -> None:
        self.ros, self.time, self.connected = ros, 1000.0, True
        self.subscriptions, self.services, self.types = {}, {}, {}
        self.sent = defaultdict(list)
        self._connect, self._disconnect, self._problem = [], [], []

    def on_connect(self, callback) -> None:
        self._connect.append(callback)
        if self.connected:
            callback()

    def on_disconnect(self, callback) -> None:
        self._disconnect.append(callback)

    def on_problem(self, callback) -> None:
        self._problem.append(callback)

    def subscribe(self, topic, type, callback, *, queue_length=1, throttle_ms=0) -> None:
        self.subscriptions[topic], self.types[topic] = callback, type

    def advertise(self, topic, type, *, queue_length=1):
        self.types[topic] = type

        def publish(message) -> bool:
            if self.connected:
                self.sent[topic].append(message)
            return self.connected

        return publish

    def advertise_service(self, name, type, handler) -> None:
        self.services[name] = handler

    def now(self) -> float:
        return self.time

    def close(self) -> None:
        self.connected = False

    # What the world does.

    def say(self, topic, message) -> None:
        self.subscriptions[topic](message, self.time)

    def cut(self) -> None:
        self.connected = False
        for callback in self._disconnect:
            callback("cut")

    def mend(self) -> None:
        self.connected = True
        for callback in self._connect:
            callback()
