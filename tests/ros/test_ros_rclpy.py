"""Topics, services and clock of an rclpy node as a transport; rclpy is a double (fake_rclpy)."""

import array
import threading
import time

import numpy as np
import pytest
from fake_ros2 import begun, wait

from diffpolicy_spec.ros.rclpy_messages import as_dict, fill
from diffpolicy_spec.ros.rclpy_transport import RclpyTransport
from diffpolicy_spec.ros.transport import Transport


@pytest.fixture
def ros2(monkeypatch):
    with begun(monkeypatch) as rclpy:
        yield rclpy


@pytest.fixture
def find(ros2):
    from rosidl_runtime_py.utilities import get_message

    return get_message


def test_a_transport_as_the_core_needs_it(ros2):
    assert isinstance(RclpyTransport(ros2.create_node("policy")), Transport)


def test_without_ros_2_the_message_says_what_to_do():
    with pytest.raises(ImportError, match=r"rclpy.qos cannot be imported.*source your ROS 2.*dps-ros-bridge"):
        RclpyTransport(object())


def test_messages_to_dicts_and_back(find):
    kind = find("trajectory_msgs/msg/JointTrajectory")
    fields = {
        "header": {"stamp": {"sec": 3, "nanosec": 5}, "frame_id": "base"},
        "joint_names": ["a", "b"],
        "points": [{"positions": [1, 2.5], "time_from_start": {"sec": 0, "nanosec": 50_000_000}}],
    }
    message = fill(kind(), fields, find)
    assert message.points[0].positions == array.array("d", [1.0, 2.5])
    assert message.points[0].time_from_start.nanosec == 50_000_000
    assert isinstance(fields["points"][0], dict), "what was given is left as it was"
    found = as_dict(message)
    assert found["header"] == fields["header"]
    assert found["joint_names"] == ["a", "b"]
    assert list(found["points"][0]["positions"]) == [1.0, 2.5]
    assert list(found["points"][0]["velocities"]) == []


def test_octets_are_numbers_and_numpy_is_taken(find):
    status = fill(find("diagnostic_msgs/msg/DiagnosticStatus")(), {"level": 2, "name": "node"}, find)
    assert status.level == b"\x02"
    assert as_dict(status)["level"] == 2
    data = np.array([1.0, 2.0])
    assert list(fill(find("std_msgs/msg/Float64MultiArray")(), {"data": data}, find).data) == [1.0, 2.0]
    assert fill(find("std_msgs/msg/Float64")(), {"data": 1}, find).data == 1.0


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("sensor_msgs/msg/JointState", {"positions": []}, "JointState has no field 'positions'; it has header, name"),
        ("sensor_msgs/msg/JointState", {"name": [1]}, r"JointState.name \(sequence<string>\)"),
        ("sensor_msgs/msg/JointState", {"position": ["a"]}, "could not convert"),
        ("std_msgs/msg/Float64", {"data": None}, r"Float64.data \(double\)"),
        ("std_msgs/msg/Header", {"stamp": {"sec": 1.5}}, r"Time.sec \(int32\)"),
    ],
)
def test_what_a_message_does_not_take_is_told(find, kind, fields, words):
    with pytest.raises(ValueError, match=words):
        fill(find(kind)(), fields, find)


def test_topics(ros2, find):
    robot, policy = ros2.spun(ros2.create_node("robot")), ros2.spun(ros2.create_node("policy"))
    transport = RclpyTransport(policy)
    heard, threads = [], set()

    def hear(message, received):
        threads.add(threading.current_thread())
        heard.append((message, received))

    transport.subscribe("/joint_states", "sensor_msgs/JointState", hear, queue_length=3)
    [subscription] = policy.subscriptions
    assert subscription.qos.depth == 3
    assert subscription.qos.reliability is ros2.qos.ReliabilityPolicy.BEST_EFFORT
    kind = find("sensor_msgs/msg/JointState")
    qos = ros2.qos.QoSProfile(ros2.qos.HistoryPolicy.KEEP_LAST, 1)
    publisher = robot.create_publisher(kind, "/joint_states", qos)
    publisher.publish(kind(name=["a"], position=[float("nan")]))
    wait(lambda: heard)
    assert heard[0][0]["name"] == ["a"]
    assert np.isnan(heard[0][0]["position"][0])
    assert abs(heard[0][1] - time.time()) < 60
    assert threading.current_thread() not in threads

    commands = []
    robot.create_subscription(find("std_msgs/msg/Float64MultiArray"), "/commands", commands.append, qos)
    publish = transport.advertise("/commands", "std_msgs/Float64MultiArray")
    assert publish({"data": [1, 2]})
    wait(lambda: commands)
    assert list(commands[0].data) == [1.0, 2.0]
    transport.close()
    assert not publish({"data": []})
    assert not transport.connected
    assert (policy.subscriptions, policy.publishers) == ([], [])


def test_throttled_messages_are_dropped_and_a_clock_set_back_ends_that(ros2, find):
    node = ros2.spun(ros2.create_node("policy"))
    transport, heard = RclpyTransport(node), []
    transport.subscribe("/x", "std_msgs/Float64", lambda m, _: heard.append(m["data"]), throttle_ms=60_000)
    publish = RclpyTransport(ros2.create_node("robot")).advertise("/x", "std_msgs/Float64")
    for value in (1, 2, 3):
        publish({"data": value})
    wait(lambda: heard)
    node.time_offset = -100.0
    publish({"data": 4})
    wait(lambda: len(heard) == 2)
    assert heard == [1.0, 4.0]


def test_a_callback_that_raises_is_told_and_the_next_message_comes(ros2, find):
    node = ros2.spun(ros2.create_node("policy"))
    transport, heard, told = RclpyTransport(node), [], []
    transport.on_problem(lambda kind, message: told.append((kind, message)))

    def hear(message, _):
        heard.append(message["data"])
        if len(heard) == 1:
            raise RuntimeError("no")

    transport.subscribe("/x", "std_msgs/Float64", hear)
    publish = transport.advertise("/x", "std_msgs/Float64")
    publish({"data": 1.0})
    publish({"data": 2.0})
    wait(lambda: len(heard) == 2)
    assert told == [("bad_message", "/x: no")]


def test_services(ros2):
    from rclpy.node import call

    node = ros2.spun(ros2.create_node("policy"))
    transport, told, connected = RclpyTransport(node), [], []
    transport.on_problem(lambda kind, message: told.append(message))
    transport.on_connect(lambda: connected.append(True))
    assert connected
    transport.advertise_service("/start", "std_srvs/Trigger", lambda request: {"success": True, "message": "yes"})
    transport.advertise_service("/flag", "std_srvs/SetBool", lambda request: {"success": request["data"]})
    transport.advertise_service("/broken", "std_srvs/Trigger", lambda request: {"nothing": 1})
    answer = call("/start")
    assert (answer.success, answer.message) == (True, "yes")
    assert call("/flag", data=True).success is True
    assert call("/broken").success is False
    assert "has no field 'nothing'" in told[0]
    transport.close()
    assert node.services == []
