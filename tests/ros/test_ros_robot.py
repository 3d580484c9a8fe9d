"""Topics as a robot: observations of one time, commands as promises."""

import re
import threading

import numpy as np
import pytest
from local_transport import LocalTransport

from diffpolicy_spec.control import Robot
from diffpolicy_spec.ros.contract import parse_contract
from diffpolicy_spec.ros.messages import base64_of
from diffpolicy_spec.ros.topic_robot import SILENT_S, TopicRobot
from diffpolicy_spec.ros.transport import Transport

CONTRACT = """
name: cell
ros: 2
observations:
  - topic: /joints
    type: sensor_msgs/JointState
    joints: [a, b]
    keys: {state: position, speed: velocity}
  - topic: /gripper
    type: std_msgs/Float64MultiArray
    keys: {state: {field: data, slice: [0, 1]}}
  - topic: /camera
    type: sensor_msgs/Image
    keys: {front: image}
actions:
  - {topic: /arm, type: trajectory_msgs/JointTrajectory, joints: [a, b]}
  - {topic: /hand, type: std_msgs/Float64MultiArray, slice: [2, 3]}
  - {topic: /base, type: geometry_msgs/Twist, fields: [linear.x]}
synchronise: {tolerance_ms: 40}
control: {control_hz: 20}
"""


class World:
    """A robot on a local transport, and a clock."""

    def __init__(self, text: str = CONTRACT) -> None:
        self.transport, self.clock = LocalTransport(), 50.0
        self.robot = TopicRobot(parse_contract(text), self.transport, clock=lambda: self.clock)
        self.robot.failures()

    def tick(self, seconds: float) -> None:
        self.clock += seconds
        self.transport.time += seconds

    def joints(self, time, position=(1.0, 2.0), names=("b", "a"), **more):
        stamp = {"sec": int(time), "nanosec": round(1e9 * (time - int(time)))}
        self.transport.say(
            "/joints",
            {"header": {"stamp": stamp}, "name": names, "position": list(position), "velocity": [0.1, 0.2], **more},
        )

    def gripper(self, *data):
        self.transport.say("/gripper", {"data": list(data)})

    def camera(self, time, value=7):
        stamp = {"sec": int(time), "nanosec": round(1e9 * (time - int(time)))}
        self.transport.say(
            "/camera",
            {
                "header": {"stamp": stamp}, "height": 2, "width": 2, "encoding": "rgb8", "step": 6, "is_bigendian": 0,
                "data": base64_of(bytes([value] * 12)),
            },
        )  # fmt: skip

    def all(self, time=None):
        time = self.transport.time if time is None else time
        self.joints(time)
        self.gripper(0.5)
        self.camera(time)

    def told(self):
        return [(failure.kind, failure.message) for failure in self.robot.failures()]


@pytest.fixture
def world():
    return World()


def test_it_is_a_robot(world):
    assert isinstance(world.robot, Robot)
    assert isinstance(world.transport, Transport)
    assert world.transport.types["/joints"] == "sensor_msgs/JointState"


def test_topics_become_one_observation(world):
    world.joints(1000.0)
    assert world.robot.read() is None
    world.gripper(0.5)  # without a header: the time it came, which is 1000
    world.camera(1000.0)
    observation = world.robot.read()
    assert observation.time == 1000.0
    assert observation.values["state"].tolist() == [2.0, 1.0, 0.5]  # a, b, then the gripper
    assert observation.values["speed"].tolist() == [0.2, 0.1]
    assert observation.values["front"].shape == (3, 2, 2)
    assert observation.values["front"].dtype == np.uint8
    assert world.robot.read() is None
    assert world.told() == []


def test_the_slowest_topic_says_the_time(world):
    world.all()
    world.robot.read()
    for i in range(1, 6):
        world.tick(0.01)
        world.joints(world.transport.time, position=(i, i))
        world.gripper(float(i))
    assert world.robot.read() is None
    world.camera(1000.021)
    observation = world.robot.read()
    assert observation.time == pytest.approx(1000.021)
    assert observation.values["state"].tolist() == [2, 2, 2]
    assert world.told() == []


