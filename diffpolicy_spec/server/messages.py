"""What a client and the server say to each other ("dps.v1"), as plain data; both ends check what comes.

The server speaks first: {"type": "policy", "info": {...}, ...}, and so again when another checkpoint is used. Then

    {"type": "infer", "id": n, "obs": {...}, "deadline_ms", "committed", "seed"}  ->  {"type": "chunk", "id": n, ...}
    {"type": "reset", "id": n}                                                    ->  {"type": "reset", "id": n}
    {"type": "ping", "id": n}                                                     ->  {"type": "pong", "id": n}

in any number at once, or {"type": "error", "id": n, "error": {"kind", "message"}}, the id null where none was read.
A connection that asks for no subprotocol is openpi's: observations in, {"actions", ...} out, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.protocols import Plan, PlanCost, PolicyInfo
from diffpolicy_spec.server.codec import CodecError, unpack

__all__ = [
    "SUBPROTOCOL", "Answer", "Chunk", "Done", "Metadata", "Refusal", "as_id", "cost_of", "infer_request", "info_of",
    "read_answer", "shapes_of",
]  # fmt: skip

SUBPROTOCOL = "dps.v1"

_TEXT_SHOWN = 2000
_WHOLE = ("n_obs_steps", "n_action_steps", "horizon", "action_dim", "first")


@dataclass(frozen=True, eq=False)
class Metadata:
    """The server's policy. raw: all that it said."""

    info: PolicyInfo
    raw: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Chunk:
    """A chunk. timing: name -> ms at the server; shared: chains in its network calls, on average."""

    plan: Plan
    timing: Mapping[str, float]
    shared: float


@dataclass(frozen=True)
class Refusal:
    """No chunk. kind: one of `errors.KINDS`, or what a newer server calls it; id: None where it could not read any."""

    id: int | None
    kind: str
    message: str


@dataclass(frozen=True)
class Done:
    """A reset or a ping is answered. type: "reset" or "pong"."""

    id: int
    type: str


Answer = Metadata | Chunk | Refusal | Done


def infer_request(
    id: int,
    obs: Mapping[str, NDArray[Any]],
    *,
    deadline_ms: float | None = None,
    committed: NDArray[np.float64] | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Ask for a chunk; deadline_ms counts from the request's arrival."""
    request: dict[str, Any] = {"type": "infer", "id": id, "obs": dict(obs)}
    given = {"deadline_ms": deadline_ms, "committed": committed, "seed": seed}
    return request | {name: value for name, value in given.items() if value is not None}


def read_answer(data: bytes | str) -> Answer:
    """What a server's message says.

    Raises:
        CodecError: it is none of the protocol; says what is wrong with it.
    """
    if isinstance(data, str):
        raise CodecError(f"the server sent text, not a message: {data[:_TEXT_SHOWN]}")
    message = unpack(data)
    if not isinstance(message, dict):
        raise CodecError(f"a message must be a map, got {type(message).__name__}")
    kind = message.get("type")
    if kind == "policy":
        return Metadata(info_of(message.get("info")), message)
    if kind == "error":
        error = message.get("error")
        if not isinstance(error, dict):
            raise CodecError("an error must be a map of kind and message")
        told = None if message.get("id") is None else as_id(message["id"])
        return Refusal(told, str(error.get("kind"))[:100], str(error.get("message"))[:_TEXT_SHOWN])
    if kind == "chunk":
        return _chunk(message)
    if kind in ("reset", "pong"):
        return Done(as_id(message.get("id")), kind)
    raise CodecError(f"unknown type of message {str(kind)[:100]!r}: another protocol, or a newer server")


def as_id(value: Any) -> int:
    """A request's id, a whole number of 0 ... 2^63 - 1.

    Raises:
        CodecError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise CodecError(f"id must be a whole number of 0 ... 2^63 - 1, got {str(value)[:60]}")
    return value


def _chunk(message: Mapping[str, Any]) -> Chunk:
    actions, cost, timing = message.get("actions"), message.get("cost", {}), message.get("server_timing", {})
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind != "f":
        raise CodecError("a chunk's actions must be an array (P, Da) of floats")
    if not isinstance(cost, dict) or not isinstance(timing, dict) or not isinstance(message.get("exact"), bool):
        raise CodecError("a chunk must have exact (a boolean), cost and server_timing (maps)")
    numbers = {k: v for k, v in {**cost, **timing}.items() if isinstance(v, bool) or not isinstance(v, int | float)}
    if numbers:
        raise CodecError(f"cost and server_timing must hold numbers: {str(sorted(map(str, numbers)))[:200]} do not")
    known = {field.name: cost[field.name] for field in fields(PlanCost) if field.name in cost}
    plan = Plan(
        as_id(message.get("id")), actions.astype(np.float64), message["exact"], PlanCost(**known),
        str(message.get("policy", ""))[:200],
    )  # fmt: skip
    return Chunk(plan, {str(k): float(v) for k, v in timing.items()}, float(cost.get("shared", math.nan)))


def info_of(value: Any) -> PolicyInfo:
    """A PolicyInfo from plain data, as `dataclasses.asdict` gives it.

    Raises:
        CodecError: it is none.
    """
    if not isinstance(value, dict):
        raise CodecError("a policy's info must be a map")
    try:
        fields: dict[str, Any] = {name: _whole(name, value[name]) for name in _WHOLE}
        fields |= {name: str(value.get(name, ""))[:500] for name in ("action_repr", "policy", "sampler")}
        return PolicyInfo(
            {str(key): _whole(key, d) for key, d in value["obs_dims"].items()},
            {str(key): _shape(key, shape) for key, shape in value["image_shapes"].items()},
            **fields,
        )
    except (KeyError, AttributeError, TypeError) as error:
        raise CodecError(f"a policy's info that cannot be read: {error!r}") from error


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise CodecError(f"a policy's info: {str(name)[:60]} must be a whole number, got {str(value)[:60]}")
    return value


def _shape(name: str, value: Any) -> tuple[int, int, int]:
    if not isinstance(value, list) or len(value) != 3:
        raise CodecError(f"a policy's info: {str(name)[:60]} must be [C, H, W], got {str(value)[:60]}")
    channels, height, width = (_whole(name, n) for n in value)
    return channels, height, width


def shapes_of(info: PolicyInfo) -> dict[str, Any]:
    """What a loop that runs cannot do with another value of."""
    return {name: value for name, value in asdict(info).items() if name not in ("policy", "sampler")}


def cost_of(cost: PlanCost, shared: float) -> dict[str, float]:
    """A chunk's cost as plain data."""
    return {**asdict(cost), "shared": shared}
