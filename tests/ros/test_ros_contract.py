"""Contracts: what is read, and that every mistake is told with its line and what to do."""

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ros_world import CONTRACT, INFO, contract

from diffpolicy_spec.control import PolicyInfo
from diffpolicy_spec.ros.contract import ContractError, load_contract, mismatches, parse_contract

WHOLE = """\
name: cell
ros: 1
observations:
  - topic: /joint_states
    type: sensor_msgs/msg/JointState
    joints: [a, b]
    keys:
      joints: position
      fingers: {field: position, joints: [f], scale: 2, offset: -1}
    queue_length: 2
    throttle_ms: 10
  - topic: /pose
    type: geometry_msgs/PoseStamped
    keys: {eef_pos: position, eef_quat: {field: orientation, sign: w_positive}}
  - topic: /more
    type: std_msgs/Float64MultiArray
    keys: {state: {field: data, slice: [1, 4]}, joints: {field: data, slice: [0, 1]}}
  - topic: /camera
    type: sensor_msgs/CompressedImage
    size: [48, 64]
    keys: {front: image}
actions:
  - {topic: /arm, type: trajectory_msgs/JointTrajectory, joints: [a, b], velocities: true, stamp: zero}
  - {topic: /hand, type: std_msgs/Float64MultiArray, slice: [2, 3], scale: [0.5], clip: [0, 1], names: [width]}
  - {topic: /tool, type: geometry_msgs/PoseStamped, rotation: rot6d, frame_id: base}
  - {topic: /wheels, type: geometry_msgs/Twist, fields: [linear.x, angular.z]}
synchronise: {tolerance_ms: 30, stamps: receipt}
autostart: true
services: {start: /cell/go}
diagnostics: {topic: /diag, hz: 2, hardware_id: left}
heartbeat: {topic: /alive}
control: {control_hz: 10, deadline_ms: 50, on_deadline: finish}
safety:
  limits:
    a: {low: -1, high: 1, velocity: 2}
    width: {kind: free, low: 0, high: 1}
    angular.z: {kind: velocity}
  watchdog_ms: 300
"""


def told(text: str) -> str:
    with pytest.raises(ContractError) as caught:
        parse_contract(text, "c.yaml")
    return str(caught.value)


def test_everything_is_read():
    made = parse_contract(WHOLE, "c.yaml")
    joints, pose, more, camera = made.inputs
    assert (joints.type, joints.queue_length, joints.throttle_ms) == ("sensor_msgs/JointState", 2, 10)
    assert [(f.key, f.joints, f.scale, f.offset) for f in joints.fields] == [
        ("joints", ("a", "b"), 1.0, 0.0),
        ("fingers", ("f",), 2.0, -1.0),
    ]
    assert [(f.field, f.sign, f.dim) for f in pose.fields] == [
        ("position", "keep", 3),
        ("orientation", "w_positive", 4),
    ]
    assert [(f.start, f.stop, f.dim) for f in more.fields] == [(1, 4, 3), (0, 1, 1)]
    assert camera.fields[0].size == (48, 64)
    assert [part.field for part in made.keys["joints"]] == ["position", "data"]  # of two topics, in this order
    assert [(o.start, o.stop) for o in made.outputs] == [(0, 2), (2, 3), (3, 12), (12, 14)]
    assert made.axis_names[:4] == ("a", "b", "width", "x")
    assert made.axis_names[-2:] == ("linear.x", "angular.z")
    assert made.action_dim == 14
    assert (made.tolerance_ms, made.stamps, made.autostart) == (30, "receipt", True)
    assert dict(made.services) == {
        "start": "/cell/go",
        "stop": "/cell/stop",
        "reset": "/cell/reset",
        "emergency_stop": "/cell/emergency_stop",
    }
    assert (made.diagnostics.topic, made.diagnostics.hz, made.diagnostics.hardware_id) == ("/diag", 2, "left")
    assert made.heartbeat is not None
    assert made.heartbeat.hz == 10
    assert (made.control.control_hz, made.control.on_deadline) == (10, "finish")


