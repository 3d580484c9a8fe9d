"""The node on real sockets: services, trajectories, limits, diagnostics, mistakes."""

import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from ros_world import HOME, INFO, JOINTS, LiveArm, contract, planner, wander
from rosbridge_server import RosbridgeServer

from diffpolicy_spec.control import Plan, PolicyInfo, Subscriber
from diffpolicy_spec.ros.contract import ContractError
from diffpolicy_spec.ros.node import BridgeNode
from diffpolicy_spec.ros.roslib_transport import RoslibTransport


class Heard(Subscriber):
    """Faults, in order, and ticks."""

    def __init__(self) -> None:
        self.faults, self.ticks = [], []

    def on_fault(self, event) -> None:
        self.faults.append((event.kind, event.recovered, event.message))

    def on_tick(self, event) -> None:
        self.ticks.append(event)


@contextmanager
def cell(ros=2, more="", make=wander, info=INFO, names=JOINTS, begin=True):
    """A server, an arm, a node whose loop runs, and what it said."""
    heard = Heard()
    with RosbridgeServer(ros=ros) as server, LiveArm(server, names=names) as arm:
        transport = RoslibTransport(server.url, ros, ping_s=0.5, pong_s=1.0, backoff_s=(0.05, 0.2))
        node = BridgeNode(contract(ros, more), transport, planner(make, info), subscribers=[heard])
        try:
            if begin:
                node.begin()
            server.wait_for(lambda: server.has_service("/arm/emergency_stop") and server.subscriptions("/joint_states"))
            yield server, arm, node, heard
        finally:
            node.close()


def still(server, arm) -> None:
    """Wait until the arm stands."""
    places = [arm.place]

    def stands():
        places.append(arm.place)
        return len(places) > 5 and np.ptp(places[-5:], axis=0).max() < 1e-9

    server.wait_for(stands, 20, "the arm does not come to rest")


def check_limits(arm, limits=1.0) -> None:
    """Every point that was ever published keeps the limits of position and velocity."""
    for _, times, places in arm.arm.points:
        points = np.array(places)
        assert np.abs(points).max() <= limits + 1e-9
        assert np.abs(np.diff(points, axis=0)).max(initial=0) <= 1.0 * 0.05 + 1e-9
        assert np.allclose(np.diff(times), 0.05, atol=1e-6)


@pytest.mark.parametrize("ros", [1, 2])
def test_started_and_stopped_by_services(ros):
    with cell(ros) as (server, arm, node, heard):
        server.wait_for(lambda: node.loop.info is not None and len(heard.ticks) > 10)
        assert arm.taken == 0, "it moves without being started"
        assert node.loop.state == "paused"

        assert server.call_service("/arm/start") == {"success": True, "message": "started"}
        server.wait_for(lambda: arm.place[0] > HOME[0] + 0.1, 20, "the arm does not move")
        assert arm.place[1] == pytest.approx(HOME[1])

        assert server.call_service("/arm/stop") == {"success": True, "message": "stopped: hold"}
        server.wait_for(lambda: node.loop.state == "paused")
        still(server, arm)

        assert server.call_service("/arm/start")["success"]
        before = arm.place[0]
        server.wait_for(lambda: arm.place[0] > before + 0.05, 20, "it does not go on")
    assert arm.arm.refused == []
    check_limits(arm)


def test_a_chunk_is_one_trajectory_of_all_that_follows():
    with cell(more="autostart: true") as (server, arm, _node, _):
        server.wait_for(lambda: arm.taken >= 4, 20)
        messages = server.messages("/arm/command")
    whole = [message for message in messages if len(message["points"]) > 1]
    assert len(whole) >= 3
    for message in whole:
        # 15 actions, the first of them past when the chunk came; one is the command of that period.
        assert 11 <= len(message["points"]) <= 15
        assert message["joint_names"] == JOINTS
        steps = np.diff([point["positions"] for point in message["points"]], axis=0)
        np.testing.assert_allclose(steps[1:], np.tile([0.3 * 0.05, 0.0], (len(steps) - 1, 1)), atol=1e-9)
        times = [
            point["time_from_start"]["sec"] + 1e-9 * point["time_from_start"]["nanosec"] for point in message["points"]
        ]
        np.testing.assert_allclose(times, 0.05 * np.arange(1, len(times) + 1), atol=1e-6)


