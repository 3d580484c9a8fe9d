"""rosbridge on real sockets: what is asked for, what comes, and what happens when the line does."""

import datetime
import json
import ssl
import threading
import time

import pytest
from rosbridge_server import RosbridgeServer
from websockets.sync.server import serve

from diffpolicy_spec.ros.roslib_transport import RoslibTransport
from diffpolicy_spec.ros.transport import Transport, type_name

SMALL = 1 << 16


class Line:
    """A server, a transport, and what came over it."""

    def __init__(self, ros: int = 2, **options) -> None:
        self.server = RosbridgeServer(ros=ros).start()
        options = {"max_message_bytes": SMALL, "ping_s": 0.3, "pong_s": 0.5, "backoff_s": (0.05, 0.2)} | options
        self.transport = RoslibTransport(self.server.url, ros, **options)
        self.got, self.told, self.lost, self.connections = [], [], [], []
        self.changed = threading.Condition()
        self.transport.on_connect(lambda: self._note(self.connections, 1))
        self.transport.on_disconnect(lambda reason: self._note(self.lost, reason))
        self.transport.on_problem(lambda kind, message: self._note(self.told, (kind, message)))

    def _note(self, where, what) -> None:
        with self.changed:
            where.append(what)
            self.changed.notify_all()

    def hear(self, topic: str, kind: str = "std_msgs/Float64MultiArray", **options) -> None:
        self.transport.subscribe(topic, kind, lambda message, at: self._note(self.got, (message, at)), **options)
        self.server.wait_for(lambda: self.server.subscriptions(topic))

    def say(self, topic: str, data, kind: str = "std_msgs/Float64MultiArray") -> None:
        self.server.publish(topic, type_name(kind, self.server.ros), data)

    def wait(self, what, timeout: float = 10.0) -> None:
        with self.changed:
            assert self.changed.wait_for(what, timeout), (self.got, self.told, self.lost)

    def close(self) -> None:
        self.transport.close()
        self.server.stop()


@pytest.fixture
def line():
    made = Line()
    yield made
    made.close()


def test_it_is_a_transport(line):
    assert isinstance(line.transport, Transport)