def test_topics_whose_times_are_apart_are_no_observation(world):
    world.all()
    world.robot.read()
    world.tick(1.0)
    world.joints(2000.0)
    world.gripper(0.5)
    world.camera(1001.0)
    assert world.robot.read() is None
    [(kind, message)] = world.told()
    assert kind == "observation_invalid"
    assert message.startswith("/joints: its nearest message is 1000 ms")
    assert "stamps: receipt" in message
    assert world.robot.counts["unsynchronised"] == 1


def test_times_of_receipt_ignore_headers():
    world = World(CONTRACT.replace("tolerance_ms: 40", "tolerance_ms: 40, stamps: receipt"))
    world.joints(5.0)
    world.gripper(0.5)
    world.camera(77.0)
    assert world.robot.read().time == 1000.0


@pytest.mark.parametrize(
    ("say", "kind", "words", "count"),
    [
        (lambda w: w.joints(1000.5, names=("b", "c")), "observation_invalid", "joints a are missing", "missing_joints"),
        (lambda w: w.joints(1000.5, (None, 2.0)), "observation_invalid", "position of b is not finite", "nonfinite"),
        (lambda w: w.joints(1000.5, effort=None, name=3), "bad_message", "list of names", "bad_message"),
        (lambda w: w.gripper(), "bad_message", "key 'state' needs 1", "bad_message"),
        (lambda w: w.gripper(None), "observation_invalid", r"data of state\[0\] is not finite", "nonfinite"),
        (lambda w: w.transport.say("/camera", {}), "bad_message", "no base64", "bad_message"),
        (lambda w: w.joints(1000.5, header={"stamp": 3}), "bad_message", "header.stamp", "bad_message"),
    ],
)
def test_a_message_that_cannot_be_used_is_dropped_and_told(world, say, kind, words, count):
    world.all()
    world.robot.read()
    world.tick(0.5)
    for _ in range(100):
        world.tick(0.02)
        say(world)
    [(told, message)] = world.told()  # once, however often
    assert told == kind
    assert re.search(words, message)
    assert world.robot.counts[count] == 100
    world.tick(0.02)
    world.all()
    assert world.robot.read() is not None


def test_images_faster_than_anybody_uses_them_are_not_decoded(world):
    world.all()
    for _ in range(50):
        world.tick(1 / 1024)  # an image is looked at every 12.5 ms
        world.camera(world.transport.time)
    assert world.robot.counts["skipped"] == 47
    assert world.robot.counts["received"] == 53


def test_a_silent_topic_is_told(world):
    world.all()
    world.robot.read()
    for _ in range(12):
        world.tick(0.1)
        world.joints(world.transport.time)
        world.gripper(0.5)
        world.robot.read()
    [(kind, message)] = world.told()
    assert kind == "observation_invalid"
    assert message.startswith("/camera: no message for 1.")
    world.camera(world.transport.time)
    assert world.robot.read() is not None
    assert world.told() == []
    world.tick(SILENT_S + 0.1)
    world.robot.read()
    assert len(world.told()) == 3


def test_a_lost_connection_is_told_and_nothing_of_before_is_used(world):
    world.all()
    world.transport.cut()
    assert world.robot.read() is None
    [(kind, message)] = world.told()
    assert kind == "connection_lost"
    assert "cut" in message
    world.transport.mend()
    world.joints(1000.0)
    assert world.robot.read() is None
    [failure] = world.robot.failures()
    assert (failure.kind, failure.recovered) == ("connection_lost", True)


def test_a_cut_that_was_mended_before_anybody_looked_is_told_in_order(world):
    world.transport.cut()
    world.transport.mend()
    assert [failure.recovered for failure in world.robot.failures()] == [False, True]
    world.transport.mend()
    world.transport.cut()
    assert [failure.recovered for failure in world.robot.failures()] == [True, False]


def test_no_connection_at_all_is_told():
    transport = LocalTransport()
    transport.connected = False
    clock = [0.0]
    robot = TopicRobot(parse_contract(CONTRACT), transport, clock=lambda: clock[0])
    assert robot.read() is None
    assert robot.failures() == []
    clock[0] = SILENT_S + 0.1
    robot.read()
    robot.read()
    [failure] = robot.failures()
    assert "does rosbridge run there" in failure.message
    transport.mend()
    assert [f.recovered for f in robot.failures()] == [True]


