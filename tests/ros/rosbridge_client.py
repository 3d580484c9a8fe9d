"""One client of the test server: rosbridge's operations, as ROSBRIDGE_PROTOCOL.md 2.1 describes them.

Subscriptions of one client to one topic are merged to the lowest throttle_rate, queue_length and fragment_size, as the
published server does. A queue gives its messages at throttle_rate and loses its oldest; without one, what comes before
its time is dropped.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from rosbridge_graph import Graph, GraphError
from rosbridge_types import as_json

__all__ = ["Client", "Settings", "compress_png"]

LEVELS = ("none", "error", "warning", "info")
OUTBOX = 1000
"""Messages that wait for a client who does not read; more are dropped."""


@dataclass(frozen=True)
class Settings:
    """Of a subscription; throttle_rate: ms."""

    throttle_rate: int = 0
    queue_length: int = 0
    fragment_size: int | None = None
    compression: str = "none"


class Subscription:
    """A client's subscriptions to one topic, by their ids."""

    def __init__(self, client: Client, topic: str) -> None:
        self.client, self.topic = client, topic
        self.by_id: dict[str | None, Settings] = {}
        self.settings = Settings()
        self._last = -float("inf")
        self._queue: deque[dict[str, Any]] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def merge(self) -> None:
        """The settings that serve all of them."""
        every = list(self.by_id.values())
        fragments = [one.fragment_size for one in every if one.fragment_size is not None]
        self.settings = Settings(
            min(one.throttle_rate for one in every),
            min(one.queue_length for one in every),
            min(fragments, default=None),
            "png" if any(one.compression == "png" for one in every) else "none",
        )
        self._queue = deque(self._queue, maxlen=self.settings.queue_length or None)
        if self.settings.queue_length and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())

    def put(self, message: dict[str, Any]) -> None:
        """A message was published."""
        if self.settings.queue_length:
            self.client.counts["queue_full"] += len(self._queue) == self._queue.maxlen
            self._queue.append(message)
            self._arrived.set()
        elif self._wait() > 0:
            self.client.counts["throttled"] += 1
        else:
            self._last = time.monotonic()
            self.client.post(self._frame(message), self.settings)

    def end(self) -> None:
        """No more of it."""
        if self._task is not None:
            self._task.cancel()

    def _wait(self) -> float:
        return self._last + self.settings.throttle_rate / 1000 - time.monotonic()

    def _frame(self, message: dict[str, Any]) -> dict[str, Any]:
        return {"op": "publish", "topic": self.topic, "msg": as_json(message)}

    async def _drain(self) -> None:
        while True:
            await self._arrived.wait()
            await self.client.flushed()
            if (wait := self._wait()) > 0:
                await asyncio.sleep(wait)
            if self._queue:
                self._last = time.monotonic()
                self.client.post(self._frame(self._queue.popleft()), self.settings)
            if not self._queue:
                self._arrived.clear()