def test_an_emergency_stop_holds_until_reset_and_start():
    with cell(more="autostart: true") as (server, arm, node, _):
        server.wait_for(lambda: arm.place[0] > HOME[0] + 0.05, 20)
        assert server.call_service("/arm/emergency_stop")["success"]
        server.wait_for(lambda: node.loop.state == "stopped")
        still(server, arm)
        refused = server.call_service("/arm/start")
        assert not refused["success"]
        assert "call reset, then start" in refused["message"]
        place = arm.place
        assert server.call_service("/arm/reset")["success"]
        server.wait_for(lambda: node.emergency is None)
        still(server, arm)
        assert arm.place == place
        assert server.call_service("/arm/start")["success"]
        server.wait_for(lambda: arm.place[0] > place[0] + 0.05, 20, "it does not go on")


def test_an_emergency_stop_outlasts_a_lost_connection():
    with cell(more="autostart: true") as (server, arm, node, _):
        server.wait_for(lambda: arm.place[0] > HOME[0] + 0.05, 20)
        server.call_service("/arm/emergency_stop")
        server.wait_for(lambda: node.loop.state == "stopped")
        server.kill()
        server.wait_for(lambda: server.has_service("/arm/start") and server.counts["connections"] == 2)
        still(server, arm)
        assert not server.call_service("/arm/start")["success"]
        assert node.loop.state == "stopped"


def test_whatever_a_policy_wants_the_limits_hold():
    rng = np.random.default_rng(0)

    def wild(request):
        return Plan(request.id, rng.normal(0, 5, (15, 2)))

    with cell(more="autostart: true", make=wild) as (server, arm, node, _):
        server.wait_for(lambda: arm.taken >= 15, 30)
        counts = node.recorder.summary().interventions
    check_limits(arm)
    assert counts["position_limit"] > 0
    assert counts["velocity_limit"] > 0


def test_diagnostics_come_once_a_second_and_say_how_it_is():
    with cell(more="diagnostics: {topic: /diag}") as (server, _arm, node, _):
        timed = server.timed_messages("/diag", 4, 20)
        gaps = np.diff([at for at, _ in timed])
        assert np.all((gaps > 0.7) & (gaps < 1.6)), gaps
        control, policy, topics = timed[-1][1]["status"]
        assert (control["name"], control["level"], control["message"]) == ("arm: control", 0, "paused")
        assert (policy["level"], policy["message"]) == (0, "ready")
        values = {pair["key"]: pair["value"] for pair in topics["values"]}
        assert int(values["received.observations"]) > 20

        server.call_service("/arm/start")
        server.wait_for(lambda: len(node.recorder.summary().sources) > 1)
        seen = len(server.messages("/diag"))
        control = server.messages("/diag", seen + 2, 10)[-1]["status"][0]
        values = {pair["key"]: pair["value"] for pair in control["values"]}
        assert control["message"] == "running"
        assert float(values["latency_ms.p99"]) > 0
        assert values["acceptance"] == "0.9"
        assert int(values["sources.chunk"]) > 0

        server.call_service("/arm/emergency_stop")
        seen = len(server.messages("/diag"))
        control = server.messages("/diag", seen + 2, 10)[-1]["status"][0]
        assert (control["level"], control["message"]) == (2, "emergency stop: asked to by service")


def test_a_heartbeat_beats_while_commands_are_sent():
    with cell() as (server, _arm, _node, heard):
        server.wait_for(lambda: len(heard.ticks) > 10)
        assert server.messages("/arm/alive") == []
        server.call_service("/arm/start")
        beats = server.timed_messages("/arm/alive", 11, 20)
        gaps = np.diff([at for at, _ in beats])
        assert np.median(gaps) == pytest.approx(0.1, abs=0.03)
        assert abs(beats[-1][1]["stamp"]["sec"] - time.time()) < 30


