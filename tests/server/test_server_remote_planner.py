"""A server as a loop's planner: every request answered once, and recovery without anyone's help."""

from __future__ import annotations

import contextlib
import socket
import time

import numpy as np
import pytest
from faults_proxy import Proxy
from policy_servers import TOKEN, Gate, observation, served_policy, serving, until
from tiny_policy import tiny_policy

from diffpolicy_spec.control import Failure, Plan, Planner, PlanRequest
from diffpolicy_spec.server import PolicyServer, RemotePlanner, ServerConfig

QUICK = {"ping_interval": 0.2, "ping_timeout": 0.3, "backoff": (0.02, 0.1), "connect_timeout": 1.0}


class Watched:
    """A planner, and all it has said."""

    def __init__(self, url: str, **options) -> None:
        self.planner: Planner = RemotePlanner(url, **(QUICK | options))
        self.said: list[Plan | Failure] = []
        self._next = 0

    def look(self):
        self.said += self.planner.poll()
        return self.said

    def request(self, **more) -> int:
        self._next += 1
        self.planner.submit(PlanRequest(self._next, observation(self._next), time.monotonic(), **more))
        return self._next

    def answer(self, id: int) -> Plan | Failure:
        """The one answer to a request."""
        until(lambda: any(one.id == id for one in self.look()))
        (found,) = [one for one in self.said if one.id == id]
        return found

    def faults(self, recovered: bool = False) -> list[str]:
        return [one.kind for one in self.look() if isinstance(one, Failure) and one.recovered is recovered]

    def ready(self) -> None:
        until(lambda: self.planner.ready)


@contextlib.contextmanager
def watching(url: str, **options):
    watched = Watched(url, **options)
    watched.planner.start()
    try:
        yield watched
    finally:
        watched.planner.close()


def test_it_is_a_planner_that_gives_chunks(server):
    with watching(server.url) as watched:
        assert isinstance(watched.planner.poll(), list)
        watched.ready()
        assert watched.planner.info == server.info
        plan = watched.answer(watched.request(seed=3))
        assert isinstance(plan, Plan)
        assert plan.actions.shape == (15, 10)
        assert plan.exact
        assert plan.policy == server.info.policy
        assert plan.cost.latency_ms > 0
        assert watched.faults() == []
        late = watched.answer(watched.request(deadline=time.monotonic()))
        assert isinstance(late, Plan)
        assert not late.exact
        committed = plan.actions[:2]
        continued = watched.answer(watched.request(committed=committed))
        np.testing.assert_allclose(continued.actions[:2], committed, atol=1e-4)


def test_no_method_waits(server):
    started = time.perf_counter()
    planner = RemotePlanner("ws://192.0.2.1:9")  # nobody answers there, not even no
    planner.start()
    for id in range(100):
        planner.submit(PlanRequest(id, observation(), 0.0))
    assert not planner.ready
    assert planner.info is None
    came = list(planner.poll())
    assert time.perf_counter() - started < 1.0
    until(lambda: came.extend(planner.poll()) or sum(one.id is not None for one in came) == 100)
    assert {one.id for one in came} - {None} == set(range(100))
    planner.close()
    assert time.perf_counter() - started < 3.0


def test_requests_before_the_start_and_after_the_end_are_lost_and_told(server):
    planner = RemotePlanner(server.url)
    planner.submit(PlanRequest(1, observation(), 0.0))
    planner.start()
    until(lambda: planner.ready)
    planner.close()
    planner.close()
    planner.submit(PlanRequest(2, observation(), 0.0))
    assert [one.id for one in planner.poll()] == [1, 2]


def test_a_server_that_is_not_there_yet_is_found_when_it_comes():
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with watching(f"ws://127.0.0.1:{port}") as watched:
        until(lambda: watched.faults() == ["server_unreachable"])
        lost = watched.answer(watched.request())
        assert lost.kind == "server_unreachable"
        with PolicyServer(served_policy(), ServerConfig(port=port)).start(60):
            watched.ready()
            assert isinstance(watched.answer(watched.request()), Plan)
            assert watched.faults(recovered=True) == ["server_unreachable"]


def test_a_server_that_was_started_again_is_found_again():
    with watching_restart() as (watched, restart):
        assert isinstance(watched.answer(watched.request()), Plan)
        with restart():
            watched.ready()
            assert isinstance(watched.answer(watched.request()), Plan)
            assert watched.faults()[0] == "connection_lost"
            assert set(watched.faults(recovered=True)) >= {"connection_lost"}


@contextlib.contextmanager
def watching_restart(seed: int = 0, **changes):
    """(watched, restart) of a server that is ended when `restart` is called, and started with another policy."""
    first = PolicyServer(served_policy(), ServerConfig(port=0)).start(60)
    with watching(first.url) as watched:
        watched.ready()

        def restart() -> PolicyServer:
            first.stop()
            until(lambda: not watched.planner.ready)
            policy = tiny_policy(seed, **changes) if changes else served_policy(seed)
            return PolicyServer(policy, ServerConfig(port=first.port)).start(60)

        yield watched, restart


