"""The test server against rosbridge's protocol: by hand on a websocket, and with roslibpy's real client."""

import base64
import io
import json
import re
import time
from contextlib import ExitStack

import numpy as np
import pytest
import roslibpy
from PIL import Image
from rosbridge_graph import GraphError
from rosbridge_server import RosbridgeServer
from rosbridge_types import TypeMismatch
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


class Wire:
    """One client, frame by frame."""

    def __init__(self, server: RosbridgeServer, stack: ExitStack, **options) -> None:
        options |= {"compression": None, "max_size": None, "close_timeout": 0.1}
        self.socket = stack.enter_context(connect(server.url, **options))

    def send(self, **frame) -> None:
        self.socket.send(json.dumps(frame))

    def frame(self, timeout: float = 5.0):
        return json.loads(self.socket.recv(timeout))

    def quiet(self, timeout: float = 0.2) -> bool:
        try:
            self.socket.recv(timeout)
        except TimeoutError:
            return True
        return False


@pytest.fixture
def server():
    with RosbridgeServer() as running:
        yield running


@pytest.fixture
def another():
    """Makes a client of a server."""
    with ExitStack() as stack:
        yield lambda server, **options: Wire(server, stack, **options)


@pytest.fixture
def wire(server, another):
    return another(server)


def subscribed(server, wire, topic, kind="std_msgs/Float64", **settings):
    wire.send(op="subscribe", topic=topic, type=kind, **settings)
    server.wait_for(lambda: server.subscriptions(topic))


def test_a_published_message_has_all_its_fields(server, wire):
    wire.send(op="advertise", topic="/joints", type="sensor_msgs/JointState")
    wire.send(op="publish", topic="/joints", msg={"name": ["a"], "position": [1], "header": {"frame_id": "base"}})
    [message] = server.messages("/joints", 1)
    assert message["position"] == [1.0]
    assert message["velocity"] == []
    assert message["header"]["frame_id"] == "base"
    assert message["header"]["stamp"]["secs"] > 1e9  # filled in by the server
    wire.send(op="publish", topic="/joints", msg={"name": ["a"]})
    assert server.messages("/joints", 2)[1]["header"]["stamp"] == {"secs": 0, "nsecs": 0}
    assert server.publishers("/joints") == 1


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"positions": [1.0]}, "does not have a field positions"),
        ({"position": [None]}, "requires a float64 for field position, but got a NoneType"),
        ({"position": ["1"]}, "got a str"),
        ({"position": 1.0}, r"requires a float64\[\]"),
        ({"name": [1]}, "requires a string"),
        ({"header": {"seq": -1}}, "must be 0 to"),
        ([1.0], "requires a JSON object"),
    ],
)
def test_a_message_of_another_shape_is_refused_with_a_status(server, wire, message, words):
    wire.send(op="advertise", topic="/joints", type="sensor_msgs/JointState")
    wire.send(op="publish", topic="/joints", msg=message, id="p1")
    status = wire.frame()
    assert (status["op"], status["level"], status["id"]) == ("status", "error", "p1")
    assert re.search(words, status["msg"])
    assert server.messages("/joints") == []


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ({"op": "publish", "topic": "/none", "msg": {}}, "not yet advertised"),
        ({"op": "advertise", "topic": "/a", "type": "no_msgs/Such"}, "no_msgs/Such"),
        ({"op": "advertise", "topic": "/a", "type": "sensor_msgs/msg/JointState"}, "package/Type"),
        ({"op": "advertise", "topic": 3, "type": "std_msgs/String"}, "topic must be a string"),
        ({"op": "subscribe", "topic": "/a", "type": "std_msgs/String", "throttle_rate": "x"}, "throttle_rate"),
        ({"op": "subscribe", "topic": "/unknown"}, "not yet advertised"),
        ({"op": "dance"}, "Unknown operation: dance"),
        ({"no": "op"}, "without an op"),
        ({"op": "unadvertise_service", "service": "/no"}, "has not been advertised"),
        ({"op": "service_response", "service": "/no", "id": "x", "values": {}, "result": True}, "no request"),
    ],
)
def test_an_operation_that_cannot_be_is_told(wire, frame, words):
    wire.send(**frame)
    status = wire.frame()
    assert status["level"] == "error"
    assert words in status["msg"]


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"op": "publish"', "\x00", "[" * 100_000, b"\x01\x02"])
def test_frames_that_are_not_json_are_told_and_harm_nobody(server, wire, text):
    wire.socket.send(text)
    assert wire.frame()["level"] == "error"
    subscribed(server, wire, "/x")
    server.publish("/x", "std_msgs/Float64", {"data": 2.0})
    assert wire.frame()["msg"] == {"data": 2.0}


