"""How a policy is served: the settings of configs/serve.yaml."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["ACTIONS_RETURNED", "HISTORIES", "Limits", "ServerConfig"]

HISTORIES = ("repeat", "consecutive")
ACTIONS_RETURNED = ("n_action_steps", "usable")


@dataclass(frozen=True)
class Limits:
    """What clients may take up; beyond each, something definite happens.

    Attributes:
        max_message_bytes: larger messages close their connection (1009) before they are read; None: twice the policy's
            observations, as 8 byte numbers, and 64 KiB.
        max_connections: of all clients; further ones are told 503.
        max_connections_per_client: of one token's name, or one address where there are no tokens.
        handshakes_per_s: of one address, after twice max_connections at once; further ones are told 429.
        requests_per_s: of one connection; messages beyond that wait unread, and requests among them are refused.
        burst: of one connection, before that.
        max_waiting: requests of all clients that wait for the policy; further ones are refused.
        max_in_flight: requests of one connection that are not answered yet; further ones are refused.
        max_bad_in_a_row: messages that cannot be read, before the connection is closed (1008).
        handshake_s: for TLS, and again for the websocket's handshake.
        send_s: an answer that a client does not take for so long closes its connection.
        ping_s, pong_s: a ping is sent so often, and its answer waited for so long before the connection counts as dead.

    Raises:
        ValueError: a limit that is not positive.
    """

    max_message_bytes: int | None = None
    max_connections: int = 64
    max_connections_per_client: int = 32
    handshakes_per_s: float = 20.0
    requests_per_s: float = 200.0
    burst: int = 100
    max_waiting: int = 64
    max_in_flight: int = 8
    max_bad_in_a_row: int = 16
    handshake_s: float = 5.0
    send_s: float = 5.0
    ping_s: float = 5.0
    pong_s: float = 10.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is None and one.name == "max_message_bytes":
                continue
            whole = one.name.startswith("max_") or one.name == "burst"
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise ValueError(f"limits: {one.name} must be a {'whole ' if whole else ''}number, got {value!r}")
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"limits: {one.name} must be positive, got {value}")


@dataclass(frozen=True)
class ServerConfig:
    """Where and how a policy is served.

    Attributes:
        host: address to listen on. Others than loopback's need tokens, or insecure=True.
        port: 0 lets the system pick one.
        tokens: name of a client -> its token. Empty: whoever connects is served.
        insecure: other addresses than loopback's without tokens.
        tls_cert, tls_key: PEM files; both or neither.
        origins: web pages (scheme://host) whose scripts may connect; none by default. Programs send no origin.
        open_metrics: /metrics needs no token.
        history: what observations of one step become where the policy looks at To: "repeat": To times this one;
            "consecutive": with those of the connection's requests before, where they are at most history_gap_s apart.
        actions_returned: to openpi's clients: the Ta actions to execute, or all usable ones.
        obs_map: the policy's observation -> the client's keys that are joined for it; KEY[a:b] is a part of one.
        deadline_ms: of requests that have none; None: none.
        adaptive: calls that many chunks share have fewer rows of each. A seed's chunk then depends on who else is
            there; its law does not.
        max_chains: chunks under way at once; finish_steps: DDIM steps that finish a chunk which would be late.
        supersede: a request takes the place of an older one of its connection that was not begun.
        warm_up: chunks drawn before the first client is let in.
        watch_s: a checkpoint is looked at so often, and loaded when it has changed; None: only on SIGHUP.
        drain_s: what is under way when the server is asked to end has so long to be answered.
        limits: see there.

    Raises:
        ValueError: a setting that cannot be.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    insecure: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None
    origins: Sequence[str] = ()
    open_metrics: bool = False
    history: str = "repeat"
    history_gap_s: float = 0.5
    actions_returned: str = "n_action_steps"
    obs_map: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    deadline_ms: float | None = None
    adaptive: bool = True
    max_chains: int = 16
    finish_steps: int = 4
    supersede: bool = True
    warm_up: int = 2
    watch_s: float | None = 2.0
    drain_s: float = 10.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        object.__setattr__(self, "origins", tuple(self.origins))  # a config file gives a list
        for name, known in (("history", HISTORIES), ("actions_returned", ACTIONS_RETURNED)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        for name in ("history_gap_s", "deadline_ms", "watch_s", "drain_s"):
            value = getattr(self, name)
            if value is not None and not (_number(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        for name, least in (("port", 0), ("max_chains", 1), ("finish_steps", 1), ("warm_up", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if self.port > 65535:
            raise ValueError(f"port must be 0 ... 65535, got {self.port}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("TLS needs both: tls_cert, the certificate's PEM file, and tls_key, its key's")


def _number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
