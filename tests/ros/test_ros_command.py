"""dps-ros-bridge as a process of its own: a policy, an arm, a server that dies and comes back."""

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from ros_world import CONTRACT, HOME, LiveArm
from rosbridge_server import RosbridgeServer
from tiny_arm_policy import save_arm_policy

from diffpolicy_spec.control import SafetyConfig
from diffpolicy_spec.control.jsonl import summary_of

GOAL = [0.6, 0.4]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_arm_policy(tmp_path_factory.mktemp("arm") / "policy", {"joint_pos": 2}, GOAL, reach=0.02)


class Command:
    """The running command, and what it printed."""

    def __init__(self, *args: str, **env: str) -> None:
        command = [sys.executable, "-m", "diffpolicy_spec.ros.cli", *args]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"} | env, **options)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def end(self, sent: int | None = signal.SIGTERM, timeout: float = 30) -> int:
        if sent is not None and self.process.poll() is None:
            self.process.send_signal(sent)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(10)
        return code


@contextmanager
def running(tmp_path, policy, *more: str, ros: int = 1):
    """A server, an arm, and the command driving it."""
    path = tmp_path / "arm.yaml"
    path.write_text(CONTRACT.format(ros=ros, more="autostart: true"))
    with RosbridgeServer(ros=ros) as server, LiveArm(server) as arm:
        args = [f"contract={path}", f"url={server.url}", f"policy={policy}", "sampler=ddim10", "warm_up=1", *more]
        command = Command(*args, "backoff_s=[0.1,0.5]", "ping_s=0.5", "pong_s=1.0")
        try:
            yield server, arm, command
        finally:
            if command.process.poll() is None:
                command.process.kill()
            command.end(None)


def near(arm) -> bool:
    return np.abs(np.subtract(arm.place, GOAL)).max() < 0.05


def away(arm) -> None:
    """Put the arm back where it began."""
    with arm._lock:
        arm.arm._path = [(0.0, list(HOME))]


def test_it_drives_the_arm_through_a_dead_and_a_silent_server_and_ends_at_a_signal(tmp_path, policy):
    records = tmp_path / "arm.jsonl"
    with running(tmp_path, policy, f"records={records}", f"rerun={tmp_path / 'arm.rrd'}") as (server, arm, command):
        server.wait_for(lambda: near(arm), 120, "the arm does not get there")

        server.stop()
        away(arm)
        taken = arm.taken
        server.start()
        server.wait_for(lambda: near(arm), 60, f"it does not go on: {command.said}")
        [first, *_] = list(arm.arm.points)[taken:]
        # It begins where the arm stands now, not where it left it.
        np.testing.assert_allclose(first[2][0], HOME, atol=0.06)

        server.half_open(True)
        server.wait_for(lambda: "did not answer a ping" in command.said, 20, "silence is not noticed")
        away(arm)
        server.half_open(False)
        server.wait_for(lambda: near(arm), 60, f"it does not go on: {command.said}")

        assert command.end(signal.SIGTERM) == 0
        server.wait_for(lambda: server.clients == 0)
        final = server.messages("/diagnostics")[-1]["status"][0]
    assert final["message"] == "the loop is not running"
    assert "connection_lost: no connection to ROS" in command.said
    assert "connection_lost: connected" in command.said
    assert re.search(r"stopped: SIGTERM", command.said)
    summary = summary_of(records)
    assert summary.faults["connection_lost"].count == 2
    assert not summary.faults["connection_lost"].ongoing
    assert summary.chunks > 5
    assert (tmp_path / "arm.rrd").stat().st_size > 1000
    limits = SafetyConfig(low=-1.0, high=1.0)
    for _, _, places in arm.arm.points:
        assert np.abs(places).max() <= limits.high + 1e-9
        assert np.abs(np.diff(places, axis=0)).max(initial=0) <= 1.0 * 0.05 + 1e-9


def test_a_server_that_is_not_there_yet_is_waited_for(tmp_path, policy):
    with running(tmp_path, policy) as (server, arm, command):
        server.stop()
        server.wait_for(lambda: "there is no connection to ROS yet" in command.said or "lost" in command.said, 60)
        server.start()
        server.wait_for(lambda: near(arm), 120, f"the arm does not get there: {command.said}")
        assert command.end(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["contract=none.yaml"], "No such file or directory: 'none.yaml'"),
        (["contract={bad}"], "bad.yaml:3: ros: must be one of 1, 2"),
        (["contract={good}", "policy=nope"], "policy=nope: no such path, nor a shipped policy (can, lift, square)"),
        (["contract={good}", "url=http://x"], "is no websocket: write ws://HOST:PORT"),
        (["contract={good}", "backoff_s=3"], "backoff_s must be [first, longest]"),
        (["contract={good}", "watch=3"], "watch must be true or false"),
        (["contract={good}", "server=gpu"], "ws://"),
    ],
)
def test_a_wrong_setting_ends_it_with_one_line(tmp_path, args, words):
    (tmp_path / "good.yaml").write_text(CONTRACT.format(ros=1, more=""))
    (tmp_path / "bad.yaml").write_text(CONTRACT.format(ros=3, more=""))
    paths = {"good": tmp_path / "good.yaml", "bad": tmp_path / "bad.yaml"}
    command = Command(*[arg.format(**paths) for arg in args])
    assert command.end(None, 60) == 1
    assert words in command.said
    assert command.said.startswith("dps-ros-bridge: ")
    assert command.said.count("\n") == 1


def test_a_contract_for_another_policy_ends_it_with_what_does_not_fit(tmp_path, policy):
    other = save_arm_policy(tmp_path / "other", {"joint_pos": 2, "object": 3}, [*GOAL, 0.0])
    with running(tmp_path, other) as (_, arm, command):
        assert command.end(None, 90) == 1
        assert arm.taken == 0
    assert "does not fit the policy: the policy observes 'object'" in command.said
    assert "take 2 numbers, the policy's actions have 3" in command.said


def test_neither_ros_nor_torch_nor_roslibpy_is_imported_before_it_is_used():
    code = (
        "import sys, diffpolicy_spec.ros.node, diffpolicy_spec.ros.cli, diffpolicy_spec.ros.roslib_transport; "
        "sys.exit(', '.join({'torch', 'rclpy', 'roslibpy', 'twisted', 'yaml', 'PIL'} & set(sys.modules)) or 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
