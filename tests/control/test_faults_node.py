"""The ROS node's robot and the way to it go wrong while its loop runs: real sockets, the policy in its own process."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axes import CONTRACT, JOINTS, Axes
from faults_checks import Told, check_stream
from faults_policy import save_policy
from faults_processes import wait_for
from faults_robot import NumericRobot
from faults_running import HZ, SOON, is_over, recovered

from diffpolicy_spec.control.planning import ProcessPlanner
from diffpolicy_spec.ros.contract import parse_contract
from diffpolicy_spec.ros.node import BridgeNode
from diffpolicy_spec.ros.roslib_transport import RoslibTransport

sys.path.append(str(Path(__file__).resolve().parents[1] / "ros"))
from rosbridge_server import RosbridgeServer

GONE = ("connection_lost", "server_unreachable")
MB = 1 << 20


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    with ProcessPlanner(save_policy(tmp_path_factory.mktemp("policy") / "tiny")) as planner:
        planner.close, close = lambda: None, planner.close  # a node closes its planner; this one serves all tests
        yield planner
        planner.close = close


@contextmanager
def driving(planner) -> Iterator[tuple[RosbridgeServer, Axes, Told, BridgeNode]]:
    """A node that drives; after it its commands are checked, as the loop gave them to the topics."""
    told, given = Told(), NumericRobot()
    with RosbridgeServer(ros=2) as server:
        axes = Axes(server)
        transport = RoslibTransport(server.url, 2, ping_s=0.3, pong_s=0.7, backoff_s=(0.05, 0.2))
        node = BridgeNode(parse_contract(CONTRACT), transport, planner, subscribers=[told])
        send = node.robot.send

        def kept(action, time) -> None:
            # After a period without a command the next one is held against where the axes are.
            given.send(action, time, None if told.ticks and told.ticks[-1].action is not None else axes.places)
            send(action, time)

        node.robot.send = kept
        node.begin()
        try:
            wait_for(lambda: told.fresh >= 5, SOON, lambda: f"the loop did not begin: {told.faults}")
            yield server, axes, told, node
        finally:
            node.end("the test is over")
            assert node.wait(20.0), "the loop did not stop"
            node.close()
            axes.switch_off()
    check_stream(given.sent, told.ticks, HZ)


def flows(server: RosbridgeServer, told: Told) -> None:
    """Chunks are made and commands arrive at the robot."""
    recovered(told)
    server.forget_messages("/command")
    server.messages("/command", 20, SOON)


@pytest.mark.parametrize(
    ("names", "words"), [(["a1", "a2", "a3", "a4"], "j1, j2, j3, j4"), (JOINTS[:3], "j4")], ids=["renamed", "missing"]
)
def test_joints_are_renamed_or_missing(planner, names, words):
    with driving(planner) as (server, axes, told, _):
        axes.names = names
        wait_for(lambda: told.began("observation_invalid"), SOON, lambda: f"not told: {told.faults}")
        assert words in told.began("observation_invalid")[0].message
        wait_for(lambda: told.ticks[-1].source == "hold", SOON, "no safety action")
        axes.names = list(JOINTS)
        flows(server, told)
        is_over(told, "observation_invalid")


def test_positions_that_are_no_numbers(planner):
    with driving(planner) as (server, axes, told, _):
        axes.values = [0.0, math.nan, 0.0, 0.0]  # null on the way
        wait_for(
            lambda: told.kinds() & {"observation_invalid", "nonfinite_observation"}, SOON, lambda: str(told.faults)
        )
        wait_for(lambda: told.ticks[-1].source == "hold", SOON, "no safety action")
        axes.values = None
        flows(server, told)
        is_over(told, "observation_invalid")


def test_the_socket_is_cut(planner):
    with driving(planner) as (server, _, told, _):
        for _ in range(3):
            server.kill()
            flows(server, told)
        assert told.began("connection_lost")
        is_over(told, *GONE)


def test_the_socket_is_half_open(planner):
    with driving(planner) as (server, _, told, _):
        server.half_open(True)
        wait_for(lambda: told.began("connection_lost"), SOON, lambda: f"not told: {told.faults}")
        wait_for(lambda: told.ticks[-1].source in ("hold", "nothing"), SOON, "no safety action")
        server.half_open(False)
        flows(server, told)
        is_over(told, *GONE)


def test_the_server_is_stopped_and_started(planner):
    with driving(planner) as (server, axes, told, _):
        axes.switch_off()
        server.stop()
        wait_for(lambda: told.began("connection_lost"), SOON, lambda: f"not told: {told.faults}")
        server.start()
        axes.switch_on()
        flows(server, told)
        is_over(told, *GONE)


@pytest.mark.parametrize(
    ("frames", "told_as"),
    [(["{no json"] * 10_000, {"bad_message"}), ([b"\xff"] * 10_000, {"bad_message"}),
     (["{" + " " * (100 * MB) + "}"], {*GONE, "bad_message"})],
    ids=["10,000 that are no JSON", "10,000 that are no text", "100 MB"],
)  # fmt: skip
def test_the_server_floods(planner, frames, told_as):
    with driving(planner) as (server, _, told, _):
        for frame in frames:
            server.send_raw(frame)
        wait_for(lambda: told.kinds() & told_as, SOON, lambda: f"not told: {told.faults}")
        flows(server, told)
        is_over(told, *told_as)


def test_the_worker_is_killed_and_diagnostics_say_so(planner):

    with driving(planner) as (server, _, told, _):
        os.kill(planner.pid, signal.SIGKILL)
        wait_for(lambda: told.began("worker_died"), SOON, lambda: f"not told: {told.faults}")
        server.wait_for(lambda: "worker_died" in str(server.messages("/diagnostics")), SOON)
        flows(server, told)
        is_over(told, "worker_died")