def test_another_policys_weights_are_taken_and_told():
    with watching_restart(seed=5) as (watched, restart), restart() as second:
        watched.ready()
        assert watched.planner.info == second.info
        assert watched.answer(watched.request()).policy == second.info.policy
        assert "policy_swapped" in watched.faults()


def test_another_policys_shapes_are_refused():
    with watching_restart(horizon=8, n_action_steps=4) as (watched, restart), restart():
        until(lambda: "policy_mismatch" in watched.faults())
        assert not watched.planner.ready
        assert watched.answer(watched.request()).kind == "policy_mismatch"


def test_a_wrong_token_is_told_and_tried_again_slowly(monkeypatch):
    monkeypatch.delenv("DPS_TOKEN", raising=False)
    with serving(tokens={"arm": TOKEN}) as server:
        with watching(server.url, token="not the right one", retry_unauthorized=0.1) as watched:
            until(lambda: watched.faults() == ["unauthorized"])
            lost = watched.answer(watched.request())
            assert lost.kind == "unauthorized"
            assert "give token=" in lost.message
            server.config.tokens["arm"] = "not the right one"  # the server's side is put right
            watched.ready()
            assert watched.faults(recovered=True) == ["unauthorized"]
        server.config.tokens["arm"] = TOKEN
        monkeypatch.setenv("DPS_TOKEN", TOKEN)
        with watching(server.url) as watched:
            watched.ready()


def test_a_connection_that_is_cut_is_made_again_and_what_was_asked_is_lost():
    with serving(max_chains=1) as server, Proxy(server.port) as proxy:
        gate = Gate(server)
        with watching(f"ws://127.0.0.1:{proxy.port}") as watched:
            watched.ready()
            gate.shut()
            id = watched.request()
            assert gate.reached.wait(10)
            proxy.cut()
            assert watched.answer(id).kind == "connection_lost"
            gate.open()
            watched.ready()
            assert isinstance(watched.answer(watched.request()), Plan)
            assert watched.faults(recovered=True) == ["connection_lost"]


def test_a_connection_that_went_silent_is_noticed_by_pings():
    with serving() as server, Proxy(server.port) as proxy, watching(f"ws://127.0.0.1:{proxy.port}") as watched:
        watched.ready()
        proxy.freeze()
        start = time.monotonic()
        lost = watched.answer(watched.request())
        assert lost.kind == "connection_lost"
        assert time.monotonic() - start < 3.0
        assert not watched.planner.ready
        proxy.thaw()
        watched.ready()
        assert isinstance(watched.answer(watched.request()), Plan)


def test_rubbish_on_the_wire_costs_a_connection_and_no_more():
    with serving() as server, Proxy(server.port) as proxy, watching(f"ws://127.0.0.1:{proxy.port}") as watched:
        watched.ready()
        proxy.rubbish(b"\xff" * 1000)
        until(lambda: watched.faults() != [])
        watched.ready()
        assert isinstance(watched.answer(watched.request()), Plan)


def test_a_server_that_does_not_answer_in_time_is_told(gated):
    server, gate = gated
    with watching(server.url, request_timeout=0.2) as watched:
        watched.ready()
        gate.shut()
        late = watched.answer(watched.request())
        assert (late.kind, "no answer within" in late.message) == ("server_error", True)
        gate.open()
        assert isinstance(watched.answer(watched.request()), Plan)
        assert "server_error" in watched.faults(recovered=True)


def test_what_the_policy_cannot_use_is_told_with_its_id(server):
    with watching(server.url) as watched:
        watched.ready()
        bad = observation() | {"object": np.full((2, 10), np.inf)}
        watched.planner.submit(PlanRequest(99, bad, 0.0))
        refused = watched.answer(99)
        assert refused.kind == "observation_invalid"
        assert "object" in refused.message
        watched.planner.submit(PlanRequest(100, {"object": object()}, 0.0))
        assert watched.answer(100).kind == "observation_invalid"
        assert isinstance(watched.answer(watched.request()), Plan)
        assert watched.faults(recovered=True) == []


def test_many_attempts_that_fail_alike_are_told_once():
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with watching(f"ws://127.0.0.1:{port}") as watched:
        until(lambda: watched.faults() != [])
        time.sleep(0.5)
        assert watched.faults() == ["server_unreachable"]


def test_wrong_urls_are_told():
    for url in ("gpu-box:8000", "http://gpu-box:8000"):
        with pytest.raises(ValueError, match="ws://HOST:PORT"):
            RemotePlanner(url)
    with pytest.raises(ValueError, match="tls_ca is for wss"):
        RemotePlanner("ws://gpu-box:8000", tls_ca="ca.pem")
