"""A simulated robot on ROS: a process that publishes what a `LiveSim` reads and takes its commands from topics.

    python benchmarks/robot_topics.py --url ws://127.0.0.1:9090 [--control-hz 20] [--max-steps 400]

It speaks rosbridge's protocol as any robot behind a rosbridge server would be heard, with the topics of the contract
`lift_sim` that comes with the package. Episodes are asked for by lines of JSON: {"reset": seed} answers
{"standing": seed}; {"result": timeout} answers what came of the episode, or null; the end of its input ends it.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from diffpolicy_spec.control import Observation
from diffpolicy_spec.envs.config import EnvConfig
from diffpolicy_spec.envs.realtime import EpisodeResult, LiveSim
from diffpolicy_spec.rotations import matrix_to_rot6d, quat_xyzw_to_matrix

__all__ = ["Topics", "described", "main"]

FINGERS = ["gripper_left", "gripper_right"]
PUBLISHED = {
    "/sim/object": "std_msgs/msg/Float64MultiArray", "/sim/joint_states": "sensor_msgs/msg/JointState",
    "/sim/eef_pose": "geometry_msgs/msg/PoseStamped",
}  # fmt: skip
TAKEN = {"/sim/gripper": "std_msgs/msg/Float64MultiArray", "/sim/eef_target": "geometry_msgs/msg/PoseStamped"}


class Topics:
    """A robot's topics at a rosbridge server; connects again when the connection is lost.

    A pose is executed at the time in its header, together with the gripper's command that came last.

    Args:
        sim: the robot; its readings' times are `time.monotonic`'s.
        url: of the rosbridge server.
    """

    def __init__(self, sim: LiveSim, url: str) -> None:
        self._sim, self._url = sim, url
        self._grip = -1.0
        self._socket: Any = None
        self._offset = time.time() - time.monotonic()  # ROS has wall-clock time
        for target in (self._converse, self._publish):
            threading.Thread(target=target, daemon=True).start()

    def _converse(self) -> None:
        while True:
            try:
                with connect(self._url, compression=None, proxy=None, max_size=None) as socket:
                    for topic, kind in PUBLISHED.items():
                        socket.send(json.dumps({"op": "advertise", "topic": topic, "type": kind}))
                    for topic, kind in TAKEN.items():
                        wanted = {"op": "subscribe", "topic": topic, "type": kind, "queue_length": 1}
                        socket.send(json.dumps(wanted))
                    self._socket = socket
                    for text in socket:
                        self._take(json.loads(text))
            except (OSError, ConnectionClosed, TimeoutError):
                time.sleep(0.1)
            finally:
                self._socket = None

    def _take(self, frame: dict[str, Any]) -> None:
        if frame.get("op") != "publish":
            return
        message = frame["msg"]
        if frame["topic"] == "/sim/gripper":
            self._grip = float(message["data"][0])
        elif frame["topic"] == "/sim/eef_target":
            pose, stamp = message["pose"], message["header"]["stamp"]
            position = [pose["position"][axis] for axis in "xyz"]
            turned = quat_xyzw_to_matrix(np.array([pose["orientation"][axis] for axis in "xyzw"], dtype=np.float64))
            action = np.concatenate([position, matrix_to_rot6d(turned), [self._grip]])
            self._sim.robot.send(action, stamp["sec"] + 1e-9 * stamp["nanosec"] - self._offset)

    def _publish(self) -> None:
        while True:
            found = self._sim.robot.read() if self._sim.robot.wait(1.0) else None
            socket = self._socket
            if found is None or socket is None:
                continue
            try:
                for topic, message in self._messages(found).items():
                    socket.send(json.dumps({"op": "publish", "topic": topic, "msg": message}))
            except (OSError, ConnectionClosed):
                continue  # noticed by who reads

    def _messages(self, found: Observation) -> dict[str, Any]:
        at = found.time + self._offset
        header = {"stamp": {"sec": int(at), "nanosec": int(1e9 * (at % 1))}, "frame_id": "world"}
        values = {key: value.tolist() for key, value in found.values.items()}
        pose = {
            "position": dict(zip("xyz", values["robot0_eef_pos"], strict=True)),
            "orientation": dict(zip("xyzw", values["robot0_eef_quat"], strict=True)),
        }
        fingers = {"name": FINGERS, "position": values["robot0_gripper_qpos"], "velocity": [], "effort": []}
        return {
            "/sim/object": {"layout": {"dim": [], "data_offset": 0}, "data": values["object"]},
            "/sim/joint_states": {"header": header, **fingers},
            "/sim/eef_pose": {"header": header, "pose": pose},
        }


def described(result: EpisodeResult | None) -> dict[str, Any] | None:
    """What came of an episode, as plain data."""
    if result is None:
        return None
    return {
        "seed": result.seed,
        "success": result.success,
        "steps": result.steps,
        "late": result.late,
        "held": result.held,
        "refused": result.refused,
        "slipped": result.slipped,
        "step_late_ms": result.step_late_ms.tolist(),
    }


def main() -> None:
    """Serve episodes until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--control-hz", type=float)
    parser.add_argument("--max-steps", type=int)
    args = parser.parse_args()
    config = EnvConfig("lift", "absolute_rot6d")
    with LiveSim(config, control_hz=args.control_hz, max_steps=args.max_steps) as sim:
        Topics(sim, args.url)
        for line in sys.stdin:
            asked = json.loads(line)
            if "reset" in asked:
                sim.reset(asked["reset"])
                print(json.dumps({"standing": asked["reset"]}), flush=True)
            else:
                print(json.dumps({"result": described(sim.result(timeout=asked["result"]))}), flush=True)


if __name__ == "__main__":
    main()
