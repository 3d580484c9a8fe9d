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
UNREAD = 3.0
"""Times pong_s: a server that talks, but answers no ping for so long, does not read."""
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
        ping_s, pong_s: the server is pinged every ping_s; one that is silent for ping_s + pong_s is gone, and one that
            talks but answers no ping for UNREAD times pong_s.
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
        wasNotCleanReason: str | None

        def onOpen(self) -> None:
            self.reader = FrameReader(max_bytes)
            self.looked = _time.monotonic()
            self.silent = self.unread = 0.0  # s since anything was heard, since an answer to a ping
            self.asked = False
            self.look()
            super().onOpen()
            owner.opened(self)

        def dataReceived(self, data: bytes) -> None:
            self.silent = 0.0
            super().dataReceived(data)

        def onPong(self, payload: bytes) -> None:
            self.unread, self.asked = 0.0, False

        def look(self) -> None:
            # Not by autobahn's own pings: their times are cut to whole seconds, 0.9 s to none.
            if self.state != self.STATE_OPEN:
                return
            # What a process was stopped for is left out: it has not listened either.
            now, every = _time.monotonic(), min(ping_s, pong_s) / 4
            passed, self.looked = min(now - self.looked, 2 * every), now
            self.silent, self.unread = self.silent + passed, self.unread + passed
            if not self.asked:
                if self.unread > ping_s:
                    self.asked = True
                    self.sendPing()
            elif self.silent > ping_s + pong_s:
                self.give_up(f"rosbridge was silent for {self.silent:.1f} s, and did not answer a ping")
                return
            elif self.unread > ping_s + UNREAD * pong_s:
                # Commands would wait in the line, and come late.
                self.give_up(f"rosbridge does not read what is sent: no answer to a ping for {self.unread:.1f} s")
                return
            reactor.callLater(every, self.look)

        def give_up(self, reason: str) -> None:
            self.wasNotCleanReason = reason
            self.dropConnection(abort=True)

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
