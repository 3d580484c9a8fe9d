"""The policy server and the way to it go wrong while the loop runs."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from faults_policy import save_policy
from faults_processes import rss_mb, wait_for
from faults_proxy import Proxy
from faults_running import SOON, is_over, recovered, running
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from diffpolicy_spec.server import RemotePlanner
from diffpolicy_spec.server.messages import SUBPROTOCOL

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
QUICK = {
    "ping_interval": 0.3, "ping_timeout": 0.7, "connect_timeout": 2.0, "backoff": (0.05, 0.3),
    "retry_unauthorized": 0.3,
}  # fmt: skip
GONE = ("connection_lost", "server_unreachable")
MB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def _programs():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture(scope="module")
def server(checkpoint):
    from programs import policy_server

    # Nobody is slowed down: the flood is to be one.
    program, url = policy_server(str(checkpoint), "limits.handshakes_per_s=1000", "limits.requests_per_s=100000")
    with program:
        yield program, url


@pytest.fixture
def way(server):
    """(planner, proxy): through the proxy to the server."""
    with Proxy(port_of(server[1])) as proxy:
        planner = RemotePlanner(f"ws://127.0.0.1:{proxy.port}", **QUICK)
        planner.start()
        yield planner, proxy
        planner.close()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].strip("/"))


def frame(payload: bytes, opcode: int = 2) -> bytes:
    """A websocket frame as servers send it (RFC 6455, section 5.2)."""
    return bytes([0x80 | opcode, 127]) + len(payload).to_bytes(8, "big") + payload


def gone(told) -> None:
    wait_for(lambda: any(told.began(kind) for kind in GONE), SOON, lambda: f"not told: {told.faults}")


def test_the_connection_is_cut(way):
    planner, proxy = way
    with running(planner) as (_, _, told):
        for _ in range(3):
            connections = proxy.connections
            proxy.cut()
            wait_for(lambda: proxy.connections > connections, SOON, "it does not connect again")  # noqa: B023
            recovered(told)
        assert told.began("connection_lost")
        is_over(told, *GONE)


def test_the_server_is_not_reachable_for_a_while(way):
    planner, proxy = way
    with running(planner) as (_, _, told):
        proxy.refuse()
        gone(told)
        wait_for(lambda: told.ticks[-1].source == "hold", SOON, "no safety action")
        proxy.listen()
        recovered(told)
        is_over(told, *GONE)


def test_the_connection_is_half_open(way):
    planner, proxy = way
    with running(planner) as (_, _, told):
        proxy.freeze()
        gone(told)  # nobody closed anything: pings tell
        wait_for(lambda: told.ticks[-1].source == "hold", SOON, "no safety action")
        proxy.thaw()
        recovered(told)
        is_over(told, *GONE)


@pytest.mark.parametrize(
    "rubbish",
    [b"\x00" * 1000, frame(b"\xc1") * 10_000, frame(b"{}", 1) * 10_000, frame(bytes(100 * MB))],
    ids=["no frames", "10,000 that are no msgpack", "10,000 texts", "100 MB"],
)
def test_rubbish_from_the_server(way, rubbish):
    planner, proxy = way
    with running(planner) as (_, _, told):
        proxy.rubbish(rubbish)
        wait_for(lambda: told.kinds() & {*GONE, "bad_message"}, SOON, lambda: f"not told: {told.faults}")
        recovered(told)
        is_over(told, *GONE, "bad_message")


def hostile(url: str, messages) -> None:
    """Somebody else's client: sends without reading until it is put out, and comes again until all is sent."""
    waiting = list(messages)
    while waiting:
        with (
            suppress(ConnectionClosed, OSError, TimeoutError),
            connect(url, subprotocols=[SUBPROTOCOL], compression=None, proxy=None, close_timeout=0.2) as socket,
        ):
            while waiting:
                socket.send(waiting[-1])
                waiting.pop()


