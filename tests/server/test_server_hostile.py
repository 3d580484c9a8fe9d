"""Clients that are broken, slow or malicious: they get nothing, and the others notice nothing."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from policy_servers import answer, ask, observation, raw, serving, total, until
from websockets.exceptions import ConnectionClosed, InvalidStatus

from diffpolicy_spec.server import Client, ConnectionLost
from diffpolicy_spec.server.codec import pack
from diffpolicy_spec.server.messages import SUBPROTOCOL

HANDSHAKE = (
    "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
).encode()


def plain(server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def shaken(server, receive_buffer: int | None = None) -> socket.socket:
    """A TCP connection whose websocket handshake is done, and nothing read after it."""
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(HANDSHAKE)
    assert b"101 Switching Protocols" in connection.recv(1024)
    return connection


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def a_robot(server):
    """Another robot that asks all the time meanwhile; its latencies, s."""
    latencies: list[float] = []
    stop = threading.Event()

    def drive() -> None:
        with Client(server.url) as client:
            while not stop.is_set():
                start = time.perf_counter()
                assert client.infer(observation()).actions.shape == (15, 10)
                latencies.append(time.perf_counter() - start)

    thread = threading.Thread(target=drive)
    thread.start()
    try:
        until(lambda: len(latencies) > 2)
        yield latencies
        count = len(latencies)
        until(lambda: len(latencies) > count + 2)  # it still gets chunks
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def test_a_message_of_100_mb_is_refused_without_being_held():
    with serving() as server, a_robot(server):
        before = resident_mb()
        with raw(server) as hostile:
            piece = bytes(2**20)
            with contextlib.suppress(ConnectionClosed):
                hostile.send([piece] * 100)  # in fragments, as large ones come
            with pytest.raises(ConnectionClosed, match="1009"):
                hostile.recv(10)
        connection = shaken(server)
        # One frame that says it has 100 MB, and sends all that is taken of them.
        with contextlib.suppress(OSError):
            connection.sendall(b"\x82\xff" + (100 * 2**20).to_bytes(8, "big") + bytes(4))
            for _ in range(100):
                connection.sendall(piece)
        connection.close()
        until(lambda: total(server, "connections_closed_by_server_total", reason="too_big") == 2)
        assert resident_mb() - before < 40


def test_ten_thousand_malformed_messages_slow_nobody_and_leave_nothing():
    rng = random.Random(0)
    limits = {"max_bad_in_a_row": 10**6, "requests_per_s": 1e6, "burst": 10**6}  # the limits do not help here
    with serving(limits=limits) as server, a_robot(server) as latencies, raw(server) as hostile:
        before, count = resident_mb(), len(latencies)

        def send() -> None:
            for _ in range(10_000):
                ask(hostile, b"\xc1" + rng.randbytes(rng.randrange(200)))  # 0xc1 begins no message

        sending = threading.Thread(target=send)
        sending.start()
        kinds = {answer(hostile)["error"]["kind"] for _ in range(10_000)}
        sending.join()
        assert kinds == {"bad_message"}
        assert total(server, "errors_total", kind="bad_message") == 10_000
        assert resident_mb() - before < 30
        assert len(latencies) > count
        assert np.median(latencies[count:]) < 1.0


def test_connections_that_send_nothing_but_malformed_messages_are_closed():
    rng = random.Random(0)
    with serving() as server, a_robot(server):
        for _ in range(4):
            with contextlib.suppress(ConnectionClosed), raw(server) as hostile:
                for _ in range(1000):
                    ask(hostile, b"\xc1" + rng.randbytes(rng.randrange(200)))
        until(lambda: total(server, "connections_closed_by_server_total", reason="malformed") == 4)
        assert total(server, "errors_total", kind="bad_message") == 64


def test_a_flood_of_requests_is_held_back():
    with serving(limits={"requests_per_s": 50.0, "burst": 5}) as server, a_robot(server), raw(server) as flood:
        message = pack({"type": "infer", "id": 1, "obs": observation()})
        kinds: list[str] = []
        stop = threading.Event()

        def read() -> None:
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                while not stop.is_set():
                    kinds.append(answer(flood).get("error", {}).get("kind", "chunk"))

        reading = threading.Thread(target=read)
        reading.start()
        start = time.monotonic()
        for _ in range(60):
            ask(flood, message)
        until(lambda: len(kinds) == 60)
        assert time.monotonic() - start > 0.8  # 5 at once, then 50 a second
        stop.set()
        ask(flood, {"type": "ping", "id": 2})
        reading.join(15)
        assert "rate_limited" in kinds


def test_a_client_that_does_not_read_is_dropped():
    limits = {"send_s": 0.3, "requests_per_s": 1e6, "burst": 10**6}
    with serving(limits=limits) as server, a_robot(server):
        connection = shaken(server, receive_buffer=4096)
        unknown = {letter * 60: 0 for letter in "abcdefgh"}  # which the answer names
        body = pack({"type": "infer", "id": 1, "obs": unknown})
        frame = b"\x82\xfe" + len(body).to_bytes(2, "big") + bytes(4) + body  # masked with zeros
        connection.settimeout(0.5)
        with contextlib.suppress(OSError):  # at last the server reads no more: it waits for us to
            while True:
                connection.sendall(frame * 100)
        until(lambda: total(server, "connections_closed_by_server_total", reason="slow_reader") == 1)
        connection.close()


def test_a_client_that_pings_and_does_not_read_is_dropped():
    pings = (b"\x89\xfd" + bytes(4) + bytes(125)) * 200_000  # 26 MB
    with serving() as server, a_robot(server):
        before = resident_mb()
        connection = shaken(server, receive_buffer=4096)
        with pytest.raises(OSError, match=r"reset|pipe"):
            connection.sendall(pings)
        connection.close()
        assert resident_mb() - before < 15


def test_one_address_that_begins_handshakes_keeps_nobody_out():
    with serving(limits={"handshake_s": 30.0, "max_connections": 4}) as server:
        slow = [plain(server) for _ in range(100)]  # of 127.0.0.1
        other = socket.create_connection(("127.0.0.1", server.port), timeout=10, source_address=("127.0.0.2", 0))
        other.sendall(HANDSHAKE)
        assert b"101 Switching Protocols" in other.recv(1024)
        for connection in (*slow, other):
            connection.close()
        until(lambda: not server._connections)
        with Client(server.url) as client:
            client.infer(observation())


def test_a_connection_that_went_silent_is_noticed_by_pings():
    with serving(limits={"ping_s": 0.2, "pong_s": 0.3}) as server:
        connection = shaken(server)
        until(lambda: total(server, "connections", protocol=SUBPROTOCOL) == 1)
        until(lambda: total(server, "connections", protocol=SUBPROTOCOL) == 0)  # it answers no ping
        connection.close()


def test_a_reset_connection_leaves_nothing(server):
    for _ in range(20):
        connection = shaken(server)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        connection.close()  # RST
    until(lambda: total(server, "connections", protocol=SUBPROTOCOL) == 0)
    until(lambda: not server._connections)
    with Client(server.url) as client:
        client.infer(observation())


def test_handshakes_that_are_never_finished_are_ended():
    with serving(limits={"handshake_s": 0.3, "max_connections": 4}) as server:
        slow = [plain(server) for _ in range(100)]
        for connection in slow[:50]:
            with contextlib.suppress(OSError):
                connection.sendall(HANDSHAKE[:20])
        for connection in slow:
            with contextlib.suppress(OSError):
                assert connection.recv(100) == b""  # dropped
            connection.close()
        with Client(server.url) as client:
            client.infer(observation())


def test_no_more_connections_than_allowed():
    with serving(limits={"max_connections": 3, "max_connections_per_client": 2}) as server:
        with Client(server.url), Client(server.url):
            with pytest.raises(ConnectionLost, match="503: all 2 connections of one client"):
                Client(server.url)
            assert total(server, "connections_refused_total", reason="full") == 1
        until(lambda: not server._connections)
        Client(server.url).close()


def test_no_more_handshakes_a_second_than_allowed():
    with serving(limits={"max_connections": 5, "handshakes_per_s": 0.001}) as server:
        for _ in range(10):
            Client(server.url).close()
        with pytest.raises(ConnectionLost, match="429"):
            Client(server.url)


@pytest.mark.parametrize("path", ["/metrics/", "/admin", "/..", "/policy"])
def test_other_paths_are_not_found(server, path):
    with pytest.raises(InvalidStatus, match="404"), raw_at(server, path):
        pass


@contextlib.contextmanager
def raw_at(server, path: str):
    from websockets.sync.client import connect

    with connect(server.url + path, proxy=None) as connection:
        yield connection


def test_bytes_that_are_no_http_are_dropped(server):
    rng = random.Random(0)
    for _ in range(30):
        connection = plain(server)
        with contextlib.suppress(OSError):
            connection.sendall(rng.randbytes(2000) + b"\r\n\r\n")
            while connection.recv(1000):
                pass
        connection.close()
    with Client(server.url) as client:
        client.infer(observation())


def test_frames_that_break_the_protocol_close_their_connection(server):
    for frame in (b"\xff\xff" + bytes(20), b"\x82\x05hello", b"\x88\x80" + bytes(4), b"\x81\x81" + bytes(4) + b"\xff"):
        connection = shaken(server)
        with contextlib.suppress(OSError):
            connection.sendall(frame)
            while connection.recv(1000):
                pass
        connection.close()
    with Client(server.url) as client:
        client.infer(observation())
