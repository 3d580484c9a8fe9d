"""A connection of openpi's client: observations in, {"actions", "server_timing"} out, one after the other.

Facts from openpi's websocket_policy_server.py and websocket_client_policy.py: the server sends its metadata first; an
error is a text frame, and closes the connection with 1011; `reset` says nothing to the server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from diffpolicy_spec.server.codec import CodecError, pack
from diffpolicy_spec.server.connection import INTERNAL_ERROR, RESTART, Connection
from diffpolicy_spec.server.observations import RequestError, read_observations
from diffpolicy_spec.server.service import Asked, Served

__all__ = ["OpenpiConnection"]

_LOG = logging.getLogger("diffpolicy_spec.server")


class OpenpiConnection(Connection):
    """Nothing of a request but its observations is looked at."""

    protocol = "openpi"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._idle = asyncio.Event()
        self._idle.set()
        self._told = False
        self._previous_ms: float | None = None

    async def converse(self) -> None:
        """One request after the other."""
        gone = asyncio.create_task(self.socket.wait_closed())
        try:
            async for data in self.socket:
                await self.admitted()
                self._idle.clear()
                try:
                    if not await self._one(data, gone):
                        return
                finally:
                    self._idle.set()
        finally:
            gone.cancel()

    async def drain(self) -> None:
        """Answer what is under way, then close."""
        await self._idle.wait()
        await self.close(RESTART, "the server is going down")

    async def _one(self, data: bytes | str, gone: asyncio.Task[None]) -> bool:
        arrived = time.monotonic()
        service = self.service
        service.metrics.requests.labels(self.protocol).inc()
        try:
            obs = self.decoded(data)
            self._tell(obs)
            values = read_observations(obs, service.names, service.info, self.history)
            asked = service.ask(values, client=self.client, arrived=arrived)
            served = await self._outcome(asked, gone)
        except CodecError as error:
            self.bad()
            return await self._error(f"bad_message: {error}")
        except RequestError as error:
            service.metrics.errors.labels(error.kind).inc()
            return await self._error(f"{error.kind}: {error}")
        sent = time.monotonic()
        info = service.info
        actions = served.actions
        if service.config.actions_returned == "n_action_steps":
            actions = actions[: info.n_action_steps]
        answer = served.answer() | {"actions": actions}
        if self._previous_ms is not None:
            answer["server_timing"]["prev_total_ms"] = self._previous_ms
        await self.send(pack(answer))
        self.answered(arrived, sent, served.exact)
        self._previous_ms = 1e3 * (time.monotonic() - arrived)
        return True

    async def _outcome(self, asked: Asked, gone: asyncio.Task[None]) -> Served:
        either: set[asyncio.Future[Any]] = {asked.outcome, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not asked.outcome.done():
            self.service.withdraw(asked, "cancelled", "the connection is closed")
        return self.service.served(await asked.outcome)

    async def _error(self, message: str) -> bool:
        await self.send(message)
        await self.close(INTERNAL_ERROR, "the request failed; see the frame before")
        return False

    def _tell(self, obs: dict[Any, Any]) -> None:
        """Once a connection: what of its observations does not count."""
        # ascii: what a client sends must not make lines of its own in the log.
        ignored = [ascii(key)[:60] for key in obs if key not in self.service.names.wanted()]
        if ignored and not self._told:
            self._told = True
            _LOG.info("%s: the policy does not look at %s", self.client, ", ".join(ignored)[:500])
