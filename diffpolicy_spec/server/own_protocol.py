"""A connection of our own client: requests with ids, any number under way, errors that cost no connection."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.server.codec import CodecError, pack
from diffpolicy_spec.server.connection import POLICY_VIOLATION, RESTART, Connection
from diffpolicy_spec.server.messages import SUBPROTOCOL, as_id
from diffpolicy_spec.server.observations import RequestError, read_observations
from diffpolicy_spec.server.service import Asked

__all__ = ["OwnConnection"]


class OwnConnection(Connection):
    """See `messages` for what is said."""

    protocol = SUBPROTOCOL

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._asked: dict[int, Asked] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def converse(self) -> None:
        """Read messages; every one is answered, in whatever order."""
        try:
            async for data in self.socket:
                in_time = await self.admitted()
                arrived = time.monotonic()
                try:
                    message = self.decoded(data)
                except CodecError as error:
                    too_many = self.bad()
                    await self._error(None, "bad_message", str(error), counted=True)
                    if too_many:
                        self.closed_for("malformed", f"sent {self._most_bad} messages in a row that cannot be read")
                        await self.close(POLICY_VIOLATION, "too many messages that cannot be read")
                        return
                    continue
                await self._handle(message, in_time, arrived)
        finally:
            self._forget("the connection is closed")
            for task in self._tasks:
                task.cancel()

    async def drain(self) -> None:
        """Answer what is under way, then close."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        await self.close(RESTART, "the server is going down")

    async def policy_changed(self) -> None:
        """Tell the client its name."""
        await self.send(self.service.metadata(self.protocol))

    async def _handle(self, message: Mapping[Any, Any], in_time: bool, arrived: float) -> None:
        id = None
        try:
            try:
                id = as_id(message.get("id"))
            except CodecError as error:
                raise RequestError("bad_request", str(error)) from error
            kind = message.get("type")
            if kind == "infer":
                if not in_time:
                    limits = self.service.config.limits
                    told = f"more than {limits.requests_per_s:g} messages a second, and {limits.burst} at once"
                    raise RequestError("rate_limited", told)
                self._infer(id, message, arrived)
            elif kind == "reset":
                self._forget("the connection was reset")
                self.history.reset()
                await self.send(pack({"type": "reset", "id": id}))
            elif kind == "ping":
                await self.send(pack({"type": "pong", "id": id}))
            else:
                raise RequestError("bad_request", f"type must be infer, reset or ping, got {str(kind)[:100]!r}")
        except RequestError as error:
            await self._error(id, error.kind, str(error))

    def _infer(self, id: int, message: Mapping[Any, Any], arrived: float) -> None:
        service, limits = self.service, self.service.config.limits
        service.metrics.requests.labels(self.protocol).inc()
        unknown = sorted(str(key)[:60] for key in message if key not in _FIELDS)
        if unknown:
            raise RequestError("bad_request", f"a request has {', '.join(_FIELDS)}, not {', '.join(unknown)[:200]}")
        if id in self._asked:
            raise RequestError("bad_request", f"request {id} is under way already")
        obs = message.get("obs")
        strangers = sorted(str(key)[:60] for key in obs if key not in service.names.wanted()) if isinstance(
            obs, dict
        ) else []  # fmt: skip
        if strangers:
            raise RequestError("bad_observation", f"observations have unknown {', '.join(strangers)[:500]}")
        values = read_observations(obs, service.names, service.info, self.history)
        seed, deadline_ms = _seed(message.get("seed")), _deadline(message.get("deadline_ms"))
        committed = _committed(message.get("committed"), service.info)
        since = arrived
        if service.config.supersede:
            for asked in list(self._asked.values()):
                if service.withdraw(asked, "superseded", f"by request {id}", begun=False):
                    since = min(since, asked.job.arrived if asked.job.since is None else asked.job.since)
        if len(self._tasks) >= limits.max_in_flight:
            raise RequestError("queue_full", f"{limits.max_in_flight} requests of this connection are under way")
        asked = service.ask(
            values, client=self.client, arrived=arrived, seed=seed, committed=committed, deadline_ms=deadline_ms,
            since=since,
        )  # fmt: skip
        self._asked[id] = asked
        task = asyncio.create_task(self._answer(id, asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, id: int, asked: Asked) -> None:
        outcome = await asked.outcome
        self._asked.pop(id, None)
        sent = time.monotonic()
        try:
            served = self.service.served(outcome)
        except RequestError as error:
            await self._error(id, error.kind, str(error))
            return
        await self.send(pack({"type": "chunk", "id": id, **served.answer()}))
        self.answered(asked.job.arrived, sent, served.exact)

    async def _error(self, id: int | None, kind: str, message: str, *, counted: bool = False) -> None:
        if not counted:
            self.service.metrics.errors.labels(kind).inc()
        await self.send(pack({"type": "error", "id": id, "error": {"kind": kind, "message": message}}))

    def _forget(self, why: str) -> None:
        for asked in list(self._asked.values()):
            self.service.withdraw(asked, "cancelled", why)


_FIELDS = ("type", "id", "obs", "deadline_ms", "committed", "seed")


def _seed(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise RequestError("bad_request", f"seed must be a whole number of 0 ... 2^63 - 1, got {str(value)[:60]}")
    return value


def _deadline(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise RequestError("bad_request", f"deadline_ms must be a number of 0 or more, got {str(value)[:60]}")
    return float(value)


def _committed(value: Any, info: Any) -> NDArray[np.float64] | None:
    if value is None:
        return None
    most = info.horizon - info.first
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or value.ndim != 2:
        raise RequestError("bad_request", "committed must be an array (n, Da) of numbers")
    if value.shape[1] != info.action_dim or not 0 <= len(value) <= most:
        raise RequestError("bad_request", f"committed must be (0 ... {most}, {info.action_dim}), got {value.shape}")
    actions = value.astype(np.float64)
    if not np.isfinite(actions).all():
        raise RequestError("bad_request", "committed has NaN or infinity")
    return actions if len(actions) else None
