"""Ask a policy server for chunks, one after another; no torch.

    with Client("ws://gpu-box:8000", token=...) as client:
        chunk = client.infer({"robot0_eef_pos": ..., ...})     # (To, d) each, oldest first
        chunk.actions                                          # (P, Da), the first for now

A control loop takes `RemotePlanner` instead, which never waits.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.protocols import Plan, PolicyInfo
from diffpolicy_spec.optional import require
from diffpolicy_spec.server.auth import TOKEN_VARIABLE
from diffpolicy_spec.server.codec import CodecError, pack
from diffpolicy_spec.server.errors import ConnectionLost, ServerError, Unauthorized
from diffpolicy_spec.server.messages import (
    SUBPROTOCOL,
    Answer,
    Chunk,
    Done,
    Metadata,
    Refusal,
    infer_request,
    read_answer,
)

__all__ = ["Client", "connection_options", "refusal_of"]

_MOST_ANSWER = 16 * 2**20  # bytes


def connection_options(url: str, token: str | None, tls_ca: str | None) -> dict[str, Any]:
    """What a connection is opened with, for either of websockets' clients.

    Args:
        url: ws://host:port, or wss:// for TLS.
        token: None: that of DPS_TOKEN, if there is one.
        tls_ca: PEM file of the certificates that are trusted beside the system's; None: the system's alone.

    Raises:
        ValueError: no such URL.
    """
    if not url.startswith(("ws://", "wss://")):
        raise ValueError(f"the server's url must be ws://HOST:PORT or wss://HOST:PORT, got {url!r}")
    token = os.environ.get(TOKEN_VARIABLE) if token is None else token
    options: dict[str, Any] = {
        "subprotocols": [SUBPROTOCOL], "compression": None, "max_size": _MOST_ANSWER, "proxy": None,
        "close_timeout": 0.5,  # a peer that is gone does not say goodbye
        "additional_headers": {"Authorization": f"Api-Key {token}"} if token else None,
    }  # fmt: skip
    if url.startswith("wss://"):
        options["ssl"] = ssl.create_default_context()
        if tls_ca is not None:
            options["ssl"].load_verify_locations(tls_ca)
    elif tls_ca is not None:
        raise ValueError(f"tls_ca is for wss:// servers, got {url!r}")
    return options


def refusal_of(url: str, error: Exception) -> ConnectionError:
    """What it means that a handshake failed."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        return Unauthorized(f"{url} does not take the token (HTTP {status}): give token=... or {TOKEN_VARIABLE}")
    if status is not None:
        body = (getattr(response, "body", None) or b"").decode("utf-8", "replace").strip()[:200]
        return ConnectionLost(f"{url} answered HTTP {status}{': ' if body else ''}{body}")
    return ConnectionLost(f"{url} cannot be reached: {error or type(error).__name__}")


