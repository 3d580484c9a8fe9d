"""Against roscore and rosbridge_suite's own server; started by tools/ros1/run.sh, skipped without."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from rosbridge_exchanges import EXCHANGES, Pair
from rosbridge_server import RosbridgeServer
from tiny_arm_policy import save_arm_policy
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from diffpolicy_spec.ros.contract import load_contract
from diffpolicy_spec.ros.contracts import example
from diffpolicy_spec.ros.roslib_transport import RoslibTransport

URL = os.environ.get("ROS_BRIDGE_URL")
pytestmark = pytest.mark.skipif(URL is None, reason="needs ROS 1 and rosbridge: sh tools/ros1/run.sh")


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_test_server_answers_as_rosbridge_does(name):
    with RosbridgeServer(send_status=False) as server, ExitStack() as stack:
        theirs = EXCHANGES[name](Pair(URL, stack, name))
        ours = EXCHANGES[name](Pair(server.url, stack, name))
    print(theirs)
    assert ours == theirs


def test_what_is_published_last_arrives_before_the_connection_ends():
    with ExitStack() as stack:
        pair = Pair(URL, stack, "last")
        pair.publish("std_msgs/Float64")
        transport = RoslibTransport(URL, 1)
        publish = transport.advertise(pair.topic, "std_msgs/Float64")
        transport.advertise_service("/exchange/ended", "std_srvs/Trigger", lambda request: {"success": True})
        end = time.monotonic() + 10
        while not publish({"data": -1.0}):
            assert time.monotonic() < end, "no connection"
            time.sleep(0.01)
        for value in range(100):
            publish({"data": float(value)})
        transport.close()
        heard = [frame["msg"]["data"] for frame in pair.hear(pair.hearer)]
        assert heard[-1] == 99.0, f"the last of {len(heard)} is {heard[-1:]}"
        pair.say(pair.hearer, op="call_service", service="/exchange/ended", id="c")
        [answer] = pair.hear(pair.hearer, quiet=3.0)
        assert answer["result"] is False, "the service is offered, and nobody answers"


GOAL = [0.5, -0.5, -0.4, -2.0, 0.3, 1.8, 0.4]


class Eyes:
    """What the rospy robot says it saw, and services, through rosbridge."""

    def __init__(self, stack):
        self.socket = stack.enter_context(connect(URL, compression=None, max_size=None))
        self.socket.send(json.dumps({"op": "subscribe", "topic": "/robot/seen", "queue_length": 1}))

    def call(self, service):
        self.socket.send(json.dumps({"op": "call_service", "service": service, "id": service}))
        end = time.monotonic() + 20
        while time.monotonic() < end:
            frame = json.loads(self.socket.recv(10))
            if frame["op"] == "service_response":
                return frame
        raise TimeoutError(service)

    def seen(self, what=lambda told: True, timeout=30.0):
        """The first thing it says from now on for which `what` is true."""
        end, told = time.monotonic() + timeout, None
        while time.monotonic() < end:
            frame = json.loads(self.socket.recv(10))
            if frame["op"] == "publish":
                told = json.loads(frame["msg"]["data"])
                if what(told):
                    return told
        raise TimeoutError(f"it last said {told}")


@pytest.fixture
def bridge(tmp_path):
    """dps-ros-bridge with the Panda contract as it is, and a policy that wants to go to GOAL."""
    policy = save_arm_policy(
        tmp_path / "policy",
        {"joint_pos": 7, "joint_vel": 7, "gripper_pos": 1},
        [*GOAL, 0.04],
        reach=0.02,
        image_shapes={"wrist": (3, 96, 96)},
    )
    log = tmp_path / "bridge.log"
    with log.open("w") as file, subprocess.Popen(
        [sys.executable, "-m", "diffpolicy_spec.ros.cli", "contract=panda", f"policy={policy}", f"url={URL}",
         "warm_up=1"],
        stdout=file, stderr=subprocess.STDOUT, cwd=tmp_path,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            print(log.read_text())


def begin(bridge, eyes):
    """Call start until the policy is there to take it."""
    end = time.monotonic() + 120
    while not (answer := eyes.call("/panda_policy/start"))["result"]:
        assert time.monotonic() < end, answer
        assert bridge.poll() is None, "dps-ros-bridge has ended"
        time.sleep(0.5)
    assert answer["values"]["success"], answer


def test_a_rospy_robot_is_driven_stopped_and_started_again(bridge):
    safety = load_contract(example("panda")).safety
    with ExitStack() as stack:
        eyes = Eyes(stack)
        begin(bridge, eyes)
        there = eyes.seen(lambda told: np.abs(np.subtract(told["position"], GOAL)).max() < 0.06, 120)
        assert there["refused"] == []
        assert there["diagnostics"] > 0
        times, places = there["last"]
        assert (np.array(places) >= np.array(safety.low[:7])).all()
        assert (np.array(places) <= np.array(safety.high[:7])).all()
        assert len(places) > 3, "a chunk is one trajectory"
        assert np.allclose(np.diff(times), 0.05, atol=1e-3)
        eyes.seen(lambda told: abs(told["width"] - 0.04) <= 0.021)

        assert eyes.call("/panda_policy/stop")["values"]["success"]
        rest = [None]

        def still(told):
            before, rest[0] = rest[0], told["position"]
            return before == rest[0]

        eyes.seen(still)
        assert eyes.call("/panda_policy/reset")["values"]["success"]
        assert eyes.call("/panda_policy/start")["values"]["success"]
        eyes.seen(lambda told: told["taken"] > there["taken"] + 3)
        bridge.send_signal(signal.SIGINT)
        assert bridge.wait(20) == 0
        assert eyes.seen(still)["refused"] == []


def test_rosbridge_is_killed_and_comes_back(bridge):
    with ExitStack() as stack:
        eyes = Eyes(stack)
        begin(bridge, eyes)
        before = eyes.seen(lambda told: np.abs(np.subtract(told["position"], GOAL)).max() < 0.06, 120)
        os.kill(int(Path(os.environ["ROS_BRIDGE_PID"]).read_text()), signal.SIGKILL)
        with pytest.raises(ConnectionClosed):
            eyes.seen(lambda told: False)
    end = time.monotonic() + 30
    with ExitStack() as stack:
        while True:
            try:
                eyes = Eyes(stack)
                break
            except OSError:
                assert time.monotonic() < end, "rosbridge does not come back"
                time.sleep(0.2)
        after = eyes.seen(lambda told: told["taken"] > before["taken"] + 3, 60)
        assert np.abs(np.subtract(after["position"], GOAL)).max() < 0.06, "it has moved where nobody wanted it"
        assert after["refused"] == []
        assert bridge.poll() is None
