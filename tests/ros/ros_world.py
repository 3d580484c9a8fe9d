"""A two-joint arm behind a rosbridge server, and planners that move it."""

from __future__ import annotations

import threading
import time

import numpy as np
from fake_arm import Arm

from diffpolicy_spec.control import Plan, PlanCost, PlanRequest, PolicyInfo
from diffpolicy_spec.control.planning.inline import InlinePlanner
from diffpolicy_spec.ros.contract import parse_contract

JOINTS = ["j1", "j2"]
HOME = [0.1, -0.1]
CONTRACT = """
name: arm
ros: {ros}
observations:
  - topic: /joint_states
    type: sensor_msgs/JointState
    joints: [j1, j2]
    keys: {{joint_pos: position}}
actions:
  - topic: /arm/command
    type: trajectory_msgs/JointTrajectory
    joints: [j1, j2]
control: {{control_hz: 20, n_action_steps: 4}}
safety:
  limits:
    j1: {{low: -1.0, high: 1.0, velocity: 1.0, acceleration: 20.0}}
    j2: {{low: -1.0, high: 1.0, velocity: 1.0, acceleration: 20.0}}
  position_from: joint_pos
  max_observation_age_ms: 400
  watchdog_ms: 500
heartbeat: {{topic: /arm/alive, hz: 10}}
{more}
"""
INFO = PolicyInfo({"joint_pos": 2}, {}, 2, 4, 16, 2, 1, policy="function")
SPEED = 0.3


def contract(ros: int = 2, more: str = ""):
    """The arm's contract; more: further sections."""
    return parse_contract(CONTRACT.format(ros=ros, more=more), "arm.yaml")


def wander(request: PlanRequest) -> Plan:
    """Joint 1 goes up, at SPEED, from where it is observed; joint 2 stays."""
    here = request.obs["joint_pos"][-1]
    steps = np.arange(INFO.horizon - INFO.first)[:, None] * [SPEED * 0.05, 0.0]
    return Plan(request.id, here + steps, cost=PlanCost(5.0, calls=3, accepted=90, rejected=10))


def planner(make=wander, info: PolicyInfo = INFO) -> InlinePlanner:
    """Of a function."""
    return InlinePlanner(make, info=info)


class LiveArm:
    """An arm that follows the trajectories a server gets, and publishes where it is.

    Args:
        server: a RosbridgeServer. hz: of its joint states. names: joints as it calls them.
    """

    def __init__(self, server, hz: float = 50.0, names=JOINTS) -> None:
        self.server, self.names, self.arm = server, list(names), Arm(JOINTS, HOME)
        self.kind = "sensor_msgs/msg/JointState" if server.ros == 2 else "sensor_msgs/JointState"
        trajectory = "trajectory_msgs/msg/JointTrajectory" if server.ros == 2 else "trajectory_msgs/JointTrajectory"
        self.silent = False
        self._lock, self._end, self._hz = threading.Lock(), threading.Event(), hz
        server.on("/arm/command", self._take, trajectory)
        self._thread = threading.Thread(target=self._publish, daemon=True)

    def __enter__(self) -> LiveArm:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        self._thread.join()

    @property
    def place(self) -> list[float]:
        with self._lock:
            return self.arm.position(time.time())

    @property
    def taken(self) -> int:
        return self.arm.taken

    def _take(self, message) -> None:
        with self._lock:
            self.arm.follow(message, time.time())

    def message(self) -> dict:
        now = time.time_ns()
        whole, nano = divmod(now, 1_000_000_000)
        stamp = {"sec": whole, "nanosec": nano} if self.server.ros == 2 else {"secs": whole, "nsecs": nano}
        # Another joint beside, and in another order than the policy's.
        names, places = [*reversed(self.names), "finger"], [*reversed(self.place), 0.04]
        return {"header": {"stamp": stamp}, "name": names, "position": places}

    def _publish(self) -> None:
        while not self._end.wait(1 / self._hz):
            if not self.silent:
                self.server.publish("/joint_states", self.kind, self.message())
