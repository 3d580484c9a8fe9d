"""Our client and the protocol under it: chunks, errors that cost no connection, several requests under way."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from policy_servers import Gate, answer, ask, observation, raw, served_policy, serving, total, until
from websockets.exceptions import ConnectionClosedError

from diffpolicy_spec.server import Client, ConnectionLost, ServerError
from diffpolicy_spec.server.codec import pack
from diffpolicy_spec.server.messages import SUBPROTOCOL


@pytest.fixture
def client(server):
    with Client(server.url) as one:
        yield one


def test_the_server_says_what_its_policy_is(client):
    info = client.info
    assert (info.horizon, info.n_obs_steps, info.n_action_steps, info.action_dim, info.first) == (16, 2, 8, 10, 1)
    assert info.obs_dims == served_policy().config.obs_dims
    assert info.action_repr == "absolute_rot6d"
    assert "speculative" in info.sampler


def test_a_seeds_chunk_is_the_one_the_policy_draws_in_process(client):
    policy, obs = served_policy(), observation(1)
    plan = client.infer(obs, seed=7)
    batch = {key: value[None] for key, value in obs.items()}
    drawn = policy.predict_action(batch, generator=torch.Generator().manual_seed(7)).action_pred[0, 1:]
    assert plan.actions.shape == (15, 10)
    assert plan.exact
    np.testing.assert_allclose(plan.actions, drawn.numpy(), atol=1e-5)
    assert plan.policy == client.info.policy
    assert plan.cost.calls > 0
    assert plan.cost.latency_ms > 0
    assert not np.allclose(plan.actions, client.infer(obs, seed=8).actions)


def test_committed_actions_are_continued(client):
    first = client.infer(observation(), seed=1).actions
    again = client.infer(observation(), seed=2, committed=first[:3]).actions
    np.testing.assert_allclose(again[:3], first[:3], atol=1e-4)
    assert np.abs(again[3:] - first[3:]).max() > 1e-3


def test_a_chunk_that_would_be_late_is_finished_and_says_so(client):
    assert client.infer(observation(), deadline_ms=60_000).exact
    assert not client.infer(observation(), deadline_ms=0.0).exact


def test_the_servers_deadline_is_for_requests_that_have_none():
    with serving(deadline_ms=1e-6) as server, Client(server.url) as client:
        assert not client.infer(observation()).exact
        assert client.infer(observation(), deadline_ms=60_000).exact


@pytest.mark.parametrize(
    ("changes", "kind", "told"),
    [
        ({"obs": {"object": np.zeros(3)}}, "bad_observation", "lack robot0_eef_pos"),
        ({"obs": observation() | {"nose": np.zeros(3)}}, "bad_observation", "unknown nose"),
        ({"obs": observation() | {"object": np.full((2, 10), np.nan)}}, "bad_observation", "NaN"),
        ({"obs": 3}, "bad_observation", "must be a map"),
        ({"seed": -1}, "bad_request", "seed must be"),
        ({"seed": "one"}, "bad_request", "seed must be"),
        ({"deadline_ms": float("nan")}, "bad_request", "deadline_ms must be"),
        ({"committed": np.zeros((3, 9))}, "bad_request", "committed must be"),
        ({"committed": np.full((3, 10), np.inf)}, "bad_request", "committed has NaN"),
        ({"committed": np.zeros((16, 10))}, "bad_request", r"committed must be \(0 ... 15, 10\)"),
        ({"colour": "red"}, "bad_request", "not colour"),
        ({"type": "dance"}, "bad_request", "type must be"),
        ({"id": "one"}, "bad_request", "id must be"),
        ({"id": -1}, "bad_request", "id must be"),
    ],
)
def test_a_wrong_request_is_told_and_the_connection_stays(server, changes, kind, told):
    with raw(server) as socket:
        ask(socket, {"type": "infer", "id": 1, "obs": observation()} | changes)
        refused = answer(socket)
        assert refused["type"] == "error"
        assert refused["error"]["kind"] == kind
        assert re.search(told, refused["error"]["message"]), refused
        ask(socket, {"type": "infer", "id": 2, "obs": observation()})
        assert answer(socket)["id"] == 2


def test_messages_that_are_none_are_told_and_many_in_a_row_close(server):
    with raw(server) as socket:
        for rubbish in (b"\xc1", "text", b"", pack([1, 2])):
            ask(socket, rubbish)
            refused = answer(socket)
            assert (refused["id"], refused["error"]["kind"]) == (None, "bad_message")
        ask(socket, {"type": "ping", "id": 5})
        assert answer(socket) == {"type": "pong", "id": 5}
        for _ in range(16):
            ask(socket, b"\xc1")
        told = [answer(socket)["error"]["kind"] for _ in range(16)]
        assert told == ["bad_message"] * 16
        with pytest.raises(ConnectionClosedError, match="1008"):
            answer(socket)


def test_requests_under_way_share_their_calls_and_are_answered_by_id():
    with serving(supersede=False, adaptive=False) as server, raw(server) as socket:
        for id in range(5):
            ask(socket, {"type": "infer", "id": id, "obs": observation(id), "seed": id})
        answers = {one["id"]: one for one in (answer(socket) for _ in range(5))}
        alone = [Client(server.url).infer(observation(id), seed=id).actions for id in range(5)]
        assert sorted(answers) == list(range(5))
        assert max(one["cost"]["shared"] for one in answers.values()) > 1
        for id, actions in enumerate(alone):
            np.testing.assert_allclose(answers[id]["actions"], actions, atol=1e-4)


def test_a_newer_request_takes_the_place_of_one_that_was_not_begun(gated):
    server, gate = gated
    with raw(server) as socket:
        gate.shut()
        ask(socket, {"type": "infer", "id": 1, "obs": observation()})
        assert gate.reached.wait(10)  # 1 is under way, and the only one that fits
        for id in (2, 3):
            ask(socket, {"type": "infer", "id": id, "obs": observation()})
        first = answer(socket)
        assert (first["id"], first["error"]["kind"]) == (2, "superseded")
        gate.open()
        assert {answer(socket)["id"] for _ in range(2)} == {1, 3}


def test_it_takes_its_place_in_the_queue_too(gated):
    server, gate = gated
    with raw(server) as first, raw(server) as second, raw(server) as third:
        gate.shut()
        ask(third, {"type": "infer", "id": 0, "obs": observation()})
        assert gate.reached.wait(10)
        for turn, (socket, waiting) in enumerate(((first, 1), (second, 2), (first, 2)), 1):
            ask(socket, {"type": "infer", "id": turn, "obs": observation()})
            until(lambda count=waiting: server._engine.waiting == count)
        assert answer(first)["error"]["kind"] == "superseded"
        until(lambda: server._engine.waiting == 2)
        order: list[str] = []
        submit = server._engine._engine.submit

        def remember(obs, *, seed, **more):
            order.append(str(seed))
            return submit(obs, seed=seed, **more)

        for job in server._engine._pending:
            job.seed = int(job.arrived == min(one.arrived for one in server._engine._pending))
        server._engine._engine.submit = remember
        gate.open()
        answers = [answer(socket)["id"] for socket in (first, second)]
        assert answers == [3, 2]
        assert order == ["0", "1"]  # the newer one, of the first connection, was begun first


def test_reset_gives_up_what_is_under_way(gated):
    server, gate = gated
    with raw(server) as socket:
        gate.shut()
        ask(socket, {"type": "infer", "id": 1, "obs": observation()})
        assert gate.reached.wait(10)
        ask(socket, {"type": "reset", "id": 2})
        answers = [answer(socket), answer(socket)]
        gate.open()
        kinds = {one["id"]: one.get("error", one)["kind" if "error" in one else "type"] for one in answers}
        assert kinds == {1: "cancelled", 2: "reset"}
        ask(socket, {"type": "infer", "id": 3, "obs": observation()})
        assert answer(socket)["id"] == 3


def test_an_id_that_is_under_way_is_refused_and_so_are_too_many(gated):
    server, gate = gated
    with raw(server) as socket:
        gate.shut()
        for _ in range(2):
            ask(socket, {"type": "infer", "id": 1, "obs": observation()})
        assert answer(socket)["error"]["message"] == "request 1 is under way already"
        gate.open()
        assert answer(socket)["id"] == 1
    with serving(max_chains=1, supersede=False, limits={"max_in_flight": 2}) as other, raw(other) as socket:
        gate = Gate(other)
        gate.shut()
        for id in range(3):
            ask(socket, {"type": "infer", "id": id, "obs": observation()})
        refused = answer(socket)
        assert (refused["id"], refused["error"]["kind"]) == (2, "queue_full")
        gate.open()
        assert {answer(socket)["id"] for _ in range(2)} == {0, 1}


def test_requests_of_a_client_that_went_are_given_up(gated):
    server, gate = gated
    with raw(server) as socket:
        gate.shut()
        ask(socket, {"type": "infer", "id": 1, "obs": observation()})
        assert gate.reached.wait(10)
        ask(socket, {"type": "infer", "id": 2, "obs": observation()})
        until(lambda: server._engine.waiting == 1)
        socket.socket.shutdown(2)
    until(lambda: total(server, "connections", protocol=SUBPROTOCOL) == 0)
    until(lambda: server._engine.waiting == 0)  # nothing has been drawn since
    gate.open()
    until(lambda: server._engine.under_way == 0)
    assert total(server, "chunks_total", protocol=SUBPROTOCOL, exact="yes") == 0


def test_the_client_connects_again_and_says_what_is_wrong(server):
    with serving() as other:
        client = Client(other.url, timeout=20)
        assert client.ping() < 5
        client._socket.socket.shutdown(2)  # the network's doing
        assert client.infer(observation()).actions.shape == (15, 10)
        with pytest.raises(ServerError, match="bad_observation: observations lack") as refused:
            client.infer({})
        assert refused.value.kind == "bad_observation"
        client.reset()
    with pytest.raises(ConnectionLost, match="cannot be reached"):
        client.infer(observation())
    client.close()
    with pytest.raises(ConnectionLost, match="this client is closed"):
        client.infer(observation())
    with pytest.raises(ConnectionLost, match="cannot be reached"):
        Client(other.url)
    with pytest.raises(ValueError, match="ws://HOST:PORT"):
        Client("gpu-box:8000")


def test_the_client_waits_no_longer_than_asked(gated):
    server, gate = gated
    with Client(server.url) as client:
        gate.shut()
        with pytest.raises(TimeoutError, match="no answer within"):
            client.infer(observation(1), timeout=0.1)
        gate.open()
        late = client.infer(observation(2), seed=4)  # not the answer to the one before
        np.testing.assert_allclose(late.actions, client.infer(observation(2), seed=4).actions, atol=1e-5)


_NO_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("torch", "safetensors", "prometheus_client", "hydra"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocked())
import time
import numpy as np
from diffpolicy_spec.control import PlanRequest
from websockets.exceptions import ConnectionClosedError

from diffpolicy_spec.server import Client, RemotePlanner
with Client(sys.argv[1]) as client:
    obs = {key: np.ones((2, d)) for key, d in client.info.obs_dims.items()}
    print(client.infer(obs).actions.shape)
planner = RemotePlanner(sys.argv[1])
planner.start()
end = time.monotonic() + 20
while not planner.ready and time.monotonic() < end:
    time.sleep(0.01)
planner.submit(PlanRequest(1, obs, time.monotonic()))
came = []
while not came and time.monotonic() < end:
    came = planner.poll()
    time.sleep(0.01)
print(came[0].actions.shape, "torch" in sys.modules)
planner.close()
"""


def test_client_and_planner_need_no_torch(server):
    done = subprocess.run([sys.executable, "-c", _NO_TORCH, server.url], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(15, 10)\n(15, 10) False\n"
