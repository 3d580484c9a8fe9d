"""The robot of `faults_robot` on ROS: its contract, and its topics at a rosbridge server."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from faults_checks import SAFETY
from faults_running import HZ

JOINTS = ["j1", "j2", "j3", "j4"]
CONTRACT = f"""
name: axes
ros: 2
autostart: true
observations:
  - topic: /joints
    type: sensor_msgs/JointState
    joints: [j1, j2, j3, j4]
    keys: {{joints: position}}
  - topic: /goal
    type: std_msgs/Float64MultiArray
    keys: {{goal: {{field: data, slice: [0, 2]}}}}
actions:
  - topic: /command
    type: std_msgs/Float64MultiArray
    slice: [0, 4]
    names: [j1, j2, j3, j4]
synchronise: {{tolerance_ms: 1000, stamps: receipt}}
control: {{control_hz: {HZ}, policy_hz: 20, interpolation: linear, n_action_steps: 4}}
safety: {{low: {SAFETY.low}, high: {SAFETY.high}, velocity: {SAFETY.velocity}, acceleration: {SAFETY.acceleration},
  jerk: {SAFETY.jerk}, position_from: joints, watchdog_ms: {SAFETY.watchdog_ms}, action: hold,
  max_observation_age_ms: {SAFETY.max_observation_age_ms}}}
"""


class Axes:
    """A robot at a rosbridge server: goes where it is told, publishes where it is, 25 times a second.

    Attributes:
        names: of its joints. values: what is published instead of their positions, where it is set.
        places: where they are.
    """

    def __init__(self, server: Any) -> None:
        self.server, self.names = server, list(JOINTS)
        self.values: list[Any] | None = None
        self.places = np.zeros(4)
        server.on("/command", self._take, "std_msgs/msg/Float64MultiArray")
        self.switch_on()

    def switch_on(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._publish, daemon=True)
        self._thread.start()

    def _take(self, message) -> None:
        self.places = np.array(message["data"])

    def _publish(self) -> None:
        while not self._over.wait(0.04):
            values = self.places.tolist() if self.values is None else self.values
            joints = {"name": self.names, "position": values[: len(self.names)]}
            self.server.publish("/goal", "std_msgs/msg/Float64MultiArray", {"data": [0.5, -0.5]})
            self.server.publish("/joints", "sensor_msgs/msg/JointState", joints)

    def switch_off(self) -> None:
        self._over.set()
        self._thread.join()
