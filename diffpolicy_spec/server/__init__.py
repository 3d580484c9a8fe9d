"""The policy server, and its client, which needs neither torch nor a policy.

codec, messages   what goes over the wire: msgpack with openpi's arrays
client            Client: ask a server for chunks, one after another
remote            RemotePlanner: a server as a control loop's planner
config            ServerConfig, Limits
app               PolicyServer; `dps-serve` is cli
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffpolicy_spec.optional import on_demand

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
__getattr__, __dir__ = on_demand(__name__, _WHERE)
