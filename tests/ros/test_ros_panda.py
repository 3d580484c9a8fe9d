"""The Panda example, end to end: contract, node and policy in one process, rosbridge's protocol, a seven-joint arm."""

import io
import threading
import time

import numpy as np
import pytest
from fake_arm import Arm
from PIL import Image
from rosbridge_server import RosbridgeServer
from tiny_arm_policy import save_arm_policy

from diffpolicy_spec.control.planning import ProcessPlanner
from diffpolicy_spec.ros.contract import load_contract
from diffpolicy_spec.ros.contracts import example
from diffpolicy_spec.ros.node import BridgeNode
from diffpolicy_spec.ros.roslib_transport import RoslibTransport

JOINTS = [f"panda_joint{i}" for i in range(1, 8)]
HOME = [0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785]
GOAL = [0.6, -0.4, -0.5, -1.9, 0.4, 1.9, 0.3]
COMMAND = "/position_joint_trajectory_controller/command"


class Panda:
    """The robot's side: joint states and camera images out, trajectories and gripper widths in."""

    def __init__(self, server: RosbridgeServer) -> None:
        self.server, self.arm, self.widths = server, Arm(JOINTS, HOME), []
        self.lock, self.end = threading.Lock(), threading.Event()
        picture = io.BytesIO()
        Image.fromarray(np.full((96, 128, 3), 90, np.uint8)).save(picture, "jpeg")
        self.picture = picture.getvalue()
        server.on(COMMAND, self.follow, "trajectory_msgs/JointTrajectory")
        server.on("/gripper/width", lambda m: self.widths.extend(m["data"]), "std_msgs/Float64MultiArray")
        self.thread = threading.Thread(target=self.publish, daemon=True)
        self.thread.start()

    def follow(self, message) -> None:
        with self.lock:
            self.arm.follow(message, time.time())

    def place(self) -> list[float]:
        with self.lock:
            return self.arm.position(time.time())

    def publish(self) -> None:
        while not self.end.wait(0.02):
            now = time.time()
            header = {"stamp": {"secs": int(now), "nsecs": int(1e9 * (now % 1))}}
            # In an order of its own, with a joint the policy does not know.
            message = {
                "header": header,
                "name": ["panda_finger_joint2", "panda_finger_joint1", *reversed(JOINTS)],
                "position": [0.02, 0.02, *reversed(self.place())],
                "velocity": [0.0] * 9,
                "effort": [float("nan")] * 9,
            }
            self.server.publish("/joint_states", "sensor_msgs/JointState", message)
            image = {"header": header, "format": "jpeg", "data": self.picture}
            topic = "/wrist_camera/color/image_raw/compressed"
            self.server.publish(topic, "sensor_msgs/CompressedImage", image)

    def stop(self) -> None:
        self.end.set()
        self.thread.join(5)


def within_limits(arm: Arm, safety, period: float) -> None:
    """Every point of every trajectory is within position and velocity limits, and follows from the one before."""
    low, high, velocity = (np.asarray(limit[:7]) for limit in (safety.low, safety.high, safety.velocity))
    for _, times, places in arm.points:
        points = np.array(places)
        assert (points >= low - 1e-9).all()
        assert (points <= high + 1e-9).all()
        speeds = np.abs(np.diff(points, axis=0)) / np.diff(times)[:, None]
        assert (speeds <= velocity + 1e-3).all(), speeds.max(axis=0)
        assert np.allclose(np.diff(times), period, atol=1e-3)


def test_a_panda_is_started_driven_within_its_limits_and_stopped(tmp_path):
    contract = load_contract(example("panda"))
    policy = save_arm_policy(
        tmp_path / "panda",
        {"joint_pos": 7, "joint_vel": 7, "gripper_pos": 1},
        [*GOAL, 0.04],
        reach=0.02,
        image_shapes={"wrist": (3, 96, 96)},
    )
    with RosbridgeServer(ros=1) as server:
        robot = Panda(server)
        planner = ProcessPlanner(policy, sampler=None, warm_up=1)
        node = BridgeNode(contract, RoslibTransport(server.url, 1), planner)
        try:
            node.begin()
            server.wait_for(lambda: planner.ready, 120, "the policy is not ready")
            server.wait_for(lambda: server.has_service("/panda_policy/start"))
            assert robot.place() == pytest.approx(HOME), "it moves without being started"

            assert server.call_service("/panda_policy/start")["success"]
            server.wait_for(lambda: np.abs(np.subtract(robot.place(), GOAL)).max() < 0.06, 60, "it does not get there")
            server.wait_for(lambda: len(robot.widths) > 5)
            assert all(0 <= width <= 0.08 for width in robot.widths)

            assert server.call_service("/panda_policy/stop")["success"]
            server.wait_for(lambda: _at_rest(robot), 20, "it does not come to rest")
            rest = robot.place()
            time.sleep(0.5)
            assert robot.place() == pytest.approx(rest, abs=1e-6)

            assert server.call_service("/panda_policy/emergency_stop")["success"]
            assert not server.call_service("/panda_policy/start")["success"], "an emergency stop was overruled"
            assert server.call_service("/panda_policy/reset")["success"]
            assert server.call_service("/panda_policy/start")["success"]
            taken = robot.arm.taken
            server.wait_for(lambda: robot.arm.taken > taken + 2, 30, "it does not go on after a reset")

            [*_, last] = server.messages("/diagnostics", 3)
            assert {status["hardware_id"] for status in last["status"]} == {"panda_policy"}
        finally:
            node.close()
            robot.stop()
        assert robot.arm.refused == []
        within_limits(robot.arm, contract.safety, 1 / contract.control.control_hz)


def _at_rest(robot: Panda) -> bool:
    before = robot.place()
    time.sleep(0.1)
    return np.abs(np.subtract(robot.place(), before)).max() < 1e-9
