"""What a connection does in either protocol: read at a bounded rate, answer within a bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from diffpolicy_spec.optional import require
from diffpolicy_spec.server.codec import CodecError, unpack
from diffpolicy_spec.server.limits import Bucket
from diffpolicy_spec.server.observations import History
from diffpolicy_spec.server.service import Service

__all__ = ["GOING_AWAY", "INTERNAL_ERROR", "POLICY_VIOLATION", "RESTART", "TRY_LATER", "Connection"]

_LOG = logging.getLogger("diffpolicy_spec.server")

# RFC 6455, 7.4.1, and the registry of close codes.
_TOO_BIG = 1009
GOING_AWAY, POLICY_VIOLATION, INTERNAL_ERROR, RESTART, TRY_LATER = 1001, 1008, 1011, 1012, 1013


class Connection:
    """Of one client.

    Args:
        service: shared by all.
        socket: websockets' connection, its handshake done.
        client: its name, for messages.
    """

    protocol = ""

    def __init__(self, service: Service, socket: Any, client: str) -> None:
        self.service, self.socket, self.client = service, socket, client
        limits = service.config.limits
        self._send_s, self._most_bad = limits.send_s, limits.max_bad_in_a_row
        self._bucket = Bucket(limits.requests_per_s, limits.burst)
        self._bad = 0
        self._gone = require("websockets.exceptions", extra="server").ConnectionClosed
        config = service.config
        self.history = History(config.history, service.info.n_obs_steps, config.history_gap_s)

    async def run(self) -> None:
        """Talk to the client until it goes or has to."""
        metrics = self.service.metrics
        metrics.opened.labels(self.protocol).inc()
        metrics.connections.labels(self.protocol).inc()
        try:
            await self.send(self.service.metadata(self.protocol))
            await self.converse()
        finally:
            metrics.connections.labels(self.protocol).dec()
            said = getattr(self.socket.protocol, "close_sent", None)
            if said is not None and said.code == _TOO_BIG:
                self.closed_for("too_big", f"sent a message that is too large ({said.reason})")

    async def converse(self) -> None:
        """Read and answer; ends when the connection is closed."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Answer what is under way, then close."""
        raise NotImplementedError

    async def policy_changed(self) -> None:
        """The server uses another checkpoint from now on."""

    async def admitted(self) -> bool:
        """Wait for the message's turn; whether it came no faster than allowed."""
        wait = self._bucket.take()
        if wait > 0:
            # Not reading is what holds back a flood: it stays in the client's own buffers.
            await asyncio.sleep(wait)
        return wait == 0

    def decoded(self, data: bytes | str) -> dict[Any, Any]:
        """The map that a message is.

        Raises:
            CodecError: it is none.
        """
        message = unpack(data) if isinstance(data, bytes) else None
        if not isinstance(message, dict):
            found = "text" if isinstance(data, str) else type(message).__name__
            raise CodecError(f"a message must be a msgpack map in a binary frame, got {found}")
        self._bad = 0
        return message

    def bad(self) -> bool:
        """Count a message that could not be read; whether there were too many in a row."""
        self._bad += 1
        self.service.metrics.errors.labels("bad_message").inc()
        return self._bad >= self._most_bad

    async def send(self, data: bytes | str) -> None:
        """Send, or drop a client that does not read; to one that is gone nothing is sent."""
        try:
            async with asyncio.timeout(self._send_s):
                await self.socket.send(data)
        except self._gone:
            return
        except TimeoutError:
            self.closed_for("slow_reader", f"did not take an answer for {self._send_s} s")
            self.socket.transport.abort()

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye."""
        with contextlib.suppress(Exception):  # it is gone already
            await self.socket.close(code, reason[:120])

    def closed_for(self, reason: str, message: str) -> None:
        """Tell and count why the server closes the connection."""
        self.service.metrics.closed.labels(reason).inc()
        _LOG.warning("%s: %s; its connection is closed", self.client, message)

    def answered(self, arrived: float, sent: float, exact: bool) -> None:
        """Count a chunk that was sent; arrived, sent: s, when its request had come, when its answer was made."""
        now, metrics = time.monotonic(), self.service.metrics
        metrics.chunks.labels(self.protocol, "yes" if exact else "no").inc()
        metrics.seconds.labels("answer").observe(now - sent)
        metrics.seconds.labels("total").observe(now - arrived)
