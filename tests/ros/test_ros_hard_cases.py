"""The node at the worst moment: reset while it moves, a base that is commanded in velocities, listeners that hang."""

import logging
import os
import threading
import time

import numpy as np
import pytest
from local_transport import LocalTransport
from ros_world import contract, planner, wander
from websockets.sync.server import serve

from diffpolicy_spec.control import Plan, PolicyInfo, Subscriber
from diffpolicy_spec.control.events import Fault
from diffpolicy_spec.ros.cli import Sayer
from diffpolicy_spec.ros.contract import ContractError, parse_contract
from diffpolicy_spec.ros.node import BridgeNode
from diffpolicy_spec.ros.roslib_transport import RoslibTransport

BASE = """
name: base
ros: 2
observations:
  - {{topic: /state, type: std_msgs/Float64MultiArray, keys: {{state: {{field: data, slice: [0, 1]}}}}}}
actions:
  - {{topic: /cmd_vel, type: geometry_msgs/Twist, fields: [linear.x, angular.z]}}
control: {{control_hz: 20, n_action_steps: 4}}
autostart: true
{safety}
"""
INFO = PolicyInfo({"state": 1}, {}, 2, 4, 16, 2, 1)


def wait_for(what, timeout=10.0):
    end = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


class Robot:
    """Says readings on a local transport, from a thread."""

    def __init__(self, transport, topic, message) -> None:
        self.transport, self.topic, self.message = transport, topic, message
        self.silent = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.02):
            self.transport.time += 0.02
            if not self.silent and self.transport.connected:
                self.transport.say(self.topic, self.message())


def base(safety=""):
    return parse_contract(BASE.format(safety=safety), "base.yaml")


def driving(request):
    return Plan(request.id, np.tile([0.4, 0.1], (15, 1)))


@pytest.fixture
def wheels():
    """A base that drives: transport, node, its speeds so far, and what says its readings."""
    transport = LocalTransport()
    node = BridgeNode(base(), transport, planner(driving, INFO))
    with Robot(transport, "/state", lambda: {"data": [0.0]}) as robot:
        node.begin()
        try:
            wait_for(lambda: speeds(transport)[-1:] == [0.4])
            yield transport, node, robot
        finally:
            node.close()


def speeds(transport):
    return [message["linear"]["x"] for message in transport.sent["/cmd_vel"]]


def test_a_base_without_readings_stands(wheels):
    """Twists are velocities, said or not: to hold is to stand, not to go on with the last one."""
    transport, node, robot = wheels
    robot.silent = True
    wait_for(lambda: speeds(transport)[-1] == 0.0)
    assert node.loop.state == "running"


def test_a_base_that_is_reset_stands(wheels):
    transport, _node, _ = wheels
    transport.services["/base/reset"]({})
    wait_for(lambda: speeds(transport)[-1] == 0.0)


def test_a_base_stands_when_the_connection_is_back(wheels):
    transport, node, robot = wheels
    robot.silent = True  # what it needs to go on
    transport.cut()
    before = len(speeds(transport))
    time.sleep(0.1)
    transport.mend()
    wait_for(lambda: len(speeds(transport)) > before)
    assert speeds(transport)[before] == 0.0
    assert node.loop.state != "stopped"


@pytest.mark.parametrize("safety", ["safety: {kind: position}", "safety: {limits: {linear.x: {kind: free}}}"])
def test_a_twist_is_no_position(safety):
    with pytest.raises(ContractError, match=r"base.yaml:\d+: .*Twist.*velocit"):
        base(safety)


def test_limits_that_would_not_be_kept_are_refused():
    text = "safety: {limits: {linear.x: {velocity: 1.0}, angular.z: {acceleration: 2.0}}}"
    assert base(text).safety.kind == ("velocity", "velocity")
    with pytest.raises(ContractError, match="free"):
        parse_contract(
            BASE.format(safety="safety: {limits: {g: {kind: free, velocity: 1.0}}}").replace(
                "{topic: /cmd_vel, type: geometry_msgs/Twist, fields: [linear.x, angular.z]}",
                "{topic: /hand, type: std_msgs/Float64MultiArray, names: [g]}",
            )
        )


def test_limits_of_a_position_that_nobody_tells_are_told_by_line():
    with pytest.raises(ContractError, match=r"base.yaml:\d+: safety: linear.x is commanded by its velocity"):
        base("safety: {limits: {linear.x: {low: -0.5, high: 0.5}}}")
    with pytest.raises(ContractError, match=r"base.yaml:\d+: safety: .*position_index"):
        base("safety: {position_index: [0, 1]}")


def test_settings_that_exclude_each_other_are_told_by_line():
    with pytest.raises(ContractError, match=r"base.yaml:\d+: .*meanwhile"):
        parse_contract(
            BASE.format(safety="safety: {action: stop}").replace("n_action_steps: 4", "meanwhile: hold"), "base.yaml"
        )


@pytest.fixture
def arm():
    """An arm that is driven by trajectories, on a local transport."""
    transport = LocalTransport()
    node = BridgeNode(contract(more="autostart: true"), transport, planner(wander))
    place = [0.1, -0.1]

    def message():
        if transport.sent["/arm/command"]:
            place[:] = transport.sent["/arm/command"][-1]["points"][0]["positions"]
        return {"name": ["j1", "j2"], "position": list(place)}

    with Robot(transport, "/joint_states", message):
        node.begin()
        try:
            wait_for(lambda: any(len(m["points"]) > 5 for m in transport.sent["/arm/command"]))
            yield transport, node
        finally:
            node.close()


