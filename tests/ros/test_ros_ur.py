"""The UR example, as ROS 2 names things: joint states in the driver's order, the tool's pose, a camera's raw images."""

import threading
import time

import numpy as np
from fake_arm import Arm
from rosbridge_server import RosbridgeServer

from diffpolicy_spec.control import Plan, PolicyInfo
from diffpolicy_spec.control.planning.inline import InlinePlanner
from diffpolicy_spec.ros.contract import load_contract
from diffpolicy_spec.ros.contracts import example
from diffpolicy_spec.ros.node import BridgeNode
from diffpolicy_spec.ros.roslib_transport import RoslibTransport

JOINTS = [
    "shoulder_pan_joint", "shoulder_lift_joint", "elbow_joint", "wrist_1_joint", "wrist_2_joint", "wrist_3_joint",
]  # fmt: skip
DRIVERS = ["elbow_joint", "shoulder_lift_joint", "shoulder_pan_joint", *JOINTS[3:]]
HOME = [0.1, -1.5, 1.6, -1.4, -1.6, 0.2]
COMMAND = "/scaled_joint_trajectory_controller/joint_trajectory"
INFO = PolicyInfo({"joint_pos": 6, "tcp_pos": 3, "tcp_quat": 4}, {"wrist": (3, 96, 96)}, 2, 8, 16, 6, 1)


def test_a_ur_is_observed_and_driven():
    arm, lock, end, asked = Arm(JOINTS, HOME), threading.Lock(), threading.Event(), []

    def plan(request):
        """The elbow is stretched, far quicker than it may be."""
        asked.append(request.obs)
        return Plan(request.id, request.obs["joint_pos"][-1] - np.arange(15)[:, None] * [0, 0, 1.0, 0, 0, 0])

    def follow(message):
        with lock:
            arm.follow(message, time.time())

    def publish(server):
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[..., 0] = 200
        while not end.wait(0.02):
            now = time.time()
            header = {"stamp": {"sec": int(now), "nanosec": int(1e9 * (now % 1))}, "frame_id": "base"}
            with lock:
                place = dict(zip(JOINTS, arm.position(now), strict=True))
            states = {"header": header, "name": DRIVERS, "position": [place[name] for name in DRIVERS]}
            server.publish("/joint_states", "sensor_msgs/JointState", states)
            pose = {"position": {"x": 0.3, "y": 0.1, "z": 0.4}, "orientation": {"x": 1.0, "y": 0.0, "z": 0.0, "w": 0.0}}
            server.publish("/tcp_pose_broadcaster/pose", "geometry_msgs/PoseStamped", {"header": header, "pose": pose})
            image = {
                "header": header, "height": 48, "width": 64, "encoding": "rgb8", "step": 192, "data": picture.tobytes(),
            }  # fmt: skip
            server.publish("/wrist_camera/image_raw", "sensor_msgs/Image", image)

    contract = load_contract(example("ur"))
    with RosbridgeServer(ros=2) as server:
        server.on(COMMAND, follow, "trajectory_msgs/msg/JointTrajectory")
        robot = threading.Thread(target=publish, args=(server,))
        robot.start()
        node = BridgeNode(contract, RoslibTransport(server.url, 2), InlinePlanner(plan, info=INFO))
        try:
            node.begin()
            server.wait_for(lambda: server.has_service("/ur_policy/start"))
            assert server.call_service("/ur_policy/start")["success"]
            server.wait_for(lambda: arm.position(time.time())[2] < 0.6, 60, "the elbow does not move")
        finally:
            node.close()
            end.set()
            robot.join(5)
    assert arm.refused == []
    obs = asked[0]
    assert np.allclose(obs["joint_pos"], HOME, atol=1e-6), "joints are in the policy's order, not the driver's"
    assert np.allclose(obs["tcp_pos"], [0.3, 0.1, 0.4])
    assert np.allclose(obs["tcp_quat"], [1, 0, 0, 0])
    assert obs["wrist"].shape == (2, 3, 96, 96)
    assert (obs["wrist"][:, 0] == 200).all()
    assert (obs["wrist"][:, 1:] == 0).all()
    for _, times, places in arm.points:
        speeds = np.abs(np.diff(places, axis=0)) / np.diff(times)[:, None]
        assert (speeds <= np.array(contract.safety.velocity) + 1e-3).all()
        assert np.allclose(np.delete(places, 2, axis=1), np.delete(HOME, 2), atol=1e-6), "another joint moves"
