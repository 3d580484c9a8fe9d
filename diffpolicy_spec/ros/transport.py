"""What the node needs of ROS: topics, services, a clock. Messages are plain dicts, whoever carries them.

A message has rosbridge's shape: fields by name, times as {"sec", "nanosec"} (ROS 2) or {"secs", "nsecs"} (ROS 1),
`uint8[]` as base64 text, a list of numbers or bytes, numbers that are not finite as None. Types are named without
"msg" or "srv", as "sensor_msgs/JointState"; a transport writes them as its ROS does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

__all__ = ["ROS_VERSIONS", "Message", "ServiceHandler", "Transport", "type_name"]

Message = Mapping[str, Any]
"""A ROS message as a dict."""

ServiceHandler = Callable[[Message], Mapping[str, Any]]
"""From a service's request to its response; raises nothing."""

ROS_VERSIONS = (1, 2)


@runtime_checkable
class Transport(Protocol):
    """A connection to ROS. No method waits, `close` excepted.

    Callbacks come on a thread of the transport's own, one at a time; they raise nothing and return quickly.
    Subscriptions, advertised topics and services are kept by the transport: after a lost connection it makes them anew.
    """

    ros: int
    """1 or 2: how times and types are written."""

    @property
    def connected(self) -> bool:
        """Whether a message published now would be sent."""

    def on_connect(self, callback: Callable[[], None]) -> None:
        """Have `callback` called at each connection, at once where there is one already."""

    def on_disconnect(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called with the reason whenever the connection is lost."""

    def on_problem(self, callback: Callable[[str, str], None]) -> None:
        """Have `callback(kind, message)` called for what is unreadable or refused; kind: of events.FAULTS."""

    def subscribe(
        self,
        topic: str,
        type: str,
        callback: Callable[[Message, float], None],
        *,
        queue_length: int = 1,
        throttle_ms: int = 0,
    ) -> None:
        """Have `callback(message, received)` called for each message.

        Args:
            topic: its name; one subscription a topic.
            type: as "sensor_msgs/JointState".
            callback: gets the message, and when it came, s, on the clock of `now`.
            queue_length: messages kept for a slow reader: 1 keeps the newest.
            throttle_ms: least time between two messages; 0: each is wanted.
        """

    def advertise(self, topic: str, type: str, *, queue_length: int = 1) -> Callable[[Message], bool]:
        """Announce a topic.

        Returns:
            publish(message) -> whether it was given to the connection. It never waits; without a connection the message
            is gone: a command that is late is worse than none.
        """

    def advertise_service(self, name: str, type: str, handler: ServiceHandler) -> None:
        """Answer a service's requests, as "std_srvs/Trigger"."""

    def now(self) -> float:
        """s, ROS time: the clock of header stamps."""

    def close(self) -> None:
        """Withdraw everything and disconnect; within 2 s, and one more a service where ROS 1's rosbridge is slow."""


def type_name(type: str, ros: int, kind: str = "msg") -> str:
    """A type as a ROS of this version writes it: "sensor_msgs/JointState" is "sensor_msgs/msg/JointState" in ROS 2.

    Raises:
        ValueError: no name of a type, or another version.
    """
    if ros not in ROS_VERSIONS:
        raise ValueError(f"ros must be 1 or 2, got {ros!r}")
    package, _, name = type.partition("/")
    name = name.removeprefix("msg/").removeprefix("srv/")
    if not package or not name or "/" in name:
        raise ValueError(f"{type!r} is no type: write package/Name, as sensor_msgs/JointState")
    return f"{package}/{name}" if ros == 1 else f"{package}/{kind}/{name}"
