"""A checkpoint that is replaced while it is served."""

from __future__ import annotations

import contextlib
import shutil
import threading

import numpy as np
import pytest
from policy_servers import observation, served_policy, total, until

from diffpolicy_spec.control import Failure, Plan, PlanRequest
from diffpolicy_spec.server import Client, PolicyServer, RemotePlanner, ServerConfig


def replace(path, policy) -> None:
    """As a careful program does it: all at once."""
    beside = path.with_name("beside")
    policy.save(beside)
    if path.exists():
        shutil.rmtree(path)
    beside.rename(path)


@pytest.fixture
def path(tmp_path):
    replace(tmp_path / "served", served_policy(0))
    return tmp_path / "served"


@contextlib.contextmanager
def watched_server(path, **settings):
    server = PolicyServer(path, ServerConfig(port=0, **({"watch_s": 0.05} | settings)))
    with server.start(60):
        yield server


def test_a_new_checkpoint_is_used_without_a_pause(path):
    with watched_server(path) as server:
        planner = RemotePlanner(server.url)
        planner.start()
        with Client(server.url) as client:
            before, first = client.info.policy, client.infer(observation(), seed=1)
            names, stop = [], threading.Event()

            def drive() -> None:
                with Client(server.url) as other:
                    while not stop.is_set():
                        names.append(other.infer(observation()).policy)

            driving = threading.Thread(target=drive)
            driving.start()
            until(lambda: names)
            replace(path, served_policy(4))
            until(lambda: server.info.policy != before)
            until(lambda: names[-1] == server.info.policy)
            stop.set()
            driving.join(10)
            second = client.infer(observation(), seed=1)
            assert client.info.policy == second.policy == server.info.policy != first.policy
            assert np.abs(second.actions - first.actions).max() > 1e-3
        assert list(dict.fromkeys(names)) == [first.policy, second.policy]
        assert total(server, "policy_swaps_total", outcome="swapped") == 1
        came: list = []
        until(lambda: came.extend(planner.poll()) or any(isinstance(one, Failure) for one in came))
        assert {one.kind for one in came if isinstance(one, Failure)} == {"policy_swapped"}
        planner.submit(PlanRequest(1, observation(), 0.0))
        until(lambda: came.extend(planner.poll()) or any(isinstance(one, Plan) for one in came))
        assert planner.info == server.info
        planner.close()


@pytest.mark.parametrize("damage", ["other shapes", "rubbish", "gone"])
def test_one_that_cannot_be_used_is_refused_and_the_old_one_stays(path, damage):
    with watched_server(path) as server, Client(server.url) as client:
        before = client.infer(observation(), seed=1)
        if damage == "other shapes":
            replace(path, served_policy(1, horizon=8, n_action_steps=4))
        elif damage == "rubbish":
            (path / "model.safetensors").write_bytes(b"\xff" * 1000)
        else:
            shutil.rmtree(path)
        until(lambda: total(server, "policy_swaps_total", outcome="refused") == 1)
        after = client.infer(observation(), seed=1)
        assert after.policy == before.policy
        np.testing.assert_allclose(after.actions, before.actions, atol=1e-6)
        replace(path, served_policy(9))
        until(lambda: total(server, "policy_swaps_total", outcome="swapped") == 1)
        assert client.infer(observation(), seed=1).policy != before.policy


def test_without_watching_it_is_looked_at_when_asked(path):
    with watched_server(path, watch_s=None) as server, Client(server.url) as client:
        before = client.info.policy
        replace(path, served_policy(2))
        client.infer(observation())
        assert server.info.policy == before
        server.reload()
        until(lambda: server.info.policy != before)
        assert client.infer(observation()).policy == server.info.policy
