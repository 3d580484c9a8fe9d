"""Against roscore and rosbridge_suite's own server; started by tools/ros1/run.sh, skipped without."""

import os
from contextlib import ExitStack

import pytest
from rosbridge_exchanges import EXCHANGES, Pair
from rosbridge_server import RosbridgeServer

URL = os.environ.get("ROS_BRIDGE_URL")
pytestmark = pytest.mark.skipif(URL is None, reason="needs ROS 1 and rosbridge: sh tools/ros1/run.sh")


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_test_server_answers_as_rosbridge_does(name):
    with RosbridgeServer(send_status=False) as server, ExitStack() as stack:
        theirs = EXCHANGES[name](Pair(URL, stack, name))
        ours = EXCHANGES[name](Pair(server.url, stack, name))
    print(theirs)
    assert ours == theirs