def test_limits_are_told_by_axis():
    safety = parse_contract(WHOLE, "c.yaml").safety
    inf = float("inf")
    assert safety.low[:3] == (-1, -inf, 0)
    assert safety.high[:3] == (1, inf, 1)
    assert safety.velocity[:2] == (2, inf)
    assert safety.acceleration is None
    assert [safety.kind[i] for i in (0, 2, 13)] == ["position", "free", "velocity"]
    assert safety.names[0] == "a"
    assert safety.watchdog_ms == 300


MISTAKES = [
    ("name: cell", "nome: cell", 1, "`name` is missing"),
    ("name: cell", "name: a b", 1, "no name in ROS"),
    ("ros: 1", "ros: 3", 2, "one of 1, 2"),
    ("ros: 1", "ros: 1\nros: 2", 3, "is there twice, in line 2"),
    ("ros: 1", "ros: 1\nspeed: 3", 3, "no setting 'speed'"),
    ("type: sensor_msgs/msg/JointState", "type: sensor_msgs/Joints", 5, "sensor_msgs/JointState"),
    ("type: sensor_msgs/msg/JointState", "type: JointState", 5, "package/Name"),
    ("joints: [a, b]\n", "joints: [a, a]\n", 6, "'a' is named twice"),
    ("joints: [a, b]\n", "jonts: [a, b]\n", 6, "did you mean joints"),
    ("    joints: [a, b]\n", "", 7, "`joints` is missing"),
    ("joints: position", "joints: place", 8, "one of position, velocity, effort"),
    ("scale: 2,", "scale: [2, 2],", 9, "scale has 2 numbers for 1"),
    ("scale: 2,", "scale: nan,", 9, "must be a number"),
    ("queue_length: 2", "queue_length: 0", 10, "at least 1|1 to 1000"),
    ("queue_length: 2", "queue_length: two", 10, "whole number"),
    ("throttle_ms: 10", "throttle_ms: 10.5", 11, "whole number"),
    ("topic: /pose", "topic: /joint_states", 12, "observed twice"),
    ("topic: /pose", "topic: /my pose", 12, "no name in ROS"),
    ("sign: w_positive", "sign: plus", 14, "one of keep, w_positive"),
    ("slice: [1, 4]", "slice: [4, 1]", 17, r"\[first, one after the last\]"),
    ("size: [48, 64]", "size: [48]", 20, r"\[height, width\]"),
    ("{front: image}", "{joints: image}", 18, "is an image, and comes from one topic"),
    ("{topic: /arm, ", "{topic: /hand, ", 24, "commanded twice"),
    ("slice: [2, 3]", "slice: [3, 4]", 22, "numbers 2 of the action go nowhere"),
    ("clip: [0, 1]", "clip: [1, 0]", 24, r"\[low, high\]"),
    ("rotation: rot6d", "rotation: euler", 25, "rot6d, axis_angle, quaternion, none"),
    ("fields: [linear.x, angular.z]", "fields: [linear.w]", 26, "linear.x"),
    ("names: [width]", "names: [a]", 22, "two axes are called 'a'"),
    ("tolerance_ms: 30", "tolerance_ms: -1", 27, "0.1 to 10000"),
    ("autostart: true", "autostart: 1", 28, "true or false"),
    ("start: /cell/go", "start: /cell/stop", 29, "two services have one name"),
    ("hz: 2", "hz: 0", 30, "0.1 to 50"),
    ("control_hz: 10", "control_hz: 0", 32, "control_hz must be a positive number"),
    ("control_hz: 10", "control_hz: 10, policy_hz: 5", 32, "leave policy_hz out"),
    ("deadline_ms: 50, ", "", 32, "on_deadline=finish needs deadline_ms"),
    ("a: {low: -1,", "c: {low: -1,", 35, "no setting 'c'"),
    ("low: -1,", "low: 1,", 35, "low must be below high"),
    ("velocity: 2}", "velocity: 2e0}", 35, r"write 1.0e-3"),
    ("kind: free", "kind: fee", 33, "kind must be one of"),
    ("watchdog_ms: 300", "watchdog_ms: 300\n  velocity: 1", 35, "for all axes in line 39 as well"),
    ("watchdog_ms: 300", "watchdog_ms: 300\n  position_from: front", 39, "no topic gives numbers for 'front'"),
    ("watchdog_ms: 300", "watchdog_ms: 300\n  names: [a]", 39, "leave it out"),
    ("watchdog_ms: 300", "watchdog_ms: [300", 39, "no YAML"),
]


