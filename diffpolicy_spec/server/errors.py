"""What a server's client raises."""

from __future__ import annotations

__all__ = ["KINDS", "ConnectionLost", "ServerError", "Unauthorized"]

KINDS = (
    "bad_message", "bad_request", "bad_observation", "rate_limited", "queue_full", "superseded", "cancelled",
    "draining", "internal",
)  # fmt: skip
"""Why a request got no chunk.

bad_message: no message of the protocol; bad_request: one with a wrong field; bad_observation: the policy cannot use
what was observed; rate_limited: too many requests a second; queue_full: too many wait; superseded: a newer request of
the same connection took its place; cancelled: its connection reset or went; draining: the server is going down;
internal: the server's own fault.
"""


class ServerError(RuntimeError):
    """The server answered that there is no chunk.

    Attributes:
        kind: one of KINDS.
        message: what the server said.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


class Unauthorized(ConnectionError):
    """The server does not take the token, or wants one."""


class ConnectionLost(ConnectionError):
    """The connection to the server is gone, or there was none."""
