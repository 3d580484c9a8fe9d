"""The lifecycle node, its transitions and parameters, driving an arm; rclpy is a double, everything else is real."""

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_arm import Arm
from fake_ros2 import FAKE, begun, wait
from tiny_arm_policy import save_arm_policy

import diffpolicy_spec.ros as ros_package
from diffpolicy_spec.ros.lifecycle_node import PARAMETERS, lifecycle_node_class, settings_of

JOINTS, HOME = ["j1", "j2"], [0.1, -0.1]
CONTRACT = """
name: arm
ros: 2
observations:
  - topic: /joint_states
    type: sensor_msgs/JointState
    joints: [j1, j2]
    keys: {joint_pos: position}
actions:
  - topic: /arm/command
    type: trajectory_msgs/JointTrajectory
    joints: [j1, j2]
control: {control_hz: 20, n_action_steps: 4}
safety:
  limits:
    j1: {low: -1.0, high: 1.0, velocity: 1.0, acceleration: 20.0}
    j2: {low: -1.0, high: 1.0, velocity: 1.0, acceleration: 20.0}
  position_from: joint_pos
  max_observation_age_ms: 400
  watchdog_ms: 500
"""
LAUNCH = Path(ros_package.__path__[0]) / "launch" / "bridge.launch.py"


class Robot:
    """An arm as another node of the double's graph."""

    def __init__(self, ros2) -> None:
        from rosidl_runtime_py.utilities import get_message

        self.node, self.arm, self.lock = ros2.spun(ros2.create_node("robot")), Arm(JOINTS, HOME), threading.Lock()
        qos = ros2.qos.QoSProfile(ros2.qos.HistoryPolicy.KEEP_LAST, 1)
        self.kind = get_message("sensor_msgs/msg/JointState")
        self.publisher = self.node.create_publisher(self.kind, "/joint_states", qos)
        trajectory = get_message("trajectory_msgs/msg/JointTrajectory")
        self.node.create_subscription(trajectory, "/arm/command", self.take, qos)
        self.timer = self.node.create_timer(0.02, self.tell)

    def take(self, message) -> None:
        from diffpolicy_spec.ros.rclpy_messages import as_dict

        with self.lock:
            self.arm.follow(as_dict(message), time.time())

    def tell(self) -> None:
        now = time.time()
        with self.lock:
            place = self.arm.position(now)
        state = self.kind(name=["j2", "j1"], position=[place[1], place[0]])
        state.header.stamp.sec, state.header.stamp.nanosec = int(now), int(1e9 * (now % 1))
        self.publisher.publish(state)


@pytest.fixture
def contract(tmp_path):
    path = tmp_path / "arm.yaml"
    path.write_text(CONTRACT)
    return path


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_arm_policy(tmp_path_factory.mktemp("policy") / "arm", {"joint_pos": 2}, [0.3, 0.3], reach=0.1)


@pytest.fixture
def ros2(monkeypatch):
    with begun(monkeypatch, init=False) as rclpy:
        yield rclpy


def made(ros2, *parameters):
    ros2.init(["node", "--ros-args", *(word for text in parameters for word in ("-p", text))])
    return ros2.spun(lifecycle_node_class()(), workers=2)