@pytest.mark.parametrize(
    ("messages", "most_mb"),
    [([b"\xc1"] * 10_000, 50), (["no msgpack"] * 10_000, 50), ([bytes(100 * MB)], 50)],
    ids=["10,000 malformed", "10,000 texts", "100 MB"],
)
def test_somebody_else_floods_the_server(server, way, messages, most_mb):
    program, url = server
    planner, _ = way
    with running(planner) as (_, _, told):
        before = rss_mb(program.pid)
        flood = threading.Thread(target=hostile, args=(url, messages), daemon=True)
        flood.start()
        while flood.is_alive():
            recovered(told)
        recovered(told)
        assert rss_mb(program.pid) < before + most_mb
        assert program.alive


def test_the_server_stands_still(server, way):
    program, _ = server
    planner, _ = way
    with running(planner) as (_, _, told):
        program.signal(signal.SIGSTOP)
        try:
            gone(told)
            wait_for(lambda: told.ticks[-1].source == "hold", SOON, "no safety action")
        finally:
            program.signal(signal.SIGCONT)
        recovered(told)
        is_over(told, *GONE)


def test_the_server_is_killed_and_restarted(checkpoint):
    from programs import policy_server

    program, url = policy_server(str(checkpoint))
    planner = RemotePlanner(url, **QUICK)
    planner.start()
    with running(planner) as (_, _, told):
        program.kill()
        gone(told)
        wait_for(lambda: told.ticks[-1].source == "hold", SOON, "no safety action")
        program, again = policy_server(str(checkpoint), f"port={port_of(url)}")
        assert again == url
        with program:
            recovered(told)
            is_over(told, *GONE)
    planner.close()
    program.close()


def test_the_token_is_not_taken_any_more_and_then_it_is(checkpoint):
    from programs import policy_server

    program, url = policy_server(str(checkpoint), token="first-token-of-this-test")
    planner = RemotePlanner(url, token="first-token-of-this-test", **QUICK)
    planner.start()
    with running(planner) as (_, _, told):
        program.close()
        program, _ = policy_server(str(checkpoint), f"port={port_of(url)}", token="other-token-of-this-test")
        with program:
            wait_for(lambda: told.began("unauthorized"), SOON, lambda: f"not told: {told.faults}")
            wait_for(lambda: told.ticks[-1].source == "hold", SOON, "no safety action")
        program, _ = policy_server(str(checkpoint), f"port={port_of(url)}", token="first-token-of-this-test")
        with program:
            recovered(told)
            is_over(told, "unauthorized", *GONE)
    planner.close()


def test_the_server_comes_back_with_another_policy(checkpoint, tmp_path):
    from programs import policy_server

    program, url = policy_server(str(checkpoint))
    port = f"port={port_of(url)}"
    planner = RemotePlanner(url, **QUICK)
    planner.start()
    with running(planner) as (_, _, told):
        program.close()
        program, _ = policy_server(str(save_policy(tmp_path / "other", axes=5)), port)
        with program:
            wait_for(lambda: told.began("policy_mismatch"), SOON, lambda: f"not told: {told.faults}")
            wait_for(lambda: told.ticks[-1].source == "hold", SOON, "no safety action")
        program, _ = policy_server(str(save_policy(tmp_path / "newer", seed=1)), port)
        with program:
            recovered(told)
            assert told.began("policy_swapped")
            is_over(told, "policy_mismatch", "policy_swapped", *GONE)
    planner.close()


def test_the_servers_checkpoint_is_swapped(tmp_path):
    from programs import policy_server

    path = save_policy(tmp_path / "tiny")
    program, url = policy_server(str(path), "watch_s=0.2")
    planner = RemotePlanner(url, **QUICK)
    planner.start()
    with program, running(planner) as (_, _, told):
        save_policy(path, seed=1)
        wait_for(lambda: told.began("policy_swapped"), SOON, lambda: f"not told: {told.faults}")
        recovered(told)
        is_over(told, "policy_swapped")
    planner.close()