def test_set_level_silences_and_opens(server, wire):
    wire.send(op="set_level", level="none")
    wire.send(op="dance")
    assert wire.quiet()
    wire.send(op="set_level", level="info")
    wire.send(op="subscribe", topic="/x", type="std_msgs/Float64", id="s")
    assert wire.frame() == {"op": "status", "level": "info", "msg": "Subscribed to /x", "id": "s"}
    assert ("error", "GraphError: Unknown operation: dance") in server.log


def test_published_servers_only_log_their_status(another):
    with RosbridgeServer(send_status=False) as server:
        wire = another(server)
        wire.send(op="dance")
        assert wire.quiet()
        assert server.counts["error"] == 1


def test_nan_is_null_and_bytes_are_base64(server, wire):
    subscribed(server, wire, "/joints", "sensor_msgs/JointState")
    subscribed(server, wire, "/image", "sensor_msgs/CompressedImage")
    server.publish("/joints", "sensor_msgs/JointState", {"position": [1.0, float("nan"), float("inf")]})
    assert wire.frame()["msg"]["position"] == [1.0, None, None]
    server.publish("/image", "sensor_msgs/CompressedImage", {"format": "jpeg", "data": b"\x00\xff"})
    assert base64.b64decode(wire.frame()["msg"]["data"]) == b"\x00\xff"


def test_bytes_come_in_as_base64_or_as_numbers(server, wire):
    wire.send(op="advertise", topic="/image", type="sensor_msgs/CompressedImage")
    wire.send(op="publish", topic="/image", msg={"data": base64.b64encode(b"\x01\xfe").decode()})
    wire.send(op="publish", topic="/image", msg={"data": [1, 254]})
    first, second = server.messages("/image", 2)
    assert first["data"] == second["data"] == b"\x01\xfe"


def test_a_queue_keeps_the_newest_and_gives_them_at_its_rate(server, wire):
    subscribed(server, wire, "/x", throttle_rate=500, queue_length=2)
    for value in range(6):
        server.publish("/x", "std_msgs/Float64", {"data": float(value)})
    began = time.monotonic()
    values = [wire.frame()["msg"]["data"] for _ in range(3)]
    assert values[-2:] == [4.0, 5.0]
    assert time.monotonic() - began >= 0.95
    assert wire.quiet()
    assert server.counts["queue_full"] == 6 - len(values)


def test_throttled_without_a_queue_drops_what_comes_too_early(server, wire):
    subscribed(server, wire, "/x", throttle_rate=10_000)
    for value in range(5):
        server.publish("/x", "std_msgs/Float64", {"data": float(value)})
    assert wire.frame()["msg"]["data"] == 0.0
    assert wire.quiet()
    assert server.counts["throttled"] == 4


def test_several_subscriptions_of_a_client_are_merged_and_ended_by_id(server, wire):
    subscribed(server, wire, "/x", id="slow", throttle_rate=1000, queue_length=5)
    wire.send(op="subscribe", topic="/x", id="fast", throttle_rate=10, queue_length=1)
    server.wait_for(lambda: server.subscriptions("/x")[0].throttle_rate == 10)
    assert server.subscriptions("/x")[0].queue_length == 1
    wire.send(op="unsubscribe", topic="/x", id="fast")
    server.wait_for(lambda: server.subscriptions("/x")[0].throttle_rate == 1000)
    wire.send(op="unsubscribe", topic="/x")
    server.wait_for(lambda: not server.subscriptions("/x"))
    server.publish("/x", "std_msgs/Float64", {"data": 0.0})
    assert wire.quiet()