def positions(message):
    return [point["positions"] for point in message["points"]]


def test_a_command_goes_to_every_topic(world):
    world.robot.send(np.array([0.1, 0.2, 0.3, 0.4]), 1000.0)
    sent = world.transport.sent
    assert positions(sent["/arm"][0]) == [[0.1, 0.2]]
    assert sent["/hand"][0]["data"] == [0.3]
    assert sent["/base"][0]["linear"]["x"] == 0.4
    assert world.robot.commands.counts == {"sent": 3, "not_sent": 0, "trajectories": 0}


def test_a_trajectory_is_a_promise_and_what_keeps_it_is_not_sent_again(world):
    robot, sent = world.robot, world.transport.sent["/arm"]
    robot.send(np.array([0.0, 0.0, 0.0, 0.0]), 1000.0)
    robot.commands.chunk(np.array([[0.1 * i, 0.0, 0.0, 0.0] for i in range(1, 4)]))
    assert positions(sent[-1]) == [[0.0, 0.0], [0.1, 0.0], [0.2, 0.0], [pytest.approx(0.3), 0.0]]
    assert len(sent) == 2
    stamp = sent[-1]["header"]["stamp"]
    assert stamp["sec"] + 1e-9 * stamp["nanosec"] == pytest.approx(1000.0 - 0.05)
    # A clock that runs off a little, and a place after the end, change nothing.
    for i, jitter in ((1, 0.004), (2, -0.004), (3, 0.0), (4, 0.0), (40, 0.0)):
        robot.send(np.array([0.1 * min(i, 3), 0.0, 0.0, 0.0]), 1000.0 + 0.05 * i + jitter)
    assert len(sent) == 2
    # The safety action, say, replaces it.
    robot.send(np.array([0.15, 0.0, 0.0, 0.0]), 1000.1)
    assert positions(sent[-1]) == [[0.15, 0.0]]
    robot.send(np.array([0.15, 0.0, 0.0, 0.0]), 1000.15)
    assert len(sent) == 3


def test_deferred_commands_wait_for_the_chunk_but_the_watchdogs_do_not(world):
    robot, sent = world.robot, world.transport.sent["/arm"]
    robot.read()  # by this thread
    robot.defer()
    robot.send(np.zeros(4), 1000.0)
    assert sent == []
    robot.commands.chunk(np.ones((2, 4)))
    robot.commands.flush()
    assert [len(message["points"]) for message in sent] == [3]
    robot.send(np.full(4, 0.5), 1000.05)
    robot.commands.flush()
    assert positions(sent[-1]) == [[0.5, 0.5]]
    watchdog = threading.Thread(target=robot.send, args=(np.full(4, 0.25), 1000.1))
    watchdog.start()
    watchdog.join()
    assert positions(sent[-1]) == [[0.25, 0.25]]
    assert len(sent) == 3


def test_one_point_a_command():
    world = World(CONTRACT.replace("joints: [a, b]}", "joints: [a, b], points: one}"))
    for i in range(3):
        world.robot.send(np.zeros(4), 1000.0 + 0.05 * i)
    assert [len(message["points"]) for message in world.transport.sent["/arm"]] == [1, 1, 1]


def test_without_a_connection_commands_are_gone_and_counted(world):
    robot = world.robot
    robot.send(np.zeros(4), 1000.0)
    world.transport.cut()
    robot.send(np.zeros(4), 1000.05)
    assert robot.commands.counts["not_sent"] == 3
    world.transport.mend()
    robot.send(np.zeros(4), 1000.1)  # what was promised before the cut does not count
    assert len(world.transport.sent["/arm"]) == 2


def test_what_is_not_finite_is_never_sent(world):
    with pytest.raises(ValueError, match=r"/hand: .* not finite"):
        world.robot.send(np.array([0.0, 0.0, np.nan, 0.0]), 1000.0)
    assert not any(world.transport.sent.values())


def test_stopping_stands_still(world):
    world.robot.send(np.ones(4), 1000.0)
    world.robot.stop()
    assert world.transport.sent["/base"][-1]["linear"] == {"x": 0, "y": 0, "z": 0}
    assert len(world.transport.sent["/arm"]) == 1
    world.robot.close()
    assert not world.transport.connected