def test_renamed_joints_are_named_and_the_arm_holds_until_they_are_back():
    with cell(more="autostart: true") as (server, arm, _node, heard):
        server.wait_for(lambda: arm.place[0] > HOME[0] + 0.05, 20)
        arm.names = ["j1", "elbow"]
        server.wait_for(lambda: any("joints j2 are missing" in message for _, _, message in heard.faults), 10)
        server.wait_for(lambda: heard.ticks[-1].source == "hold", 10)
        still(server, arm)
        arm.names = JOINTS
        before = arm.place[0]
        server.wait_for(lambda: arm.place[0] > before + 0.05, 20, "it does not go on")
        server.wait_for(lambda: ("observation_invalid", True) in [fault[:2] for fault in heard.faults], 10)
        check_limits(arm)


def test_a_silent_robot_is_told_and_gets_the_safety_action():
    with cell(more="autostart: true") as (server, arm, _node, heard):
        server.wait_for(lambda: arm.place[0] > HOME[0] + 0.05, 20)
        arm.silent = True
        server.wait_for(lambda: any("no message for" in message for _, _, message in heard.faults), 10)
        assert heard.ticks[-1].source == "hold"
        still(server, arm)
        arm.silent = False
        before = arm.place[0]
        server.wait_for(lambda: arm.place[0] > before + 0.05, 20, "it does not go on")


def test_after_a_lost_connection_it_goes_on_from_where_the_arm_is():
    with cell(more="autostart: true") as (server, arm, node, heard):
        server.wait_for(lambda: arm.place[0] > HOME[0] + 0.05, 20)
        server.stop()
        server.wait_for(lambda: ("connection_lost", False) in [fault[:2] for fault in heard.faults], 10)
        server.wait_for(lambda: node.robot.commands.counts["not_sent"] > 0, 10)
        time.sleep(1.0)  # the last trajectory ends
        place = arm.place
        taken = arm.taken
        server.start()
        server.wait_for(lambda: arm.taken > taken, 20, "it does not go on")
        [first, *_] = list(arm.arm.points)[taken:]
        np.testing.assert_allclose(first[2][0], place, atol=0.06)  # a period at most from where the arm stood
        server.wait_for(lambda: arm.place[0] > place[0] + 0.05, 20)
        assert ("connection_lost", True) in [fault[:2] for fault in heard.faults]
        assert arm.arm.refused == []
        check_limits(arm)


def test_a_contract_that_does_not_fit_the_policy_ends_the_node_before_anything_is_sent():
    info = PolicyInfo({"joint_pos": 2, "object": 3}, {}, 2, 4, 16, 2, 1)
    with cell(more="autostart: true", info=info, begin=False) as (_server, arm, node, _):
        with pytest.raises(ContractError, match=r"arm.yaml does not fit the policy: .*'object'"):
            node.run(20)
        assert arm.taken == 0
        level, message = (node.statuses()[0].level, node.statuses()[0].message)
        assert level == 2
        assert "'object'" in message


def test_actions_of_another_size_end_it_as_well():
    info = PolicyInfo({"joint_pos": 2}, {}, 2, 4, 16, 7, 1)
    with cell(more="autostart: true", info=info, begin=False) as (_server, arm, node, _):
        with pytest.raises(ContractError, match="take 2 numbers, the policy's actions have 7"):
            node.run(20)
        assert arm.taken == 0


def test_services_answer_whatever_happens():
    with cell(begin=False) as (server, _arm, _node, _):
        answer = server.call_service("/arm/start")
        assert answer == {"success": False, "message": "the control loop is not running"}


def test_closing_brings_the_arm_to_rest_and_leaves_no_thread():
    threads = set(threading.enumerate())
    with cell(more="autostart: true") as (server, arm, node, _):
        server.wait_for(lambda: arm.place[0] > HOME[0] + 0.05, 20)
        node.close()
        still(server, arm)
        server.wait_for(lambda: server.clients == 0)
        assert server.messages("/diagnostics")[-1]["status"][0]["message"] == "the loop is not running"
    left = [thread.name for thread in set(threading.enumerate()) - threads]
    assert [name for name in left if name != "rosbridge" and "PoolThread" not in name] == []