def test_large_messages_come_in_fragments(server, wire):
    subscribed(server, wire, "/text", "std_msgs/String", fragment_size=100)
    server.publish("/text", "std_msgs/String", {"data": "x" * 1000})
    parts = [wire.frame()]
    while len(parts) < int(parts[0]["total"]):
        parts.append(wire.frame())
    assert all(part["op"] == "fragment" and len(part["data"]) <= 100 for part in parts)
    assert len({part["id"] for part in parts}) == 1
    whole = json.loads("".join(part["data"] for part in sorted(parts, key=lambda part: part["num"])))
    assert whole["msg"]["data"] == "x" * 1000


def test_fragments_of_a_client_are_put_together_in_any_order(server, wire):
    text = json.dumps({"op": "publish", "topic": "/text", "msg": {"data": "hello"}})
    wire.send(op="advertise", topic="/text", type="std_msgs/String")
    parts = [text[start : start + 10] for start in range(0, len(text), 10)]
    for num in reversed(range(len(parts))):
        wire.send(op="fragment", id="f", data=parts[num], num=num, total=len(parts))
    assert server.messages("/text", 1) == [{"data": "hello"}]


def test_png_holds_the_message_in_its_pixels(server, wire):
    subscribed(server, wire, "/x", compression="png")
    server.publish("/x", "std_msgs/Float64", {"data": 7.0})
    frame = wire.frame()
    assert frame["op"] == "png"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(frame["data"]))))
    assert json.loads(pixels.tobytes())["msg"] == {"data": 7.0}


def test_what_is_latched_comes_to_late_subscribers(server, wire):
    server.publish("/x", "std_msgs/Float64", {"data": 1.0}, latch=True)
    wire.send(op="subscribe", topic="/x")
    assert wire.frame()["msg"] == {"data": 1.0}


def test_services_between_clients(server, wire, another):
    other = another(server)
    other.send(op="advertise_service", service="/start", type="std_srvs/Trigger")
    server.wait_for(lambda: server.has_service("/start"))
    wire.send(op="call_service", service="/start", id="c")
    request = other.frame()
    assert (request["op"], request["args"]) == ("call_service", {})
    other.send(op="service_response", service="/start", id=request["id"], values={"success": True}, result=True)
    assert wire.frame() == {
        "op": "service_response", "service": "/start", "id": "c", "result": True,
        "values": {"success": True, "message": ""},
    }  # fmt: skip
    other.socket.close()
    server.wait_for(lambda: not server.has_service("/start"))


@pytest.mark.parametrize("go", ["none", "raises", "wrong", "gone"])
def test_a_service_that_fails_is_answered(server, wire, go, another):
    def handler(request):
        if go == "raises":
            raise RuntimeError("no")
        return {"sucess": True}

    other = another(server)
    if go in ("raises", "wrong"):
        server.advertise_service("/start", "std_srvs/Trigger", handler)
    if go == "gone":
        other.send(op="advertise_service", service="/start", type="std_srvs/Trigger")
        server.wait_for(lambda: server.has_service("/start"))
    wire.send(op="set_level", level="none")
    wire.send(op="call_service", service="/start", id="c")
    if go == "gone":
        other.frame()
        other.socket.close()
    answer = wire.frame()
    assert answer["result"] is False
    assert isinstance(answer["values"], str)


def test_the_servers_own_node_is_held_to_the_types(server):
    with pytest.raises(TypeMismatch, match="does not have a field dat"):
        server.publish("/x", "std_msgs/Float64", {"dat": 1.0})
    with pytest.raises(GraphError, match="already established with type std_msgs/Float64"):
        server.publish("/x", "std_msgs/String", {"data": ""})
    with pytest.raises(GraphError, match="does not exist"):
        server.call_service("/nothing")
    with pytest.raises(TimeoutError, match="fewer than 1"):
        server.messages("/x", 1, timeout=0.05)


def test_ros_2_names_types_and_times_its_own_way(another):
    with RosbridgeServer(ros=2) as server:
        wire = another(server)
        wire.send(op="advertise", topic="/joints", type="sensor_msgs/msg/JointState")
        wire.send(op="publish", topic="/joints", msg={"header": {"stamp": {"sec": 3, "nanosec": 4}}})
        [message] = server.messages("/joints", 1)
        assert message["header"] == {"stamp": {"sec": 3, "nanosec": 4}, "frame_id": ""}
        wire.send(op="publish", topic="/joints", msg={"header": {"seq": 1}})
        assert "does not have a field header.seq" in wire.frame()["msg"]


