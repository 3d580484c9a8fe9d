"""Events of a control loop as lines of JSON, and back.

A line is an object: `event` names its type, the other members are the event's attributes (events.py), except those that
are not there (NaN, None, empty), which are left out. A file's first line, and each run's, is

    {"event": "log", "version": 1, "wall": 1767225600.0, "monotonic": 81234.5}

`wall` is the Unix time, s, at `monotonic`: all other times are of `time.monotonic`. Lines {"event": "lost", "count": n,
"reason": ...} stand where n events could not be kept. Readers ignore members and events they do not know.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffpolicy_spec.control.events import ChunkArrived, Fault, Intervention, LoopStarted, LoopStopped, Tick
from diffpolicy_spec.control.protocols import PlanCost, PolicyInfo

__all__ = ["VERSION", "Lost", "RecordError", "line_of", "read_records"]

VERSION = 1

EVENTS: dict[str, type[Any]] = {
    "start": LoopStarted,
    "tick": Tick,
    "chunk": ChunkArrived,
    "intervention": Intervention,
    "fault": Fault,
    "stop": LoopStopped,
}
_NAMES = {kind: name for name, kind in EVENTS.items()}
_NESTED: dict[str, type[Any]] = {"cost": PlanCost, "info": PolicyInfo}
_ARRAYS = ("action", "actions")
_OPTIONAL = ("info", "action", "deadline_ms", "axis", "lasted_s")


class RecordError(ValueError):
    """A file that is no record of a control loop, or of a version that is not known."""


@dataclasses.dataclass(frozen=True)
class Lost:
    """Events that a log could not keep, and why."""

    count: int
    reason: str


def line_of(event: Any) -> str:
    """An event as a line, without its end."""
    return json.dumps({"event": _NAMES[type(event)], **_members(event)}, separators=(",", ":"), allow_nan=False)


def _members(event: Any) -> dict[str, Any]:
    members = {}
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        if isinstance(value, np.ndarray):
            # A command is finite; a chunk may have been refused because it is not.
            members[field.name] = _numbers(value.tolist())
        elif dataclasses.is_dataclass(value):
            members[field.name] = _members(value)
        elif not (value is None or (isinstance(value, float) and not math.isfinite(value))):
            members[field.name] = value.item() if isinstance(value, np.generic) else value
    return members


def _numbers(values: Any) -> Any:
    if isinstance(values, list):
        return [_numbers(value) for value in values]
    return values if math.isfinite(values) else None


def read_records(path: str | Path, *, lost: list[Lost] | None = None) -> Iterator[Any]:
    """The events of a file, one after another; any length.

    Args:
        path: of one file; older ones that were rotated away are files of their own.
        lost: takes what the file says is missing, and lines that are broken (a process that was killed while writing).

    Raises:
        FileNotFoundError: no such file.
        RecordError: its first line is not that of a record, or of a version that is not known.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                members = json.loads(line)
                event = members["event"]
            except (ValueError, KeyError, TypeError):
                if number == 1:
                    raise RecordError(f"{path}: its first line is not one of a control loop's record") from None
                if lost is not None:
                    lost.append(Lost(1, f"line {number} is broken"))
                continue
            if number == 1 and event != "log":
                raise RecordError(f"{path}: begins with {event!r}, not with the line that tells its version")
            if event == "log" and members.get("version") != VERSION:
                raise RecordError(
                    f"{path}, line {number}: version {members.get('version')} is not known, only {VERSION}: "
                    "read it with the release that wrote it"
                )
            if event == "lost" and lost is not None:
                lost.append(Lost(int(members.get("count", 0)), str(members.get("reason", ""))))
            if event in EVENTS:
                try:
                    made = _made(EVENTS[event], members)
                except (ValueError, TypeError) as error:
                    if lost is not None:
                        lost.append(Lost(1, f"line {number}: {error}"))
                    continue
                yield made


def _made(kind: type[Any], members: dict[str, Any]) -> Any:
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        value = members.get(field.name)
        if field.name in _ARRAYS and value is not None:
            arguments[field.name] = np.array(value, dtype=np.float64)
        elif field.name in _NESTED and value is not None:
            arguments[field.name] = _made(_NESTED[field.name], value)
        elif value is not None:
            arguments[field.name] = value
        elif field.name in _OPTIONAL:
            arguments[field.name] = None
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            if field.type != "float":
                raise ValueError(f"{kind.__name__} without {field.name}")
            arguments[field.name] = math.nan
    return kind(**arguments)
