"""A Panda-like arm as a rospy node, for run.sh: its joints go where trajectories say, and it tells what it saw.

The contract's topics (diffpolicy_spec/ros/contracts/panda.yaml) and /robot/seen: a std_msgs/String with JSON of what
came until now, once a tenth of a second. Joint states name the joints in an order of their own, and their efforts are
NaN, as many drivers have it.
"""

import contextlib
import io
import json
import os
import sys

import rospy
from diagnostic_msgs.msg import DiagnosticArray
from PIL import Image
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "ros"))
from fake_arm import Arm

NAMES = [f"panda_joint{i + 1}" for i in range(7)]
HOME = [0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785]


def as_dict(message):
    """A trajectory as rosbridge has it."""
    return {
        "joint_names": list(message.joint_names),
        "header": {"stamp": {"secs": message.header.stamp.secs, "nsecs": message.header.stamp.nsecs}},
        "points": [
            {
                "positions": list(point.positions),
                "time_from_start": {"secs": point.time_from_start.secs, "nsecs": point.time_from_start.nsecs},
            }
            for point in message.points
        ],
    }


def main():
    """Until ROS goes."""
    rospy.init_node("robot")
    arm, width, diagnostics, gaps = Arm(NAMES, HOME), [0.04], [], []
    last = [None]

    def follow(message):
        now = rospy.get_time()
        if last[0] is not None:
            gaps.append(now - last[0])
        last[0] = now
        arm.follow(as_dict(message), now)

    def diagnose(message):
        diagnostics.append([status.message for status in message.status])

    rospy.Subscriber("/position_joint_trajectory_controller/command", JointTrajectory, follow, queue_size=10)
    rospy.Subscriber("/gripper/width", Float64MultiArray, lambda message: width.__setitem__(0, message.data[0]))
    rospy.Subscriber("/diagnostics", DiagnosticArray, diagnose)
    states = rospy.Publisher("/joint_states", JointState, queue_size=10)
    camera = rospy.Publisher("/wrist_camera/color/image_raw/compressed", CompressedImage, queue_size=1)
    seen = rospy.Publisher("/robot/seen", String, queue_size=1)
    picture = io.BytesIO()
    Image.new("RGB", (128, 96), (200, 60, 20)).save(picture, "jpeg")

    rate, count = rospy.Rate(50), 0
    while not rospy.is_shutdown():
        now = rospy.Time.now()
        place = arm.position(now.to_sec())
        state = JointState()
        state.header.stamp = now
        state.name = ["panda_finger_joint1", *reversed(NAMES)]
        state.position = [width[0] / 2, *reversed(place)]
        state.velocity = [0.0] * 8
        state.effort = [float("nan")] * 8
        states.publish(state)
        if count % 3 == 0:
            image = CompressedImage(format="jpeg", data=picture.getvalue())
            image.header.stamp = now
            camera.publish(image)
        if count % 5 == 0:
            told = {
                "taken": arm.taken, "refused": arm.refused[-3:], "position": place, "width": width[0],
                "diagnostics": len(diagnostics), "status": diagnostics[-1] if diagnostics else [],
                "largest_gap": max(gaps[-200:], default=None),
                "last": arm.points[-1][1:] if arm.points else None,
            }  # fmt: skip
            seen.publish(String(json.dumps(told)))
        count += 1
        rate.sleep()


if __name__ == "__main__":
    with contextlib.suppress(rospy.ROSInterruptException):
        main()
