"""A ROS graph in one process: topics of one type each, with what was latched, and services. Knows no sockets."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from rosbridge_types import MESSAGES, SERVICES, TypeMismatch, canonical, conform, conform_fields, stamp

__all__ = ["Graph", "GraphError", "Service", "Topic"]

KEPT = 10_000
"""Messages of a topic that are kept for tests to look at."""

Message = dict[str, Any]


class GraphError(RuntimeError):
    """What was asked of the graph cannot be."""


@dataclass
class Topic:
    """A topic. kept: what clients published, with the time (monotonic) it came; latched: what late subscribers get."""

    kind: str
    subscribers: dict[object, Callable[[Message], None]] = field(default_factory=dict)
    publishers: set[object] = field(default_factory=set)
    latched: Message | None = None
    kept: deque[tuple[float, Message]] = field(default_factory=lambda: deque(maxlen=KEPT))


@dataclass
class Service:
    """A service. answer: of the request's fields, the response's; owner: whose it is."""

    kind: str
    answer: Callable[[Message], Awaitable[Message]]
    owner: object


class Graph:
    """Everything that is advertised. All methods are called in the server's thread."""

    def __init__(self, ros: int) -> None:
        self.ros = ros
        self.topics: dict[str, Topic] = {}
        self.services: dict[str, Service] = {}
        self._add_rosapi()

    def topic(self, name: str, kind: str | None) -> Topic:
        """The topic of that name, made where a type is given.

        Raises:
            GraphError: it is of another type, or there is none and no type is given; TypeMismatch: no such type.
        """
        kind = canonical(kind, self.ros) if kind is not None else None
        if kind is not None and kind not in MESSAGES:
            raise TypeMismatch(f"Unable to import {kind}: the test server does not know it")
        found = self.topics.get(name)
        if found is None:
            if kind is None:
                raise GraphError(f"Cannot infer topic type for topic {name} as it is not yet advertised")
            found = self.topics[name] = Topic(kind)
        if kind is not None and found.kind != kind:
            raise GraphError(f"Tried to register topic {name} with type {kind} but it is already established with type "
                             f"{found.kind}")  # fmt: skip
        return found

    def publish(self, name: str, message: Any, *, latch: bool = False, keep: bool = False) -> None:
        """Give a message to all subscribers of the topic; keep: a client published it.

        Raises:
            GraphError: no such topic; TypeMismatch: the message is not of its type.
        """
        topic = self.topic(name, None)
        full = conform(message, topic.kind, self.ros)
        if latch:
            topic.latched = full
        if keep:
            topic.kept.append((time.monotonic(), full))
        for subscriber in list(topic.subscribers.values()):
            subscriber(full)

    def subscribe(self, name: str, kind: str | None, owner: object, callback: Callable[[Message], None]) -> None:
        """Have `callback` called with what is published, beginning with what is latched.

        Raises:
            as `topic`.
        """
        topic = self.topic(name, kind)
        topic.subscribers[owner] = callback
        if topic.latched is not None:
            callback(topic.latched)

    def forget(self, owner: object) -> None:
        """Whatever is of that owner is gone."""
        for topic in self.topics.values():
            topic.subscribers.pop(owner, None)
            topic.publishers.discard(owner)
        for name in [name for name, service in self.services.items() if service.owner is owner]:
            del self.services[name]

    def offer(self, name: str, kind: str, answer: Callable[[Message], Awaitable[Message]], owner: object) -> None:
        """Advertise a service; one of the same name is replaced.

        Raises:
            TypeMismatch: no such type.
        """
        kind = canonical(kind, self.ros)
        if kind not in SERVICES:
            raise TypeMismatch(f"Unable to import {kind}: the test server does not know it")
        self.services[name] = Service(kind, answer, owner)

    async def call(self, name: str, args: Any) -> Message:
        """Call a service.

        Raises:
            GraphError: there is none; TypeMismatch: a request or response that is not of its type; whatever it raises.
        """
        if name not in self.services:
            raise GraphError(f"Service {name} does not exist")
        service = self.services[name]
        request, response = SERVICES[service.kind]
        if isinstance(args, list):
            args = dict(zip(request, args, strict=False))
        full = conform_fields(args or {}, request, self.ros, root=service.kind)
        return conform_fields(await service.answer(full), response, self.ros, root=service.kind)

    def _add_rosapi(self) -> None:
        async def get_time(_: Message) -> Message:
            return {"time": stamp(time.time(), self.ros)}

        async def topics(_: Message) -> Message:
            return {"topics": list(self.topics), "types": [topic.kind for topic in self.topics.values()]}

        async def topic_type(request: Message) -> Message:
            found = self.topics.get(request["topic"])
            return {"type": "" if found is None else found.kind}

        for name, answer in (("GetTime", get_time), ("Topics", topics), ("TopicType", topic_type)):
            path = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).strip("_")
            self.offer(f"/rosapi/{path}", f"rosapi/{name}", answer, self)


async def in_thread(handler: Callable[[Message], Message], request: Message) -> Message:
    """A plain function as a service's answer."""
    return await asyncio.to_thread(handler, request)