class Client:
    """What a connected client advertised, subscribed to and is owed. `outbox` is sent by whoever has the socket.

    Args:
        graph: where it publishes.
        log: takes (level, text) of everything a status message would tell.
        delay: gives s, how late messages go out.
        send_status: whether status messages are sent at all. The protocol has them; rosbridge's servers only log.
    """

    def __init__(self, graph: Graph, log: Any, delay: Any, *, send_status: bool = True) -> None:
        self.graph, self._log, self._delay, self._send_status = graph, log, delay, send_status
        self.subscriptions: dict[str, Subscription] = {}
        self.advertised: dict[str, set[str | None]] = {}
        self.counts: Counter[str] = Counter()
        self.outbox: asyncio.Queue[str] = asyncio.Queue(OUTBOX)
        self.fragment_size: int | None = None
        self._level = "error"
        self._fragments: dict[str, dict[int, str]] = {}
        self._requests: dict[str, tuple[str, asyncio.Future[dict[str, Any]]]] = {}
        self._ids = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    # What goes out

    def post(self, frame: dict[str, Any], settings: Settings = Settings()) -> None:
        """Send a frame, in fragments where it is larger than the client takes."""
        text = json.dumps(frame)
        if settings.compression == "png":
            text = json.dumps({"op": "png", "data": compress_png(text)})
        size = settings.fragment_size or self.fragment_size
        for part in [text] if size is None or len(text) <= size else self._cut(text, size):
            if delay := self._delay():
                asyncio.get_running_loop().call_later(delay, self._put, part)
            else:
                self._put(part)

    async def flushed(self) -> None:
        """Wait until the client has taken what was sent."""
        await self.outbox.join()

    def _put(self, text: str) -> None:
        try:
            self.outbox.put_nowait(text)
        except asyncio.QueueFull:
            self.counts["dropped"] += 1

    def _cut(self, text: str, size: int) -> list[str]:
        parts = [text[start : start + size] for start in range(0, len(text), size)]
        name = str(next(self._ids))
        total = (len(text) - 1) / size + 1  # not whole, as rosbridge's servers have it
        return [
            json.dumps({"op": "fragment", "id": name, "data": part, "num": num, "total": total})
            for num, part in enumerate(parts)
        ]

    def status(self, level: str, text: str, name: Any = None) -> None:
        """Tell the client, if it wants to hear of this."""
        self._log(level, text)
        self.counts[level] += 1
        if self._send_status and LEVELS.index(level) <= LEVELS.index(self._level):
            self.post({"op": "status", "level": level, "msg": text} | ({} if name is None else {"id": name}))

    # What comes in

    def receive(self, text: str | bytes) -> None:
        """A frame came; whatever is wrong with it is told by a status message."""
        self.counts["received"] += 1
        name = None
        try:
            if isinstance(text, bytes):
                raise GraphError("binary messages are not taken")
            frame = json.loads(text)
            if not isinstance(frame, dict) or "op" not in frame:
                raise GraphError("Received a message without an op")
            name = frame.get("id")
            operation = getattr(self, f"_op_{frame['op']}", None)
            if operation is None:
                raise GraphError(f"Unknown operation: {frame['op']}")
            if isinstance(frame.get("fragment_size"), int):
                self.fragment_size = frame["fragment_size"]
            operation(frame)
        except (GraphError, ValueError, TypeError, KeyError, RecursionError) as error:
            self.status("error", f"{type(error).__name__}: {error}", name)

    def end(self) -> None:
        """The client is gone, and all that was its."""
        self.graph.forget(self)
        for subscription in self.subscriptions.values():
            subscription.end()
        for task in self._tasks:
            task.cancel()
        for service, answer in self._requests.values():
            if not answer.done():
                answer.set_exception(GraphError(f"Service {service}: its client is gone"))

    def _op_set_level(self, frame: dict[str, Any]) -> None:
        if frame.get("level") in LEVELS:
            self._level = frame["level"]

    def _op_advertise(self, frame: dict[str, Any]) -> None:
        topic, kind = _text(frame, "topic"), _text(frame, "type")
        self.graph.topic(topic, kind).publishers.add(self)
        self.advertised.setdefault(topic, set()).add(frame.get("id"))

    def _op_unadvertise(self, frame: dict[str, Any]) -> None:
        topic = _text(frame, "topic")
        if topic not in self.advertised:
            self.status("warning", f"{topic} is not advertised by this client", frame.get("id"))
            return
        left = self.advertised[topic] - ({frame["id"]} if "id" in frame else self.advertised[topic])
        self.advertised[topic] = left
        if not left:
            del self.advertised[topic]
            self.graph.topics[topic].publishers.discard(self)

    def _op_publish(self, frame: dict[str, Any]) -> None:
        topic, message = _text(frame, "topic"), frame.get("msg", {})
        self.graph.publish(topic, message, latch=bool(frame.get("latch")), keep=True)
        self.counts["published"] += 1

    def _op_subscribe(self, frame: dict[str, Any]) -> None:
        topic, kind = _text(frame, "topic"), _text(frame, "type", None)
        compression = _text(frame, "compression", "none") or "none"
        if compression not in ("none", "png"):
            raise GraphError(f"compression {compression} is not spoken here")
        numbers = {key: _whole(frame, key, 0) for key in ("throttle_rate", "queue_length")}
        settings = Settings(**numbers, fragment_size=frame.get("fragment_size"), compression=compression)
        found = self.subscriptions.get(topic) or Subscription(self, topic)
        found.by_id[frame.get("id")] = settings
        found.merge()
        self.graph.subscribe(topic, kind, self, found.put)
        self.subscriptions[topic] = found
        self.status("info", f"Subscribed to {topic}", frame.get("id"))

    def _op_unsubscribe(self, frame: dict[str, Any]) -> None:
        topic = _text(frame, "topic")
        found = self.subscriptions.get(topic)
        if found is None:
            return
        if frame.get("id") is None:
            found.by_id.clear()
        found.by_id.pop(frame.get("id"), None)
        if found.by_id:
            found.merge()
        else:
            found.end()
            del self.subscriptions[topic]
            self.graph.topics[topic].subscribers.pop(self, None)

    def _op_fragment(self, frame: dict[str, Any]) -> None:
        name, total, num = str(frame["id"]), _whole(frame, "total"), _whole(frame, "num")
        parts = self._fragments.setdefault(name, {})
        parts[num] = _text(frame, "data") or ""
        if len(parts) == total:
            del self._fragments[name]
            self.receive("".join(parts[num] for num in range(total)))

    def _op_advertise_service(self, frame: dict[str, Any]) -> None:
        service, kind = _text(frame, "service"), _text(frame, "type")
        if service in self.graph.services:
            self.status("warning", f"Duplicate service advertised. Overwriting {service}.")

        async def answer(args: dict[str, Any]) -> dict[str, Any]:
            name = f"service_request:{service}:{next(self._ids)}"
            future = asyncio.get_running_loop().create_future()
            self._requests[name] = service, future
            self.post({"op": "call_service", "id": name, "service": service, "args": as_json(args)})
            try:
                return await future
            finally:
                del self._requests[name]

        self.graph.offer(service, kind, answer, self)

    def _op_unadvertise_service(self, frame: dict[str, Any]) -> None:
        service = _text(frame, "service")
        found = self.graph.services.get(service)
        if found is None or found.owner is not self:
            raise GraphError(f"Service {service} has not been advertised via rosbridge, can't unadvertise.")
        del self.graph.services[service]
        for name, answer in self._requests.values():
            if name == service and not answer.done():
                answer.set_exception(GraphError(f"Service {service} was unadvertised"))

    def _op_service_response(self, frame: dict[str, Any]) -> None:
        service, values = _text(frame, "service"), frame.get("values", {})
        if not isinstance(frame.get("result"), bool):
            raise GraphError(f"service_response needs result, true or false, got {frame.get('result')!r}")
        if not isinstance(values, dict):
            raise GraphError("service_response needs values as a JSON object")
        if frame.get("id") not in self._requests:
            raise GraphError(f"Service {service}: no request {frame.get('id')!r} waits for an answer")
        _, answer = self._requests[frame["id"]]
        if not answer.done():
            answer.set_result(values)

    def _op_call_service(self, frame: dict[str, Any]) -> None:
        service, name = _text(frame, "service"), frame.get("id")
        settings = Settings(fragment_size=frame.get("fragment_size"))

        async def call() -> None:
            response: dict[str, Any] = {"op": "service_response", "service": service}
            try:
                values: Any = as_json(await self.graph.call(service, frame.get("args", {})))
                result = True
            except Exception as error:  # whatever the service raises is the caller's to hear
                self.status("error", f"call_service {type(error).__name__}: {error}", name)
                values, result = str(error), False
            response |= {"values": values, "result": result} | ({} if name is None else {"id": name})
            self.post(response, settings)

        task = asyncio.get_running_loop().create_task(call())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _text(frame: dict[str, Any], key: str, *default: str | None) -> Any:
    if key not in frame and default:
        return default[0]
    if not isinstance(frame.get(key), str):
        raise GraphError(f"{frame['op']}: {key} must be a string, got {frame.get(key)!r}")
    return frame[key]


def _whole(frame: dict[str, Any], key: str, *default: int) -> int:
    if key not in frame and default:
        return default[0]
    value = frame.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise GraphError(f"{frame['op']}: {key} must be a whole number, got {value!r}")
    return value


def compress_png(text: str) -> str:
    """A text as the pixels of a PNG, padded with line ends; in base64 (protocol, section 3.1.2)."""
    raw = text.encode()
    width = max(int((len(raw) / 3) ** 0.5), 1)
    height = -(-len(raw) // (3 * width))
    pixels = np.frombuffer(raw.ljust(3 * width * height, b"\n"), np.uint8).reshape(height, width, 3)
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "png")
    return base64.standard_b64encode(packed.getvalue()).decode("ascii")
