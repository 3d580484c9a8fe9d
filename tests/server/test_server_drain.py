"""Going down: what is under way is answered, nothing new is begun, and the process ends with status 0."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from policy_servers import Gate, answer, ask, observation, raw, served_policy, serving, until
from websockets.exceptions import ConnectionClosed

from diffpolicy_spec.control import Plan, PlanRequest
from diffpolicy_spec.server import Client, ConnectionLost, RemotePlanner


def test_what_is_under_way_is_answered_and_new_requests_are_refused():
    with serving(max_chains=1) as server, raw(server) as busy, raw(server) as idle:
        gate = Gate(server)
        gate.shut()
        ask(busy, {"type": "infer", "id": 1, "obs": observation()})
        assert gate.reached.wait(10)
        openpi = WebsocketClientPolicy("127.0.0.1", server.port)
        chunk: list = []
        waiting = threading.Thread(target=lambda: chunk.append(openpi.infer(observation(0, steps=None))))
        waiting.start()
        until(lambda: server._engine.waiting == 1)
        ending = threading.Thread(target=server.stop)
        ending.start()
        with pytest.raises(ConnectionClosed, match="1012"):
            answer(idle)
        until(lambda: server.service.draining)
        with pytest.raises(ConnectionLost):
            Client(server.url, connect_timeout=2)
        ask(busy, {"type": "infer", "id": 2, "obs": observation()})
        refused = answer(busy)
        assert (refused["id"], refused["error"]["kind"]) == (2, "draining")
        gate.open()
        assert (answer(busy)["id"], "actions") == (1, "actions")
        with pytest.raises(ConnectionClosed, match="1012"):
            answer(busy)
        waiting.join(10)
        assert chunk[0]["actions"].shape == (8, 10)
        with pytest.raises(ConnectionClosed):
            openpi.infer(observation(0, steps=None))
        ending.join(10)
        assert not server._engine._thread.is_alive()


def test_what_is_not_done_in_time_is_given_up():
    with serving(drain_s=0.3) as server, raw(server) as busy:
        gate = Gate(server)
        gate.shut()
        ask(busy, {"type": "infer", "id": 1, "obs": observation()})
        assert gate.reached.wait(10)
        start = time.monotonic()
        ending = threading.Thread(target=server.stop)
        ending.start()
        with pytest.raises(ConnectionClosed, match="1001"):
            answer(busy)
        assert time.monotonic() - start < 3
        gate.open()
        ending.join(10)
        assert not ending.is_alive()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "tiny"
    served_policy().save(path)
    return path


class Process:
    """dps-serve in a process of its own."""

    def __init__(self, *settings: str) -> None:
        command = [sys.executable, "-m", "diffpolicy_spec.server.cli", *settings]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line.startswith("dps-serve: ws://127.0.0.1:"), line + self.process.stderr.read()
        self.url = line.split()[1]
        self.port = int(self.url.rpartition(":")[2])

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self, number: int) -> tuple[int, str]:
        """Status and log."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=20)
        return self.process.returncode, log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_status_0(checkpoint, number):
    with Process(f"policy={checkpoint}", "port=0") as served, Client(served.url) as client:
        assert client.infer(observation()).actions.shape == (15, 10)
        status, log = served.end(number)
        assert status == 0, log
        assert "going down" in log
        assert "Traceback" not in log


def test_a_planner_finds_a_server_that_was_killed_and_started_again(checkpoint):
    with Process(f"policy={checkpoint}", "port=0") as first:
        planner = RemotePlanner(first.url, backoff=(0.05, 0.2))
        planner.start()
        until(lambda: planner.ready)
        planner.submit(PlanRequest(1, observation(), 0.0))
        came: list = []
        until(lambda: came.extend(planner.poll()) or came)
        assert isinstance(came[0], Plan)
        first.end(signal.SIGKILL)
    until(lambda: not planner.ready)
    planner.submit(PlanRequest(2, observation(), 0.0))
    with Process(f"policy={checkpoint}", f"port={first.port}"):
        until(lambda: planner.ready)
        planner.submit(PlanRequest(3, observation(), 0.0))
        until(lambda: came.extend(planner.poll()) or any(isinstance(one, Plan) and one.id == 3 for one in came))
        planner.close()
    kinds = [(one.kind, one.recovered) for one in came if not isinstance(one, Plan)]
    assert ("connection_lost", False) in kinds
    assert ("connection_lost", True) in kinds
    assert [one.id for one in came if one.id is not None] == [1, 2, 3]


ENDS_WITHOUT_STOPPING = """
import sys, threading
from diffpolicy_spec.server import Client, PolicyServer, ServerConfig

sys.path[:0] = sys.argv[2:]
from policy_servers import observation

server = PolicyServer(sys.argv[1], ServerConfig(port=0)).start()
answered = threading.Event()

def drive():
    with Client(server.url) as client:
        while True:
            client.infer(observation())
            answered.set()

threading.excepthook = lambda args: None  # its server goes
for _ in range(3):
    threading.Thread(target=drive, daemon=True).start()
answered.wait()
"""


def test_a_program_may_end_without_stopping_its_server(checkpoint):
    """torch aborts a process that ends under one of its threads."""
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    ended = subprocess.run(
        [sys.executable, "-c", ENDS_WITHOUT_STOPPING, str(checkpoint), *folders], capture_output=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr.decode()


def test_an_address_that_is_not_ours_ends_it_with_one_line(checkpoint):
    command = [sys.executable, "-m", "diffpolicy_spec.server.cli", f"policy={checkpoint}", "port=0"]
    done = subprocess.run([*command, "host=192.0.2.7", "insecure=true"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "192.0.2.7" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
