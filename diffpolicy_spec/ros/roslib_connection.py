"""A websocket to rosbridge by roslibpy, in twisted's thread, and again when it is lost.

Twisted's reactor runs once in a process and cannot be started again: it is started with the first connection, and
stays, idle, when the last one has ended.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time as _time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from diffpolicy_spec.optional import require
from diffpolicy_spec.ros.frames import FrameReader

__all__ = ["CLOSE_S", "NEEDED_BY", "Owner", "connect", "in_reactor_thread", "trust"]

NEEDED_BY = "the ROS bridge"
CLOSE_S = 1.0
_reactor_lock = threading.Lock()


class Owner(Protocol):
    """Who is told of a connection, in the reactor's thread."""

    def opened(self, protocol: Any) -> None:
        """It is there; protocol: roslibpy's, with `send_message`, `sendClose` and `dropConnection`."""

    def lost(self, protocol: Any, reason: str) -> None:
        """It has ended."""

    def unreachable(self, reason: str) -> None:
        """It could not be made."""

    def received(self, reader: FrameReader, payload: bytes, binary: bool) -> None:
        """A frame came."""

    def in_reactor(self, what: Callable[[], object]) -> None:
        """Call in the reactor's thread."""


def connect(
    owner: Owner,
    url: str,
    max_bytes: int,
    context: Any,
    headers: Mapping[str, str] | None,
    ping_s: float,
    pong_s: float,
    backoff_s: tuple[float, float],
) -> tuple[Any, Any]:
    """Connect in the background, and again whenever the connection is lost.

    Args:
        owner: told in the reactor's thread. max_bytes: of a frame; a larger one ends the connection.
        context: of TLS, see `trust`; None: none. headers: more of the handshake.
        ping_s, pong_s: a server that was silent for ping_s is pinged; one that does not answer within pong_s is gone.
        backoff_s: (first, longest) wait before connecting again.

    Returns:
        (reactor, factory); `factory.stopTrying` ends it.

    Raises:
        ImportError: roslibpy is not installed.
        RuntimeError: the reactor was stopped by somebody else.
    """
    comm = require("roslibpy.comm.comm_autobahn", "ros", NEEDED_BY)
    websocket = require("autobahn.twisted.websocket", "ros", NEEDED_BY)
    reactor = require("twisted.internet.reactor", "ros", NEEDED_BY)

    protocol_base: Any = comm.AutobahnRosBridgeProtocol
    factory_base: Any = comm.AutobahnRosBridgeClientFactory
    disconnected = require("autobahn.exception", "ros", NEEDED_BY).Disconnected

    class Wire(protocol_base):
        reader: FrameReader | None = None
        heard: float
        pinged: float | None
        wasNotCleanReason: str | None

        def onOpen(self) -> None:
            self.reader = FrameReader(max_bytes)
            self.heard, self.pinged = _time.monotonic(), None
            self.look()
            super().onOpen()
            owner.opened(self)

        def dataReceived(self, data: bytes) -> None:
            self.heard, self.pinged = _time.monotonic(), None
            super().dataReceived(data)

        def look(self) -> None:
            # Not by autobahn's own pings: their times are cut to whole seconds, 0.9 s to none.
            if self.state != self.STATE_OPEN:
                return
            now = _time.monotonic()
            if self.pinged is None and now - self.heard > ping_s:
                self.pinged = now
                self.sendPing()
            # Counted from the ping: a process that was stopped for a while has not listened either.
            elif self.pinged is not None and now - self.pinged > pong_s:
                self.wasNotCleanReason = f"rosbridge was silent for {now - self.heard:.1f} s, and did not answer a ping"
                self.dropConnection(abort=True)
                return
            reactor.callLater(min(ping_s, pong_s) / 4, self.look)

        def onMessage(self, payload: bytes, isBinary: bool) -> None:
            assert self.reader is not None
            owner.received(self.reader, payload, isBinary)

        def connectionLost(self, reason: Any) -> None:
            if self.reader is None:
                owner.unreachable(reason.getErrorMessage())
            super().connectionLost(reason)

        def onClose(self, wasClean: bool, code: int, reason: str) -> None:
            owner.lost(self, self.wasNotCleanReason or reason or "closed by the server")

        def send_message(self, payload: bytes) -> None:
            owner.in_reactor(lambda: self.write(payload))

        def write(self, payload: bytes) -> None:
            # It may have ended since.
            with contextlib.suppress(disconnected):
                self.sendMessage(payload)

    class Factory(factory_base):
        protocol = Wire
        noisy = False
        initialDelay = delay = backoff_s[0]
        maxDelay = backoff_s[1]
        factor = 2.0

        def clientConnectionFailed(self, connector: Any, reason: Any) -> None:
            owner.unreachable(reason.getErrorMessage())
            super().clientConnectionFailed(connector, reason)

    factory = Factory(url, headers=dict(headers or {}))
    factory.setProtocolOptions(
        openHandshakeTimeout=5,
        closeHandshakeTimeout=CLOSE_S,
        maxMessagePayloadSize=max_bytes,
        maxFramePayloadSize=max_bytes,
        tcpNoDelay=True,
        utf8validateIncoming=False,  # the JSON decoder does
    )

    def begin() -> None:
        factory.connector = websocket.connectWS(factory, context, timeout=5)

    with _reactor_lock:
        # Not by roslibpy's manager: each one adds another observer to twisted's log, for good.
        if not reactor.running:
            threading.Thread(target=reactor.run, args=(False,), name="rosbridge", daemon=True).start()
        running = threading.Event()
        reactor.callFromThread(running.set)
        if not running.wait(10):
            raise RuntimeError(
                "twisted's reactor was stopped in this process (by roslibpy's terminate?) and cannot be started again: "
                "take another process"
            )
    reactor.callFromThread(begin)
    return reactor, factory


def in_reactor_thread() -> bool:
    """Whether the caller is the reactor."""
    return bool(require("twisted.python.threadable", "ros", NEEDED_BY).isInIOThread())


def trust(host: str, tls_ca: str | None) -> Any:
    """A TLS context that looks at the server's certificate, which autobahn's own default does not.

    Args:
        host: that the certificate is to be of. tls_ca: see `RoslibTransport`.

    Raises:
        OSError: the file cannot be read. ValueError: it has no certificate.
    """
    ssl = require("twisted.internet.ssl", "ros", NEEDED_BY)
    if tls_ca is None:
        return ssl.optionsForClientTLS(host)
    with open(tls_ca, "rb") as file:
        pem = file.read(1 << 20)
    blocks = re.findall(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pem, re.DOTALL)
    try:
        certificates = [ssl.Certificate.loadPEM(block) for block in blocks]
    except Exception as error:
        raise ValueError(f"tls_ca {tls_ca}: a certificate cannot be read: {error}") from None
    if not certificates:
        raise ValueError(f"tls_ca {tls_ca} has no certificate in PEM")
    return ssl.optionsForClientTLS(host, trustRoot=ssl.trustRootFromCertificates(certificates))