def test_from_configured_to_shut_down(ros2, contract, policy, tmp_path):
    from rclpy.node import call

    records = tmp_path / "records.jsonl"
    settings = "['sampler=ddim10', 'warm_up=1', 'nice=0']"
    node = made(ros2, f"contract:={contract}", f"policy:={policy}", f"records:={records}", f"settings:={settings}")
    robot = Robot(ros2)
    assert node.change_state("configure").name == "SUCCESS", node.logged
    assert node.state == "inactive"
    bridge = node.bridge
    wait(lambda: bridge.planner.ready, 120)
    time.sleep(0.3)
    assert robot.arm.taken == 0, "an inactive node sends nothing"

    assert node.change_state("activate").name == "SUCCESS"
    assert ("info", "call /arm/start to have the policy move the robot") in node.logged
    assert call("/arm/start").success
    wait(lambda: min(robot.arm.position(time.time())) > 0.15, 30, "the arm does not go where the policy wants it")

    assert node.change_state("deactivate").name == "SUCCESS"
    taken = robot.arm.taken
    time.sleep(0.5)
    assert robot.arm.taken == taken, "a node that is not active sends nothing"
    assert node.change_state("activate").name == "SUCCESS"
    assert call("/arm/start").success
    wait(lambda: robot.arm.taken > taken + 1, 30)

    assert node.change_state("shutdown").name == "SUCCESS"
    assert node.state == "finalized"
    assert node.finished.is_set()
    assert node.bridge is None
    assert (node.subscriptions, node.publishers, node.services) == ([], [], [])
    assert robot.arm.refused == []
    assert records.stat().st_size > 0
    for _, _, places in robot.arm.points:
        assert all(-1 <= place <= 1 for point in places for place in point)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ([], "parameter contract is missing"),
        (["contract:=nowhere.yaml"], "nowhere.yaml"),
        (["contract:=panda"], "ros is 1, and this is a node of ROS 2"),
        (["contract:=ur", "policy:=none"], "policy=none: no such path"),
        (["contract:=ur", "settings:=['nothing=3']"], "parameter settings: .*nothing"),
    ],
)
def test_what_cannot_be_configured_is_told_and_can_be_tried_again(ros2, parameters, words):
    import re

    node = made(ros2, *parameters)
    assert node.change_state("configure").name == "FAILURE"
    assert node.state == "unconfigured"
    [(level, text)] = node.logged
    assert level == "error"
    assert re.search(words, text), text


def test_a_policy_of_another_robot_deactivates_the_node_and_says_why(ros2, contract, tmp_path):
    other = save_arm_policy(tmp_path / "other", {"joint_pos": 3}, [0.0] * 2)
    node = made(ros2, f"contract:={contract}", f"policy:={other}", "autostart:=true", "settings:=['warm_up=1']")
    Robot(ros2)
    assert node.change_state("configure").name == "SUCCESS", node.logged
    assert node.change_state("activate").name == "SUCCESS"
    assert node.bridge.contract.autostart
    wait(lambda: node.state == "inactive", 120)
    assert any(level == "error" and "'joint_pos' has 2 numbers in the contract" in text for level, text in node.logged)
    assert node.change_state("cleanup").name == "SUCCESS"
    assert node.state == "unconfigured"
    assert node.bridge is None


def test_parameters_are_settings_of_the_bridge():
    parameters = dict(PARAMETERS) | {"contract": "ur", "num_threads": 2, "settings": ["nice=0", "sampler=ddim10"]}
    settings = settings_of(parameters)
    assert (settings["contract"], settings["num_threads"], settings["nice"]) == ("ur", 2, 0)
    assert settings["server"] is None
    assert settings["autostart"] is None
    assert settings_of(parameters | {"autostart": True})["autostart"] is True
    plain = settings_of(dict(PARAMETERS) | {"contract": "ur"})
    for name, default in PARAMETERS.items():
        if name not in ("contract", "autostart", "settings"):
            assert plain[name] == (default or None), f"{name}'s default is another one in configs/ros_bridge.yaml"


def test_without_ros_2_the_program_says_so():
    done = subprocess.run(
        [sys.executable, "-m", "diffpolicy_spec.ros.lifecycle_node"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "source your ROS 2 installation's setup file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_program_cleanly(contract, number):
    paths = os.pathsep.join([str(FAKE), str(Path(__file__).parent)])
    run = "import rclpy.node, diffpolicy_spec.ros.lifecycle_node as n; print('ready', flush=True); n.main()"
    with subprocess.Popen(
        [sys.executable, "-c", run, "--ros-args", "-p", f"contract:={contract}"],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        wait(lambda: "executor" in _threads(process.pid), 30)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


def _threads(pid: int) -> str:
    """Names of a process's threads would need Python 3.14; a second thread is the executor."""
    return "executor" if len(list(Path(f"/proc/{pid}/task").iterdir())) >= 3 else ""


def test_the_launch_file_names_parameters_that_the_node_has():
    tree = ast.parse(LAUNCH.read_text())
    [arguments] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "ARGUMENTS"
    ]
    assert set(arguments) <= set(PARAMETERS)
    for name, (default, _) in arguments.items():
        assert default == ("false" if name == "autostart" else PARAMETERS[name])
    assert any(isinstance(node, ast.FunctionDef) and node.name == "generate_launch_description" for node in tree.body)
