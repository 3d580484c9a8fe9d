"""Actions as messages, checked against the types' definitions by the test server."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rosbridge_server import RosbridgeServer
from rosbridge_types import TypeMismatch

from diffpolicy_spec.ros.contract_outputs import OUTPUT_TYPES, Output
from diffpolicy_spec.ros.outputs import command, standstill, trajectory, values_of
from diffpolicy_spec.ros.transport import type_name
from diffpolicy_spec.rotations import axis_angle_to_rot6d, quat_xyzw_to_matrix

TRAJECTORY, ARRAY, POSE, TWIST = OUTPUT_TYPES
ARM = Output("/arm", TRAJECTORY, 0, 2, ("a", "b"))


def seconds(time):
    whole, nano = time.values()
    return whole + 1e-9 * nano


@pytest.mark.parametrize("ros", [1, 2])
def test_messages_are_of_their_types(ros):
    outputs = [
        (ARM, [0.5, -1]),
        (Output("/arm2", TRAJECTORY, 0, 2, ("a", "b"), velocities=True, stamp="zero", frame_id="base"), [0.5, 1]),
        (Output("/hand", ARRAY, 0, 2, ("l", "r"), scale=0.5, offset=(1.0, 0.0)), [0.5, 1]),
        (Output("/tool", POSE, 0, 9, tuple("xyz012345"), rotation="rot6d"), [1, 2, 3, 1, 0, 0, 0, 1, 0]),
        (Output("/wheels", TWIST, 0, 2, ("x", "z"), fields=("linear.x", "angular.z")), [0.1, 2]),
    ]
    with RosbridgeServer(ros=ros) as server:
        for output, action in outputs:
            kind = type_name(output.type, ros)
            message = command(output, np.array(action, float), 7.5, 0.05, ros)
            server.publish(output.topic, kind, message)
            with pytest.raises(TypeMismatch):  # the server looks at every field
                server.publish(output.topic, kind, message | {"more": 1})


def test_one_point_begins_on_arrival():
    message = command(ARM, np.array([0.5, -1]), 100.0, 0.05, 2)
    assert message["header"]["stamp"] == {"sec": 0, "nanosec": 0}
    [point] = message["points"]
    assert point == {"positions": [0.5, -1.0], "time_from_start": {"sec": 0, "nanosec": 50_000_000}}
    assert message["joint_names"] == ["a", "b"]


@pytest.mark.parametrize("ros", [1, 2])
def test_points_have_their_times(ros):
    points = np.arange(8.0).reshape(4, 2)
    message = trajectory(ARM, points, 1e9 + 0.25, 0.1, ros)
    begin = seconds(message["header"]["stamp"])
    assert begin == pytest.approx(1e9 + 0.15, abs=1e-6)
    for i, point in enumerate(message["points"]):
        assert seconds(point["time_from_start"]) == pytest.approx((i + 1) * 0.1)  # formats: (i + 1) dt
        assert begin + seconds(point["time_from_start"]) == pytest.approx(1e9 + 0.25 + 0.1 * i, abs=1e-6)
        assert point["positions"] == points[i].tolist()
    zero = trajectory(Output("/arm", TRAJECTORY, 0, 2, ("a", "b"), stamp="zero"), points, 1e9, 0.1, ros)
    assert seconds(zero["header"]["stamp"]) == 0


def test_velocities_are_differences_and_end_at_rest():
    moving = Output("/arm", TRAJECTORY, 0, 1, ("a",), velocities=True)
    message = trajectory(moving, np.array([[0.0], [0.1], [0.4]]), 0, 0.1, 2)
    assert [point["velocities"] for point in message["points"]] == [[pytest.approx(1)], [pytest.approx(2)], [0]]


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_rotations_name_the_same_turn(axis_angle):
    vector = np.array(axis_angle)
    place = np.array([1.0, 2, 3])
    by_angle = command(Output("/t", POSE, 0, 6, tuple("xyzabc"), rotation="axis_angle"), np.r_[place, vector], 0, 1, 2)
    rows = np.r_[place, axis_angle_to_rot6d(vector)]
    by_rows = command(Output("/t", POSE, 0, 9, tuple("xyz012345"), rotation="rot6d"), rows, 0, 1, 2)
    quats = [np.array([m["pose"]["orientation"][k] for k in "xyzw"]) for m in (by_angle, by_rows)]
    matrices = [quat_xyzw_to_matrix(quat) for quat in quats]
    np.testing.assert_allclose(matrices[0], matrices[1], atol=1e-9)
    angle = np.linalg.norm(vector)
    assert np.trace(matrices[0]) == pytest.approx(1 + 2 * math.cos(angle), abs=1e-9)
    by_quat = Output("/t", POSE, 0, 7, tuple("xyzijkl"), rotation="quaternion")
    again = command(by_quat, np.r_[place, 3 * quats[0]], 0, 1, 2)
    np.testing.assert_allclose([again["pose"]["orientation"][k] for k in "xyzw"], quats[0], atol=1e-12)
    assert again["pose"]["position"] == {"x": 1.0, "y": 2.0, "z": 3.0}


def test_a_pose_without_a_rotation_keeps_the_contracts():
    down = Output("/t", POSE, 1, 4, tuple("xyz"), orientation=(1.0, 0.0, 0.0, 0.0))
    message = command(down, np.array([9.0, 1, 2, 3]), 2.5, 1, 1)
    assert message["pose"]["orientation"] == {"x": 1.0, "y": 0.0, "z": 0.0, "w": 0.0}
    assert message["header"]["stamp"] == {"secs": 2, "nsecs": 500_000_000}


def test_scale_offset_and_clip():
    grip = Output("/g", ARRAY, 1, 3, ("l", "r"), scale=(-0.02, 0.02), offset=0.02, clip=(0.0, 0.03))
    assert values_of(grip, np.array([5.0, 1.0, 1.0])).tolist() == [0.0, 0.03]
    assert values_of(grip, np.array([[5.0, -1.0, 0.0]])).tolist() == [[0.03, 0.02]]


def test_twists():
    wheels = Output("/w", TWIST, 0, 2, ("x", "z"), fields=("linear.x", "angular.z"))
    message = command(wheels, np.array([0.1, 2]), 0, 1, 2)
    assert message == {"linear": {"x": 0.1, "y": 0, "z": 0}, "angular": {"x": 0, "y": 0, "z": 2.0}}
    assert standstill(wheels) == {"linear": {"x": 0, "y": 0, "z": 0}, "angular": {"x": 0, "y": 0, "z": 0}}
    assert standstill(ARM) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_a_message(bad):
    with pytest.raises(ValueError, match="/arm: an action has numbers that are not finite"):
        command(ARM, np.array([0.0, bad]), 0, 1, 2)


def test_what_is_no_rotation_is_never_a_message():
    for rotation, values in (("rot6d", np.zeros(9)), ("quaternion", np.zeros(7))):
        with pytest.raises(ValueError, match=r"rotation|length zero"):
            command(Output("/t", POSE, 0, len(values), tuple(map(str, values)), rotation=rotation), values, 0, 1, 2)