@pytest.mark.parametrize("ros", [1, 2])
def test_both_versions_of_ros(ros):
    line = Line(ros)
    try:
        line.hear("/in", queue_length=3, throttle_ms=20)
        publish = line.transport.advertise("/out", "std_msgs/Float64MultiArray")
        line.transport.advertise_service(
            "/go", "std_srvs/Trigger", lambda request: {"success": True, "message": "gone"}
        )
        line.server.wait_for(lambda: line.server.has_service("/go") and line.server.publishers("/out"))
        [settings] = line.server.subscriptions("/in")
        assert (settings.queue_length, settings.throttle_rate, settings.fragment_size) == (3, 20, SMALL // 2)
        line.say("/in", {"data": [1.0, float("nan")]})
        line.wait(lambda: line.got)
        [(message, at)] = line.got
        assert message["data"] == [1.0, None]
        assert abs(at - time.time()) < 5
        assert publish({"layout": {"dim": [], "data_offset": 0}, "data": [2.5]})
        assert line.server.messages("/out", 1)[0]["data"] == [2.5]
        assert line.server.call_service("/go") == {"success": True, "message": "gone"}
        kind = "std_msgs/Float64MultiArray" if ros == 1 else "std_msgs/msg/Float64MultiArray"
        line.server.publish("/in", kind, {"data": [2.0]})  # the topic has the type as this ROS writes it
        assert not line.told
    finally:
        line.close()


def test_fragments_become_a_message(line):
    line.hear("/in")
    values = [i + 0.25 for i in range(6000)]  # more than half of SMALL in JSON
    assert SMALL // 2 < len(json.dumps(values)) < SMALL
    line.say("/in", {"data": values})
    line.wait(lambda: line.got)
    assert line.got[0][0]["data"] == values


def test_a_message_too_large_is_dropped_and_the_line_stays(line):
    line.hear("/in")
    line.say("/in", {"data": [0.123456789] * 20_000})
    line.wait(lambda: line.told)
    assert "fragments of more than 65536 bytes" in line.told[0][1]
    line.say("/in", {"data": [1.0]})
    line.wait(lambda: line.got)
    assert not line.lost


def test_a_frame_too_large_ends_the_connection_which_comes_back(line):
    line.hear("/in")
    line.server.send_raw("x" * (4 * SMALL))
    line.wait(lambda: line.lost and line.told)
    assert line.told[0] == ("bad_message", "a message of more than 65536 bytes: the connection is made anew")
    line.server.wait_for(lambda: line.server.counts["connections"] == 2 and line.server.subscriptions("/in"))
    line.say("/in", {"data": [1.0]})
    line.wait(lambda: line.got)


HOSTILE = [
    "", "{", "null", "[" * 50_000, '{"op": 3}', '{"op": "png", "data": "x"}', '{"op": "publish"}', "\x00",
    '{"op": "publish", "topic": "/other", "msg": {}}', '{"op": "publish", "topic": ["/in"], "msg": {}}',
    '{"op": "publish", "topic": "/in", "msg": 3}', '{"op": "publish", "topic": "/in"}', '{"op": "close"}',
    '{"op": "publish", "topic": "ready", "msg": {}}', '{"op": "publish", "topic": "close", "msg": {}}',
    '{"op": "call_service", "service": "/none"}', '{"op": "call_service"}', '{"op": "fragment", "num": 1}',
    '{"op": "service_response", "id": "a"}', b"\x00\x01", '{"op": "status", "level": "error", "msg": "no such topic"}',
]  # fmt: skip


def test_what_nobody_should_send_is_told_and_nothing_else_happens(line):
    line.hear("/in")
    for frame in HOSTILE:
        line.server.send_raw(frame)
    line.wait(lambda: len(line.told) == len(HOSTILE))
    assert line.told[-1] == ("bad_message", "rosbridge says: no such topic")
    line.say("/in", {"data": [1.0]})
    line.wait(lambda: line.got)
    assert not line.lost
    assert line.transport.connected


def test_ten_thousand_malformed_messages(line):
    line.hear("/in")
    for i in range(10_000):
        line.server.send_raw(f'{{"op": "publish", "topic": "/in", "msg": {i}')
    line.say("/in", {"data": [1.0]})
    line.wait(lambda: line.got, 30)
    assert len(line.told) == 10_000
    assert not line.lost


def test_a_callback_that_raises_costs_its_message_only(line):
    def fail(message, at):
        raise RuntimeError("mine")

    line.transport.subscribe("/bad", "std_msgs/Float64MultiArray", fail)
    line.hear("/in")
    line.server.wait_for(lambda: line.server.subscriptions("/bad"))
    line.say("/bad", {"data": []})
    line.say("/in", {"data": [1.0]})
    line.wait(lambda: line.got)
    assert line.told == [("bad_message", "RuntimeError: mine")]


def everything(line):
    line.hear("/in")
    publish = line.transport.advertise("/out", "std_msgs/Float64MultiArray")
    line.transport.advertise_service("/go", "std_srvs/Trigger", lambda request: {"success": True, "message": ""})

    def there():
        return line.server.has_service("/go") and line.server.publishers("/out") and line.server.subscriptions("/in")

    line.server.wait_for(there)
    return publish, there


def check_it_works(line, publish, there):
    line.server.wait_for(there, 20)
    line.wait(lambda: line.transport.connected)
    line.got.clear()
    line.server.forget_messages("/out")
    line.say("/in", {"data": [7.0]})
    line.wait(lambda: line.got)
    assert publish({"data": [8.0]})
    assert line.server.messages("/out", 1)[0]["data"] == [8.0]
    assert line.server.call_service("/go")["success"]


def test_after_a_cut_everything_is_made_anew_at_once(line):
    publish, there = everything(line)
    line.server.kill()
    line.wait(lambda: line.lost)
    check_it_works(line, publish, there)
    assert len(line.connections) == 2


def test_a_server_that_comes_back_is_found(line):
    publish, there = everything(line)
    line.server.stop()
    line.wait(lambda: line.lost)
    assert not line.transport.connected
    assert not publish({"data": [1.0]})  # gone: nothing waits to be sent late
    line.server.start()
    check_it_works(line, publish, there)
    assert line.server.messages("/out") == [{"layout": {"dim": [], "data_offset": 0}, "data": [8.0]}]


def test_a_server_that_is_silent_is_noticed(line):
    publish, there = everything(line)
    line.server.half_open(True)
    line.wait(lambda: line.lost)
    assert "did not answer a ping" in line.lost[0]
    line.server.half_open(False)
    check_it_works(line, publish, there)


def test_publishing_never_waits_for_a_server_that_does_not_read(line):
    publish, _ = everything(line)
    line.server.half_open(True)
    began = time.monotonic()
    for _ in range(2000):
        publish({"data": [1.0] * 50})
    assert time.monotonic() - began < 5
    line.wait(lambda: line.lost)
    line.server.half_open(False)


def test_closing_withdraws_everything_and_sends_what_was_published(line):
    publish, _ = everything(line)
    publish({"data": [3.0]})
    line.transport.close()
    assert line.server.messages("/out", 1)[0]["data"] == [3.0]
    line.server.wait_for(lambda: line.server.clients == 0)
    assert not line.server.has_service("/go")
    assert not line.lost  # it was meant
    line.transport.close()
    assert not publish({"data": [1.0]})


def test_closing_does_not_wait_for_a_server_that_is_gone(line):
    everything(line)
    line.server.half_open(True)
    began = time.monotonic()
    line.transport.close()
    assert time.monotonic() - began < 2
    line.server.half_open(False)
    line.server.wait_for(lambda: line.server.clients == 0)


def test_one_after_another_in_one_process(line):
    everything(line)
    line.transport.close()
    second = RoslibTransport(line.server.url, 2)
    try:
        came = threading.Event()
        second.on_connect(came.set)
        assert came.wait(10)
    finally:
        second.close()


def test_nothing_is_lost_that_was_asked_for_before_the_server_was_there():
    line = Line()
    try:
        line.server.stop()
        late = RoslibTransport(line.server.url, 2, backoff_s=(0.05, 0.1))
        late.subscribe("/in", "std_msgs/Float64MultiArray", lambda message, at: line._note(line.got, message))
        line.server.start()
        line.server.wait_for(lambda: line.server.subscriptions("/in"))
        line.say("/in", {"data": [1.0]})
        line.wait(lambda: line.got)
        late.close()
    finally:
        line.close()


def test_numbers_that_json_has_not_are_refused(line):
    publish, _ = everything(line)
    with pytest.raises(ValueError, match="JSON"):
        publish({"data": [float("nan")]})


@pytest.mark.parametrize("url", ["http://x", "ws://", "9090", ""])
def test_what_is_no_url_is_told(url):
    with pytest.raises(ValueError, match=r"ws://HOST:PORT"):
        RoslibTransport(url)


def test_names_of_types():
    assert type_name("sensor_msgs/JointState", 2) == "sensor_msgs/msg/JointState"
    assert type_name("sensor_msgs/msg/JointState", 1) == "sensor_msgs/JointState"
    assert type_name("std_srvs/Trigger", 2, "srv") == "std_srvs/srv/Trigger"
    for wrong in ("JointState", "a/", "/b", "a/b/c"):
        with pytest.raises(ValueError, match="package/Name"):
            type_name(wrong, 2)
    with pytest.raises(ValueError, match="1 or 2"):
        type_name("a/B", 3)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(cert, key) PEM files for localhost, signed by itself."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
    made = made.not_valid_after(now + datetime.timedelta(hours=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False).sign(
        key, hashes.SHA256()
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    options = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(*options))
    return folder / "cert.pem", folder / "key.pem"


def test_tls_is_spoken_and_certificates_are_looked_at(certificate):
    cert, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    asked, told, heard = threading.Event(), [], threading.Event()

    def handle(connection) -> None:
        if connection.request.headers.get("X-Robot") == "arm" and "advertise" in connection.recv():
            asked.set()

    def tell(kind, message) -> None:
        told.append((kind, message))
        heard.set()

    with serve(handle, "localhost", 0, ssl=context) as server:
        url = f"wss://localhost:{server.socket.getsockname()[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stranger = RoslibTransport(url, backoff_s=(0.05, 0.1))
        stranger.on_problem(tell)
        assert heard.wait(10)
        assert told[0][0] == "connection_lost"
        assert "cannot be reached" in told[0][1]
        assert "certificate verify failed" in told[0][1]
        assert not stranger.connected
        stranger.close()
        friend = RoslibTransport(url, headers={"X-Robot": "arm"}, tls_ca=str(cert))
        friend.advertise("/out", "std_msgs/Header")
        assert asked.wait(10)
        friend.close()
        server.shutdown()


def test_a_file_without_certificates_is_told(certificate, tmp_path):
    (tmp_path / "ca.pem").write_text("none")
    with pytest.raises(ValueError, match="has no certificate"):
        RoslibTransport("wss://localhost:1", tls_ca=str(tmp_path / "ca.pem"))
    with pytest.raises(FileNotFoundError):
        RoslibTransport("wss://localhost:1", tls_ca=str(tmp_path / "none.pem"))


def test_a_server_that_cannot_be_reached_is_told_once_until_it_was():
    line = Line()
    try:
        line.wait(lambda: line.connections)
        line.server.stop()
        line.wait(lambda: line.told)
        kind, message = line.told[0]
        assert kind == "connection_lost"
        assert "cannot be reached: Connection was refused" in message
        time.sleep(0.5)  # several more attempts
        assert len(line.told) == 1
    finally:
        line.close()
