"""How a connection through rosbridge ends: what was published last is read; who is gone is not waited for."""

import time

import pytest
from rosbridge_server import RosbridgeServer

from diffpolicy_spec.ros.roslib_transport import RoslibTransport


@pytest.fixture
def server():
    with RosbridgeServer(ros=1) as running:
        yield running


def connected(server):
    transport = RoslibTransport(server.url, 1)
    publish = transport.advertise("/x", "std_msgs/Float64")
    transport.advertise_service("/ended", "std_srvs/Trigger", lambda request: {"success": True})
    server.wait_for(lambda: server.has_service("/ended"))
    return transport, publish


def test_what_is_published_last_arrives_at_a_server_that_is_slow(server):
    transport, publish = connected(server)
    server.slow = 0.005
    for value in range(30):
        assert publish({"data": float(value)})
    transport.close()
    assert [message["data"] for message in server.messages("/x")] == [float(value) for value in range(30)]
    server.wait_for(lambda: server.clients == 0)
    assert not server.has_service("/ended")
    assert not publish({"data": 0.0})


@pytest.mark.parametrize("gone", ["half_open", "stopped"])
def test_a_server_that_is_gone_is_not_waited_for(server, gone):
    transport, _ = connected(server)
    if gone == "half_open":
        server.half_open(True)
    else:
        server.stop()
    began = time.monotonic()
    transport.close()
    transport.close()
    assert time.monotonic() - began < 2.5
