"""Conversations with a rosbridge server, frame by frame, and what comes back: the same of rosbridge itself and of the
test server, or the test server is wrong."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

__all__ = ["EXCHANGES", "Pair"]


class Pair:
    """Two clients of a server: `talker` sends what is tried, `hearer` is another one."""

    def __init__(self, url: str, stack: ExitStack, name: str) -> None:
        self.talker = stack.enter_context(connect(url, compression=None, max_size=None))
        self.hearer = stack.enter_context(connect(url, compression=None, max_size=None))
        self.topic = f"/exchange/{name}"

    def say(self, who: ClientConnection, **frame: Any) -> None:
        """Send a frame; topics of another server's exchanges are not this one's."""
        who.send(json.dumps(frame))

    def publish(self, kind: str, *messages: Any, **more: Any) -> list[Any]:
        """Advertise, have it subscribed, publish; what the hearer gets."""
        self.say(self.talker, op="advertise", topic=self.topic, type=kind, **more)
        time.sleep(0.5)
        self.say(self.hearer, op="subscribe", topic=self.topic, type=kind)
        time.sleep(0.5)
        for message in messages:
            self.say(self.talker, op="publish", topic=self.topic, msg=message)
        return [frame["msg"] for frame in self.hear(self.hearer)]

    def hear(self, who: ClientConnection, quiet: float = 0.8) -> list[Any]:
        """All frames until none comes for a while; status messages are left out."""
        heard = []
        while True:
            try:
                frame = json.loads(who.recv(quiet))
            except (TimeoutError, ConnectionClosed):
                return heard
            if frame["op"] != "status":
                heard.append(frame)


def _now(stamp: dict[str, int]) -> Any:
    """A time as zero, about now, or itself."""
    if stamp == {"secs": 0, "nsecs": 0}:
        return "zero"
    return "now" if abs(stamp["secs"] - time.time()) < 60 else stamp


def _header(message: Any) -> Any:
    message["header"].pop("seq")
    message["header"]["stamp"] = _now(message["header"]["stamp"])
    return message


def part_of_a_message(pair: Pair) -> Any:
    heard = pair.publish("sensor_msgs/JointState", {"name": ["a"], "position": [1], "header": {"frame_id": "base"}})
    return [_header(message) for message in heard]


def without_header(pair: Pair) -> Any:
    return [_header(message) for message in pair.publish("sensor_msgs/JointState", {"name": ["a"]})]


def with_its_time(pair: Pair) -> Any:
    stamp = {"secs": 12, "nsecs": 34}
    return [_header(m) for m in pair.publish("sensor_msgs/JointState", {"header": {"stamp": stamp}})]


def refused_messages(pair: Pair) -> Any:
    wrong: list[Any] = [
        {"positions": [1.0]}, {"position": [None]}, {"position": ["1"]}, {"position": 1.0}, {"name": [1]},
        {"name": "a"}, {"header": 3}, [1.0], None, 3, {"position": [True]},
    ]  # fmt: skip
    return [m["position"] for m in pair.publish("sensor_msgs/JointState", *wrong, {"position": [5.0]})]


def nan_and_infinity(pair: Pair) -> Any:
    message = {"data": [1.5, float("nan"), float("inf")]}
    return [m["data"] for m in pair.publish("std_msgs/Float64MultiArray", message)]


def whole_numbers_as_floats(pair: Pair) -> Any:
    return [m["data"] for m in pair.publish("std_msgs/Float64MultiArray", {"data": [1, 2]})]


def bytes_as_base64(pair: Pair) -> Any:
    text = base64.b64encode(bytes(range(256))).decode()
    heard = pair.publish("sensor_msgs/CompressedImage", {"format": "jpeg", "data": text}, {"data": [0, 255]})
    return [message["data"] for message in heard]


def levels_as_numbers(pair: Pair) -> Any:
    status = {"level": 2, "name": "n", "values": [{"key": "k", "value": "v"}]}
    return [m["status"] for m in pair.publish("diagnostic_msgs/DiagnosticArray", {"status": [status]})]


def a_trajectory(pair: Pair) -> Any:
    points = [{"positions": [0.1, 0.2], "time_from_start": {"secs": 0, "nsecs": 50_000_000}}]
    message = {"joint_names": ["a", "b"], "points": points}
    return [_header(heard) for heard in pair.publish("trajectory_msgs/JointTrajectory", message)]


def numbers_out_of_range(pair: Pair) -> Any:
    # Nothing more is tried on this topic: rosbridge does not recover from it.
    return pair.publish("sensor_msgs/Image", {"height": -1}, {"is_bigendian": 256})


def latched(pair: Pair) -> Any:
    pair.say(pair.talker, op="advertise", topic=pair.topic, type="std_msgs/Float64", latch=True)
    time.sleep(0.3)
    pair.say(pair.talker, op="publish", topic=pair.topic, msg={"data": 4.0}, latch=True)
    time.sleep(0.5)
    pair.say(pair.hearer, op="subscribe", topic=pair.topic, type="std_msgs/Float64")
    heard = [frame["msg"] for frame in pair.hear(pair.hearer)]
    return heard[0], all(message == heard[0] for message in heard)  # rosbridge gives it twice


def fragments_in(pair: Pair) -> Any:
    pair.publish("std_msgs/String")
    text = json.dumps({"op": "publish", "topic": pair.topic, "msg": {"data": "x" * 50}})
    parts = [text[start : start + 30] for start in range(0, len(text), 30)]
    for num, part in enumerate(parts):
        pair.say(pair.talker, op="fragment", id=pair.topic, data=part, num=num, total=len(parts))
    return [frame["msg"] for frame in pair.hear(pair.hearer)]


def fragments_out(pair: Pair) -> Any:
    pair.say(pair.talker, op="advertise", topic=pair.topic, type="std_msgs/String")
    time.sleep(0.5)
    pair.say(pair.hearer, op="subscribe", topic=pair.topic, type="std_msgs/String", fragment_size=100)
    time.sleep(0.5)
    pair.say(pair.talker, op="publish", topic=pair.topic, msg={"data": "x" * 500})
    parts = pair.hear(pair.hearer)
    whole = json.loads("".join(part["data"] for part in parts))["msg"]
    rest = [(part["op"], part["num"]) for part in parts]
    # Not a whole number: (length - 1) / size + 1. How long a message is depends on how slashes are written.
    totals = {type(part["total"]) for part in parts}
    return whole, rest == [("fragment", num) for num in range(len(parts))], int(parts[0]["total"]) == len(parts), totals


def throttled(pair: Pair) -> Any:
    pair.say(pair.talker, op="advertise", topic=pair.topic, type="std_msgs/Float64")
    time.sleep(0.5)
    pair.say(pair.hearer, op="subscribe", topic=pair.topic, type="std_msgs/Float64", throttle_rate=5000)
    time.sleep(0.5)
    for value in range(5):
        pair.say(pair.talker, op="publish", topic=pair.topic, msg={"data": value})
    return [frame["msg"] for frame in pair.hear(pair.hearer)]


def queued(pair: Pair) -> Any:
    pair.say(pair.talker, op="advertise", topic=pair.topic, type="std_msgs/Float64")
    time.sleep(0.5)
    pair.say(pair.hearer, op="subscribe", topic=pair.topic, type="std_msgs/Float64", throttle_rate=600, queue_length=2)
    time.sleep(0.5)
    for value in range(6):
        time.sleep(0.02)
        pair.say(pair.talker, op="publish", topic=pair.topic, msg={"data": value})
    return [frame["msg"] for frame in pair.hear(pair.hearer, quiet=1.5)]


def unsubscribed(pair: Pair) -> Any:
    heard = pair.publish("std_msgs/Float64", {"data": 1.0})
    pair.say(pair.hearer, op="unsubscribe", topic=pair.topic)
    time.sleep(0.5)
    pair.say(pair.talker, op="publish", topic=pair.topic, msg={"data": 2.0})
    return heard + pair.hear(pair.hearer)


def service(pair: Pair) -> Any:
    pair.say(pair.talker, op="advertise_service", service=pair.topic, type="std_srvs/Trigger")
    time.sleep(0.8)
    pair.say(pair.hearer, op="call_service", service=pair.topic, id="c1")
    request = json.loads(pair.talker.recv(5))
    answer = {"success": True, "message": "yes"}
    pair.say(pair.talker, op="service_response", service=pair.topic, id=request.pop("id"), values=answer, result=True)
    return request, pair.hear(pair.hearer)


def service_that_says_no(pair: Pair) -> Any:
    pair.say(pair.talker, op="advertise_service", service=pair.topic, type="std_srvs/Trigger")
    time.sleep(0.8)
    pair.say(pair.hearer, op="call_service", service=pair.topic, id="c1")
    name = json.loads(pair.talker.recv(5))["id"]
    pair.say(pair.talker, op="service_response", service=pair.topic, id=name, values={"success": False}, result=False)
    return pair.hear(pair.hearer)


def no_service(pair: Pair) -> Any:
    pair.say(pair.hearer, op="call_service", service="/exchange/nobody", id="c2", args={})
    [answer] = pair.hear(pair.hearer)
    return answer["result"], answer["id"], type(answer["values"]).__name__


def wrong_request(pair: Pair) -> Any:
    pair.say(pair.talker, op="advertise_service", service=pair.topic, type="std_srvs/SetBool")
    time.sleep(0.8)
    pair.say(pair.hearer, op="call_service", service=pair.topic, id="c3", args={"data": "yes"})
    [answer] = pair.hear(pair.hearer)
    return answer["result"], answer["id"]


def rubbish_then_reason(pair: Pair) -> Any:
    for text in ('{"op": "dance"}', "[]", "null"):  # a number would end rosbridge's thread of this client
        pair.talker.send(text)
    return pair.publish("std_msgs/Float64", {"data": 1.0})


def unknown_topics_and_types(pair: Pair) -> Any:
    pair.say(pair.hearer, op="subscribe", topic="/exchange/unknown")
    pair.say(pair.talker, op="publish", topic="/exchange/unknown", msg={"data": 1.0})
    pair.say(pair.talker, op="advertise", topic="/exchange/untyped", type="no_msgs/None")
    pair.say(pair.talker, op="advertise", topic="/exchange/three", type="std_msgs/msg/Float64")
    return pair.publish("std_msgs/Float64", {"data": 1.0})


EXCHANGES: dict[str, Callable[[Pair], Any]] = {
    made.__name__: made
    for made in (
        part_of_a_message, without_header, with_its_time, refused_messages, nan_and_infinity, whole_numbers_as_floats,
        bytes_as_base64, levels_as_numbers, a_trajectory, numbers_out_of_range, latched, fragments_in, fragments_out,
        throttled, queued, unsubscribed, service, service_that_says_no, no_service, wrong_request, rubbish_then_reason,
        unknown_topics_and_types,
    )
}  # fmt: skip