def test_a_reset_ends_the_trajectory_that_is_being_followed(arm):
    transport, node = arm
    transport.services["/arm/reset"]({})
    wait_for(lambda: node.loop.state == "paused")
    wait_for(lambda: len(transport.sent["/arm/command"][-1]["points"]) == 1)


def test_trajectories_are_sent_though_nobody_looks_after_them(arm):
    """The node's own listener is told no more when it has raised: commands then go out as they are made."""
    transport, node = arm

    def broken(count, dt=None):
        raise RuntimeError("broken")

    node.loop.following = broken
    wait_for(lambda: "subscriber_failed" in node.loop.fault_counts)
    before = len(transport.sent["/arm/command"])
    wait_for(lambda: len(transport.sent["/arm/command"]) > before + 5)


def test_each_run_waits_for_its_start():
    """Activated again, a lifecycle node does not go on where somebody had started it before."""
    transport = LocalTransport()
    text = BASE.format(safety="").replace("autostart: true", "")
    node = BridgeNode(parse_contract(text), transport, planner(driving, INFO))
    with Robot(transport, "/state", lambda: {"data": [0.0]}):
        try:
            node.begin()
            wait_for(lambda: transport.services["/base/start"]({})["success"])
            wait_for(lambda: speeds(transport)[-1:] == [0.4])
            node.end()
            assert node.wait(10)
            before = len(speeds(transport))
            node.begin()
            wait_for(lambda: node.loop.state == "paused")
            time.sleep(0.5)
            assert set(speeds(transport)[before:]) <= {0.0}
        finally:
            node.close()


def test_a_loop_that_hangs_is_told_in_the_diagnostics(wheels):
    _, node, _ = wheels
    hang = threading.Event()
    node.robot.readings = lambda: hang.wait(20) and []
    try:
        wait_for(lambda: "hangs since" in node.statuses()[0].message)
        assert node.statuses()[0].level == 2
        wait_for(lambda: node.transport.sent["/cmd_vel"][-1]["linear"]["x"] == 0.0)
    finally:
        hang.set()
    wait_for(lambda: "hangs" not in node.statuses()[0].message)


def test_a_loop_that_is_ended_by_an_error_ends_the_trajectory(arm):
    transport, node = arm

    class Ends(Subscriber):
        def on_tick(self, event):
            if len(transport.sent["/arm/command"][-1]["points"]) > 5:
                raise KeyboardInterrupt

    node.loop.subscribe(Ends())
    with pytest.raises(KeyboardInterrupt):
        node.wait(10)
    last = transport.sent["/arm/command"][-1]
    assert len(last["points"]) == 1
    np.testing.assert_allclose(last["points"][0]["positions"], node.loop._driver._safety._motion.position)


def test_a_topic_that_stays_silent_stays_a_fault(arm):
    _, node = arm
    node.robot._receive = None  # nothing of what follows matters
    for topic in node.transport.subscriptions:
        node.transport.subscriptions[topic] = lambda message, received: None
    wait_for(lambda: "observation_invalid" in node.loop.faults)
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert "observation_invalid" in node.loop.faults
        time.sleep(0.05)


def test_a_log_that_nobody_reads_does_not_hold_the_loop():
    """Standard error may be a pipe whose reader has stopped."""
    read, write = os.pipe()
    logger = logging.getLogger("diffpolicy_spec.ros")
    with os.fdopen(write, "w") as stream:
        handler = logging.StreamHandler(stream)
        logger.addHandler(handler)
        try:
            sayer = Sayer()
            began = time.monotonic()
            for i in range(5000):
                sayer.on_fault(Fault(float(i), "bad_message", "x" * 100))
            assert time.monotonic() - began < 2
        finally:
            logger.removeHandler(handler)
            os.close(read)  # writing fails now, and goes on
            sayer.close()


def test_a_server_that_talks_and_does_not_listen_is_given_up():
    """Commands would wait in the line for as long as it takes, and come late."""
    calm = threading.Event()
    sockets = []

    def handle(socket):
        sockets.append(socket)
        socket.socket.setsockopt(1, 8, 1 << 12)
        # Not a frame is read beyond what the library keeps; readings go on to come.
        while not calm.wait(0.05):
            try:
                socket.send('{"op": "status", "level": "info", "msg": "alive"}')
            except Exception:
                return

    with serve(handle, "127.0.0.1", 0, ping_interval=None, max_queue=1) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        lost = []
        transport = RoslibTransport(
            f"ws://127.0.0.1:{server.socket.getsockname()[1]}", 2, ping_s=0.2, pong_s=0.3, backoff_s=(5.0, 5.0)
        )
        transport.on_disconnect(lost.append)
        publish = transport.advertise("/out", "std_msgs/Float64MultiArray")
        try:
            wait_for(lambda: transport.connected)
            end = time.monotonic() + 20
            while not lost:
                assert time.monotonic() < end, "it goes on to write into the line"
                publish({"data": [0.5] * 5000})
                time.sleep(0.005)
            assert "does not read" in lost[0]
        finally:
            calm.set()
            transport.close()
            server.shutdown()
            thread.join()
