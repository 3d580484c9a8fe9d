"""What a handshake meets before it is a connection: /healthz, /readyz, /metrics, tokens, and how many may connect."""

from __future__ import annotations

import http
import logging
from collections import Counter
from typing import Any

from diffpolicy_spec.optional import require
from diffpolicy_spec.server.auth import client_of
from diffpolicy_spec.server.limits import Buckets, Places
from diffpolicy_spec.server.service import Service

__all__ = ["Door", "limited_connections"]

_HANDSHAKES = 64
"""Connections beside those allowed: in the middle of a handshake, or asking for /healthz."""
_HANDSHAKES_OF_ONE = 16
"""Of them, those of one address: nobody alone keeps everybody else out by beginning and not going on."""
_MOST_UNSENT = 2**20
"""Bytes that may wait to be read by a client. Answers are waited for one by one; those to pings are not."""

_LOG = logging.getLogger("diffpolicy_spec.server")


class Door:
    """Answers HTTP requests, and lets websockets in or not."""

    def __init__(self, service: Service, places: Places) -> None:
        self._service, self._places = service, places
        limits = service.config.limits
        self._handshakes = Buckets(limits.handshakes_per_s, 2 * limits.max_connections)
        self._log = Buckets(1.0, 10)  # lines that strangers can make us write

    def __call__(self, connection: Any, request: Any) -> Any:
        """websockets' process_request: a response, or None to go on with the handshake."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            wrong = self._service.healthy()
            return connection.respond(http.HTTPStatus.OK, "OK\n") if wrong is None else _unavailable(connection, wrong)
        if path == "/readyz":
            wrong = "draining" if self._service.draining else self._service.healthy()
            return connection.respond(http.HTTPStatus.OK, "OK\n") if wrong is None else _unavailable(connection, wrong)
        address = _address(connection)
        if not self._handshakes.take(address):
            return self._refused(connection, http.HTTPStatus.TOO_MANY_REQUESTS, "rate", "too many handshakes\n")
        config = self._service.config
        client = address
        if config.tokens and not (path == "/metrics" and config.open_metrics):
            known = client_of(_authorization(request), config.tokens)
            if known is None:
                self._service.metrics.auth_failures.inc()
                if self._log.take(address):
                    _LOG.warning("%s: no right token", address)
                told = "a token is wanted: Authorization: Api-Key TOKEN\n"
                response = self._refused(connection, http.HTTPStatus.UNAUTHORIZED, "token", told)
                response.headers["WWW-Authenticate"] = "Api-Key"
                return response
            client = known
        if path == "/metrics":
            response = connection.respond(http.HTTPStatus.OK, self._service.metrics_text())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
            return response
        if path != "/":
            return connection.respond(http.HTTPStatus.NOT_FOUND, "here are /, /healthz, /readyz and /metrics\n")
        if self._service.draining:
            return self._refused(connection, http.HTTPStatus.SERVICE_UNAVAILABLE, "draining", "going down\n")
        full = self._places.full(client)
        if full is not None:
            return self._refused(connection, http.HTTPStatus.SERVICE_UNAVAILABLE, "full", f"{full}\n")
        connection.client_name = client
        return None

    def _refused(self, connection: Any, status: http.HTTPStatus, reason: str, text: str) -> Any:
        self._service.metrics.refused.labels(reason).inc()
        return connection.respond(status, text)


def limited_connections(most: int) -> type:
    """websockets' connections, dropped at once where too many are open, those in the middle of a handshake included,
    and where a client asks (by pings, above all) and does not read what it is told."""
    base: Any = require("websockets.asyncio.server", extra="server").ServerConnection
    opened: set[Any] = set()
    shaking: Counter[str] = Counter()

    class Limited(base):
        _shaking: str | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            address = _address(self)
            if len(opened) >= most + _HANDSHAKES or shaking[address] >= _HANDSHAKES_OF_ONE:
                transport.abort()
                return
            opened.add(self)
            shaking[address] += 1
            self._shaking = address

        async def handshake(self, *given: Any) -> None:
            try:
                await super().handshake(*given)
            finally:
                self._shaken()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.get_write_buffer_size() > _MOST_UNSENT:
                self.transport.abort()

        def connection_lost(self, error: Exception | None) -> None:
            opened.discard(self)
            self._shaken()
            super().connection_lost(error)

        def _shaken(self) -> None:
            if self._shaking is not None:
                shaking[self._shaking] -= 1
                if not shaking[self._shaking]:
                    del shaking[self._shaking]
                self._shaking = None

    return Limited


def _authorization(request: Any) -> str | None:
    """The header; None without one, or with several."""
    given = request.headers.get_all("Authorization")
    return given[0] if len(given) == 1 else None


def _address(connection: Any) -> str:
    address = connection.remote_address
    return str(address[0]) if isinstance(address, tuple) and address else "local"


def _unavailable(connection: Any, why: str) -> Any:
    return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{why}\n")
