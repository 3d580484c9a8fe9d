"""ROS 1 or 2 through rosbridge's websocket."""

from __future__ import annotations

import json
import logging
import threading
import time as _time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from diffpolicy_spec.ros.frames import BadFrame, FrameReader
from diffpolicy_spec.ros.roslib_connection import CLOSE_S, connect, in_reactor_thread, trust
from diffpolicy_spec.ros.transport import Message, ServiceHandler, type_name

__all__ = ["RoslibTransport"]

FLUSH_S = 0.5
UNADVERTISE_S = 1.2
"""For a service, which ROS 1's rosbridge takes a second to withdraw."""

BARRIER = "/rosapi/get_time"
"""A service whose answer, or the answer that there is none, says that all that was sent before has been read: what
rosbridge has not read when a connection ends it throws away."""

LOGGER = logging.getLogger("diffpolicy_spec.ros")


@dataclass(frozen=True)
class _Subscription:
    type: str
    callback: Callable[[Message, float], None]
    queue_length: int
    throttle_ms: int


class RoslibTransport:
    """A connection to a rosbridge server; see `Transport`. It is made, and made again, in the background.

    Args:
        url: as ws://127.0.0.1:9090 or wss://host:443/path; a wss server's certificate is verified.
        ros: 1 or 2.
        headers: more HTTP headers of the handshake.
        tls_ca: PEM file of the certificates a wss server's has to be signed by; None: those the system trusts.
        max_message_bytes: a larger message is not read: a fragmented one is dropped, any other ends the connection.
        ping_s, pong_s: the server is pinged every ping_s; one that is silent for ping_s + pong_s is gone, and one that
            talks but answers no ping for three times pong_s.
        backoff_s: (first, longest) wait before connecting again.

    Raises:
        ValueError: no url of a websocket, or tls_ca has no certificate.
        OSError: tls_ca cannot be read.
        ImportError: roslibpy is not installed.
        RuntimeError: the reactor was stopped by somebody else.
    """

    def __init__(
        self,
        url: str,
        ros: int = 2,
        *,
        headers: Mapping[str, str] | None = None,
        tls_ca: str | None = None,
        max_message_bytes: int = 8 << 20,
        ping_s: float = 1.0,
        pong_s: float = 2.0,
        backoff_s: tuple[float, float] = (0.2, 5.0),
    ) -> None:
        type_name("std_msgs/Header", ros)  # refuses other versions
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ValueError(f"{url!r} is no websocket: write ws://HOST:PORT, rosbridge listens on 9090")
        self.ros, self.url = ros, url
        self._max_bytes = max_message_bytes
        self._subscriptions: dict[str, _Subscription] = {}
        self._topics: dict[str, tuple[str, int]] = {}
        self._services: dict[str, tuple[str, ServiceHandler]] = {}
        self._connect_callbacks: list[Callable[[], None]] = []
        self._disconnect_callbacks: list[Callable[[str], None]] = []
        self._problem_callbacks: list[Callable[[str, str], None]] = []
        self._protocol: Any = None
        self._closed = False
        self._gone = threading.Event()
        self._gone.set()
        self._flushed = threading.Event()
        self._unreachable = False
        context = trust(parts.hostname, tls_ca) if parts.scheme == "wss" else None
        self._reactor, self._factory = connect(
            self, url, max_message_bytes, context, headers, ping_s, pong_s, backoff_s
        )

    # Of Transport

    @property
    def connected(self) -> bool:
        return self._protocol is not None

    def on_connect(self, callback: Callable[[], None]) -> None:
        def add() -> None:
            self._connect_callbacks.append(callback)
            if self._protocol is not None:
                callback()

        self.in_reactor(add)

    def on_disconnect(self, callback: Callable[[str], None]) -> None:
        self._disconnect_callbacks.append(callback)

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
        made = _Subscription(type, callback, queue_length, throttle_ms)

        def add() -> None:
            self._subscriptions[topic] = made
            self._send(self._subscribe(topic, made))

        self.in_reactor(add)

    def advertise(self, topic: str, type: str, *, queue_length: int = 1) -> Callable[[Message], bool]:
        def add() -> None:
            self._topics[topic] = type, queue_length
            self._send(self._advertise(topic, type, queue_length))

        self.in_reactor(add)

        def publish(message: Message) -> bool:
            return self._send({"op": "publish", "topic": topic, "msg": message})

        return publish

    def advertise_service(self, name: str, type: str, handler: ServiceHandler) -> None:
        def add() -> None:
            self._services[name] = type, handler
            self._send(self._offer(name, type))

        self.in_reactor(add)

    def now(self) -> float:
        return _time.time()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True

        def withdraw() -> None:
            for topic in self._subscriptions:
                self._send({"op": "unsubscribe", "id": f"subscribe:{topic}", "topic": topic})
            for topic in self._topics:
                self._send({"op": "unadvertise", "id": f"advertise:{topic}", "topic": topic})
            for name in self._services:
                self._send({"op": "unadvertise_service", "service": name})

        def end() -> None:
            if self._protocol is not None:
                self._protocol.sendClose()
            elif self._factory.connector is not None:
                self._factory.connector.disconnect()

        self.in_reactor(self._factory.stopTrying)
        if in_reactor_thread():
            withdraw()
            end()
            return
        # What was published last is read before the connection ends; a server that is gone is not waited for.
        there = self._flush(FLUSH_S)
        self.in_reactor(withdraw)
        if there:
            self._flush(FLUSH_S + (UNADVERTISE_S * len(self._services) if self.ros == 1 else 0))
        self.in_reactor(end)
        self._gone.wait(CLOSE_S)
        self.in_reactor(lambda: self._protocol is not None and self._protocol.dropConnection(abort=True))

    # In the reactor's thread

    def opened(self, protocol: Any) -> None:
        """roslibpy has connected."""
        if self._closed:
            protocol.sendClose()
            return
        self._gone.clear()
        self._protocol, self._unreachable = protocol, False
        for topic, (type_, queue) in self._topics.items():
            self._send(self._advertise(topic, type_, queue))
        for name, (type_, _) in self._services.items():
            self._send(self._offer(name, type_))
        for topic, made in self._subscriptions.items():
            self._send(self._subscribe(topic, made))
        for callback in list(self._connect_callbacks):
            self._guarded(callback)

    def unreachable(self, reason: str) -> None:
        """It could not connect; it goes on trying."""
        if not self._unreachable and not self._closed:
            self._unreachable = True
            self._problem(f"{self.url} cannot be reached: {reason}", "connection_lost")

    def lost(self, protocol: Any, reason: str) -> None:
        """The connection has ended."""
        if protocol is not self._protocol:
            return
        self._protocol = None
        self._gone.set()
        self._flushed.set()
        if protocol.wasMaxMessagePayloadSizeExceeded:
            self._problem(f"a message of more than {self._max_bytes} bytes: the connection is made anew")
        if not self._closed:
            for callback in list(self._disconnect_callbacks):
                self._guarded(callback, reason)

    def received(self, reader: FrameReader, payload: bytes, binary: bool) -> None:
        """A frame of the server, whatever is in it."""
        try:
            if binary:
                raise BadFrame("a binary frame, which was not asked for")
            frame = reader.read(payload)
            if frame is not None:
                self._handle(frame)
        except BadFrame as error:
            self._problem(str(error))
        except Exception as error:  # the reactor must not see one, nor must the connection end by it
            LOGGER.exception("a message of rosbridge could not be handled")
            self._problem(f"{type(error).__name__}: {error}")

    def _handle(self, frame: Mapping[str, Any]) -> None:
        op = frame["op"]
        if op == "publish":
            topic = frame.get("topic")
            made = self._subscriptions.get(topic) if isinstance(topic, str) else None
            message = frame.get("msg")
            if made is None:
                raise BadFrame(f"a message of {str(topic)[:100]!r}, which was not subscribed to")
            if not isinstance(message, dict):
                raise BadFrame(f"{topic}: no message, but {type(message).__name__}")
            made.callback(message, self.now())
        elif op == "call_service":
            self._answer(frame)
        elif op == "status":
            if frame.get("level") in ("error", "warning") and not self._closed:
                self._problem(f"rosbridge says: {str(frame.get('msg'))[:500]}")
        elif op == "service_response" and frame.get("service") == BARRIER:
            self._flushed.set()
        else:
            raise BadFrame(f"operation {op[:50]!r}, which was not asked for")

    def _answer(self, frame: Mapping[str, Any]) -> None:
        name = frame.get("service")
        found = self._services.get(name) if isinstance(name, str) else None
        if found is None:
            raise BadFrame(f"service {str(name)[:100]!r} is called, which is not offered")
        args = frame.get("args")
        answer: dict[str, Any] = {"op": "service_response", "service": name, "result": True}
        answer["values"] = dict(found[1](args if isinstance(args, dict) else {}))
        if isinstance(frame.get("id"), str | int):
            answer["id"] = frame["id"]
        self._send(answer)

    # Parts

    def _subscribe(self, topic: str, made: _Subscription) -> dict[str, Any]:
        return {
            "op": "subscribe",
            "id": f"subscribe:{topic}",
            "topic": topic,
            "type": type_name(made.type, self.ros),
            "queue_length": made.queue_length,
            "throttle_rate": made.throttle_ms,
            # What is larger comes in pieces, and can be dropped without losing the connection. In JSON within JSON
            # quotes take two bytes.
            "fragment_size": self._max_bytes // 2,
            "compression": "none",
        }

    def _advertise(self, topic: str, type_: str, queue: int) -> dict[str, Any]:
        name = type_name(type_, self.ros)
        return {"op": "advertise", "id": f"advertise:{topic}", "topic": topic, "type": name, "queue_size": queue}

    def _offer(self, name: str, type_: str) -> dict[str, Any]:
        return {"op": "advertise_service", "service": name, "type": type_name(type_, self.ros, "srv")}

    def _send(self, frame: Mapping[str, Any]) -> bool:
        protocol = self._protocol
        if protocol is None:
            return False
        # Strict JSON: NaN is none, and a server that takes it would hand it to a robot.
        protocol.send_message(json.dumps(frame, allow_nan=False).encode())
        return True

    def _flush(self, timeout: float) -> bool:
        """Whether the server has read, within `timeout` s, what was sent."""
        self._flushed.clear()
        if not self._send({"op": "call_service", "id": "barrier", "service": BARRIER}):
            return False
        return self._flushed.wait(timeout) and self.connected

    def _problem(self, message: str, kind: str = "bad_message") -> None:
        for callback in list(self._problem_callbacks):
            self._guarded(callback, kind, message)

    def _guarded(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            callback(*args)
        except Exception:
            LOGGER.exception("a callback of the ROS bridge raised")

    def in_reactor(self, what: Callable[[], object]) -> None:
        """Call in the reactor's thread, at once if this is it."""
        if in_reactor_thread():
            what()
        else:
            self._reactor.callFromThread(what)