@pytest.mark.parametrize(("right", "wrong", "line", "words"), MISTAKES, ids=[m[1] for m in MISTAKES])
def test_a_mistake_is_told_with_its_line(right, wrong, line, words):
    assert right in WHOLE
    with pytest.raises(ContractError, match=words) as caught:
        parse_contract(WHOLE.replace(right, wrong, 1), "c.yaml")
    assert str(caught.value).startswith(f"c.yaml:{line}:")


@pytest.mark.parametrize(
    "text", ["", "3", "[1]", "a: &a [*a]", "? [1]\n: 2", "name: !!python/object:os.system x", "\t"]
)
def test_what_is_no_contract_is_told(text):
    assert told(text).startswith("c.yaml:")


def test_a_bomb_of_aliases_is_refused():
    lines = ["name: x", "ros: 1", "a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 12)]
    assert "too many entries" in told("\n".join(lines))


@given(st.text(alphabet="abc:-[]{}&*!?|>'\"%@`#,. \n\t0123456789", max_size=80))
def test_any_text_is_a_contract_or_a_mistake(text):
    with pytest.raises(ContractError):
        parse_contract(text)


def test_files(tmp_path):
    path = tmp_path / "arm.yaml"
    path.write_text(CONTRACT.format(ros=2, more=""))
    assert load_contract(path).source == str(path)
    path.write_bytes(b"name: arm\nros: \xff\n")
    with pytest.raises(ContractError, match=r"arm.yaml:2: is no text in UTF-8"):
        load_contract(path)
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(ContractError, match="larger than"):
        load_contract(path)
    with pytest.raises(FileNotFoundError):
        load_contract(tmp_path / "none.yaml")


def test_a_contract_that_fits_a_policy():
    assert mismatches(contract(), INFO) == []


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (PolicyInfo({"joints": 2}, {}, 2, 4, 16, 2, 1), "observes 'joints', which no topic"),
        (PolicyInfo({"joint_pos": 3}, {}, 2, 4, 16, 2, 1), "has 2 numbers in the contract, the policy observes 3"),
        (PolicyInfo({}, {"joint_pos": (3, 8, 8)}, 2, 4, 16, 2, 1), "is numbers in the contract"),
        (PolicyInfo({"joint_pos": 2}, {}, 2, 4, 16, 7, 1), "take 2 numbers, the policy's actions have 7"),
    ],
)
def test_a_contract_that_does_not_fit_a_policy_says_what(info, words):
    assert any(words in line for line in mismatches(contract(), info))


def test_images_of_another_size_do_not_fit():
    text = textwrap.dedent(
        """
        name: eye
        ros: 2
        observations:
          - {topic: /image, type: sensor_msgs/Image, size: [96, 96], keys: {front: image}}
        actions:
          - {topic: /out, type: std_msgs/Float64MultiArray, slice: [0, 2]}
        """
    )
    made = parse_contract(text)
    assert mismatches(made, PolicyInfo({}, {"front": (3, 96, 96)}, 2, 4, 16, 2, 1)) == []
    [line] = mismatches(made, PolicyInfo({}, {"front": (3, 84, 84)}, 2, 4, 16, 2, 1))
    assert "resized to 96 x 96, the policy observes 84 x 84" in line