def test_a_killed_connection_is_gone_and_a_new_one_begins_anew(server, wire, another):
    subscribed(server, wire, "/x")
    server.kill()
    with pytest.raises(ConnectionClosed):
        wire.frame()
    server.wait_for(lambda: server.clients == 0)
    again = another(server)
    server.publish("/x", "std_msgs/Float64", {"data": 1.0})
    assert again.quiet()  # it has to subscribe anew


def test_a_stopped_server_comes_back_on_its_port(server, wire, another):
    port = server.port
    server.stop()
    with pytest.raises(ConnectionClosed):
        wire.frame()
    with pytest.raises(ConnectionRefusedError):
        another(server)
    server.start()
    assert server.port == port
    wire = another(server)
    subscribed(server, wire, "/x")
    server.publish("/x", "std_msgs/Float64", {"data": 1.0})
    assert wire.frame()["msg"] == {"data": 1.0}


def test_half_open_is_silent_until_it_ends(server, wire, another):
    subscribed(server, wire, "/x")
    server.half_open(True)
    server.publish("/x", "std_msgs/Float64", {"data": 1.0})
    pong = wire.socket.ping()
    assert wire.quiet(0.3)
    assert not pong.wait(0.1)
    with pytest.raises(TimeoutError):
        another(server, open_timeout=0.2)
    server.half_open(False)
    assert wire.frame()["msg"] == {"data": 1.0}
    assert pong.wait(5)


def test_delay_and_raw_frames(server, wire):
    subscribed(server, wire, "/x")
    server.delay = 0.2
    began = time.monotonic()
    server.publish("/x", "std_msgs/Float64", {"data": 1.0})
    assert wire.frame()["msg"] == {"data": 1.0}
    assert time.monotonic() - began >= 0.19
    server.send_raw("{broken")
    assert wire.socket.recv(5) == "{broken"


def test_roslibpy_publishes_subscribes_and_calls(server):
    ros = roslibpy.Ros(server.host, server.port)
    ros.run(timeout=10)
    try:
        heard = []
        listener = roslibpy.Topic(ros, "/out", "sensor_msgs/JointState", throttle_rate=5, queue_length=1)
        listener.subscribe(heard.append)
        server.wait_for(lambda: server.subscriptions("/out"))
        assert server.subscriptions("/out")[0].queue_length == 1
        server.publish("/out", "sensor_msgs/JointState", {"name": ["a"], "position": [float("nan")]})
        server.wait_for(lambda: heard)
        assert heard[0]["position"] == [None]

        talker = roslibpy.Topic(ros, "/in", "std_msgs/Float64MultiArray")
        talker.publish(roslibpy.Message({"data": [1.0, 2.0]}))
        assert server.messages("/in", 1)[0]["data"] == [1.0, 2.0]

        def start(request, response):
            response["success"], response["message"] = True, "started"
            return True

        service = roslibpy.Service(ros, "/start", "std_srvs/Trigger")
        service.advertise(start)
        server.wait_for(lambda: server.has_service("/start"))
        assert server.call_service("/start") == {"success": True, "message": "started"}

        server.advertise_service("/flag", "std_srvs/SetBool", lambda request: {"success": request["data"]})
        caller = roslibpy.Service(ros, "/flag", "std_srvs/SetBool")
        assert caller.call(roslibpy.ServiceRequest({"data": True}), timeout=10)["success"] is True
        assert abs(ros.get_time().to_sec() - time.time()) < 60
        assert "/in" in ros.get_topics()
        listener.unsubscribe()
        server.wait_for(lambda: not server.subscriptions("/out"))
    finally:
        ros.close()


def test_what_is_not_read_when_a_connection_ends_is_lost(server, another):
    talker = another(server)
    talker.send(op="advertise", topic="/x", type="std_msgs/Float64")
    server.wait_for(lambda: server.publishers("/x"))
    server.slow = 0.02
    for value in range(20):
        talker.send(op="publish", topic="/x", msg={"data": value})
    talker.socket.close()
    server.wait_for(lambda: server.clients == 0)
    assert len(server.messages("/x")) < 20