class Client:
    """A connection to a server.

    Where it is lost, the next request opens another, and is sent again once: a chunk that nobody got did nothing.

    Args:
        url, token, tls_ca: see `connection_options`.
        connect_timeout: s, to connect and be told what the policy is.
        timeout: s, for an answer.
        ping_interval, ping_timeout: s; a server that does not answer pings is gone, whatever the socket says.

    Raises:
        Unauthorized: the server does not take the token.
        ConnectionLost: there is no server, or it takes no more connections now.
        CodecError: it is another kind of server.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        tls_ca: str | None = None,
        connect_timeout: float = 5.0,
        timeout: float = 30.0,
        ping_interval: float = 5.0,
        ping_timeout: float = 5.0,
    ) -> None:
        self.url = url
        self._options = connection_options(url, token, tls_ca)
        self._options |= {"ping_interval": ping_interval, "ping_timeout": ping_timeout, "open_timeout": connect_timeout}
        self._connect_timeout, self._timeout = connect_timeout, timeout
        self._socket: Any = None
        self._open = contextlib.ExitStack()
        self._next = 0
        self._closed = False
        self._connect()

    @property
    def info(self) -> PolicyInfo:
        """The policy's shapes and name, as the server said last."""
        return self._metadata.info

    @property
    def metadata(self) -> Mapping[str, Any]:
        """All that the server says about itself."""
        return self._metadata.raw

    def infer(
        self,
        obs: Mapping[str, NDArray[Any]],
        *,
        deadline_ms: float | None = None,
        committed: NDArray[np.float64] | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> Plan:
        """A chunk.

        Args:
            obs: key -> (To, d), camera -> (To, C, H, W), or of one step, see docs/server.md.
            deadline_ms: from the request's arrival; a chain that would be late is finished by DDIM, and not exact.
            committed: (n, Da) actions from now on that the chunk continues.
            seed: of its noise; None: any.
            timeout: s; None: the client's.

        Raises:
            ServerError: the server refused; says why.
            Unauthorized, ConnectionLost: the server is gone.
            TimeoutError: no answer in time.
            CodecError: something that cannot be sent, or an answer that cannot be read.
        """
        options = {"deadline_ms": deadline_ms, "committed": committed, "seed": seed}
        return self.infer_chunk(obs, timeout=timeout, **options).plan

    def infer_chunk(self, obs: Mapping[str, NDArray[Any]], *, timeout: float | None = None, **options: Any) -> Chunk:
        """As `infer`, with what else the server says: where the time went, with how many chunks it shared calls."""
        answer = self._ask(infer_request(self._new_id(), obs, **options), timeout)
        if not isinstance(answer, Chunk):
            raise CodecError(f"asked for a chunk, got {answer}")
        return answer

    def reset(self) -> None:
        """A new episode: the server forgets this connection's history and what is under way."""
        self._expect("reset", "reset")

    def ping(self) -> float:
        """s from here to the server's program and back."""
        start = time.perf_counter()
        self._expect("ping", "pong")
        return time.perf_counter() - start

    def close(self) -> None:
        """Disconnect; may be called twice."""
        self._closed = True
        self._drop()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_id(self) -> int:
        self._next += 1
        return self._next

    def _expect(self, type: str, wanted: str) -> None:
        answer = self._ask({"type": type, "id": self._new_id()}, None)
        if not (isinstance(answer, Done) and answer.type == wanted):
            raise CodecError(f"asked for a {wanted}, got {answer}")

    def _ask(self, request: Mapping[str, Any], timeout: float | None) -> Answer:
        if self._closed:
            raise ConnectionLost("this client is closed")
        data = pack(request)
        timeout = self._timeout if timeout is None else timeout
        if self._socket is not None:
            try:
                return self._exchange(data, request["id"], timeout)
            except ConnectionLost:
                self._drop()
        self._connect()
        return self._exchange(data, request["id"], timeout)

    def _exchange(self, data: bytes, id: int, timeout: float) -> Answer:
        exceptions = require("websockets.exceptions", extra="client")
        until = time.monotonic() + timeout
        try:
            self._socket.send(data)
            while True:
                answer = read_answer(self._socket.recv(timeout=max(0.0, until - time.monotonic())))
                if isinstance(answer, Metadata):
                    self._metadata = answer
                elif isinstance(answer, Refusal) and answer.id in (id, None):
                    raise ServerError(answer.kind, answer.message)
                elif not isinstance(answer, Refusal) and _id(answer) == id:
                    return answer
                # Else the answer to an earlier request, whose time was up.
        except TimeoutError:
            raise TimeoutError(f"{self.url}: no answer within {timeout} s") from None
        except (exceptions.ConnectionClosed, OSError) as error:
            raise ConnectionLost(f"{self.url}: the connection is lost: {error}") from error

    def _connect(self) -> None:
        connect = require("websockets.sync.client", extra="client").connect
        exceptions = require("websockets.exceptions", extra="client")
        try:
            self._socket = self._open.enter_context(connect(self.url, **self._options))
            answer = read_answer(self._socket.recv(timeout=self._connect_timeout))
        except (exceptions.WebSocketException, OSError) as error:
            self._drop()
            raise refusal_of(self.url, error) from error
        except CodecError:
            self._drop()
            raise
        if not isinstance(answer, Metadata):
            self._drop()
            raise CodecError(f"{self.url} did not say what its policy is: it is another kind of server")
        self._metadata = answer

    def _drop(self) -> None:
        self._socket = None
        self._open.close()


def _id(answer: Chunk | Done) -> int:
    return answer.plan.id if isinstance(answer, Chunk) else answer.id
