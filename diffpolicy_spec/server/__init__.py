"""The policy server, and its client, which needs neither torch nor a policy.

codec, messages   what goes over the wire: msgpack with openpi's arrays
client            Client: ask a server for chunks, one after another
remote            RemotePlanner: a server as a control loop's planner
config            ServerConfig, Limits
app               PolicyServer; `dps-serve` is cli
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffpolicy_spec.server.app import PolicyServer
    from diffpolicy_spec.server.client import Client
    from diffpolicy_spec.server.config import Limits, ServerConfig
    from diffpolicy_spec.server.errors import ConnectionLost, ServerError, Unauthorized
    from diffpolicy_spec.server.remote import RemotePlanner

__all__ = [
    "Client",
    "ConnectionLost",
    "Limits",
    "PolicyServer",
    "RemotePlanner",
    "ServerConfig",
    "ServerError",
    "Unauthorized",
]

# Imported when first asked for: the client has no use for torch, nor the server for the client.
_WHERE = {
    "Client": "client",
    "ConnectionLost": "errors",
    "Limits": "config",
    "PolicyServer": "app",
    "RemotePlanner": "remote",
    "ServerConfig": "config",
    "ServerError": "errors",
    "Unauthorized": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
