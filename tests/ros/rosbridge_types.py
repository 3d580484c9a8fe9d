"""Messages as a ROS graph knows them: every field there, of its type; what rosbridge makes of JSON and writes as JSON.

The definitions are those of ROS 1 (wiki.ros.org/common_msgs); ROS 2 has no `seq` in a header, and its times are named
sec and nanosec.
"""

from __future__ import annotations

import base64
import math
import re
import time
from typing import Any

__all__ = ["MESSAGES", "SERVICES", "TypeMismatch", "as_json", "canonical", "conform", "default", "stamp"]

_DEFINITIONS = {
    "std_msgs/Header": "uint32 seq, time stamp, string frame_id",
    "std_msgs/String": "string data",
    "std_msgs/Bool": "bool data",
    "std_msgs/Int32": "int32 data",
    "std_msgs/Float32": "float32 data",
    "std_msgs/Float64": "float64 data",
    "std_msgs/Empty": "",
    "std_msgs/MultiArrayDimension": "string label, uint32 size, uint32 stride",
    "std_msgs/MultiArrayLayout": "std_msgs/MultiArrayDimension[] dim, uint32 data_offset",
    "std_msgs/Float32MultiArray": "std_msgs/MultiArrayLayout layout, float32[] data",
    "std_msgs/Float64MultiArray": "std_msgs/MultiArrayLayout layout, float64[] data",
    "std_msgs/UInt8MultiArray": "std_msgs/MultiArrayLayout layout, uint8[] data",
    "sensor_msgs/JointState": "std_msgs/Header header, string[] name, float64[] position, float64[] velocity, "
    "float64[] effort",
    "sensor_msgs/CompressedImage": "std_msgs/Header header, string format, uint8[] data",
    "sensor_msgs/Image": "std_msgs/Header header, uint32 height, uint32 width, string encoding, uint8 is_bigendian, "
    "uint32 step, uint8[] data",
    "geometry_msgs/Point": "float64 x, float64 y, float64 z",
    "geometry_msgs/Vector3": "float64 x, float64 y, float64 z",
    "geometry_msgs/Quaternion": "float64 x, float64 y, float64 z, float64 w",
    "geometry_msgs/Pose": "geometry_msgs/Point position, geometry_msgs/Quaternion orientation",
    "geometry_msgs/PoseStamped": "std_msgs/Header header, geometry_msgs/Pose pose",
    "geometry_msgs/Twist": "geometry_msgs/Vector3 linear, geometry_msgs/Vector3 angular",
    "geometry_msgs/TwistStamped": "std_msgs/Header header, geometry_msgs/Twist twist",
    "geometry_msgs/Wrench": "geometry_msgs/Vector3 force, geometry_msgs/Vector3 torque",
    "geometry_msgs/WrenchStamped": "std_msgs/Header header, geometry_msgs/Wrench wrench",
    "trajectory_msgs/JointTrajectoryPoint": "float64[] positions, float64[] velocities, float64[] accelerations, "
    "float64[] effort, duration time_from_start",
    "trajectory_msgs/JointTrajectory": "std_msgs/Header header, string[] joint_names, "
    "trajectory_msgs/JointTrajectoryPoint[] points",
    "diagnostic_msgs/KeyValue": "string key, string value",
    "diagnostic_msgs/DiagnosticStatus": "byte level, string name, string message, string hardware_id, "
    "diagnostic_msgs/KeyValue[] values",
    "diagnostic_msgs/DiagnosticArray": "std_msgs/Header header, diagnostic_msgs/DiagnosticStatus[] status",
    "rosgraph_msgs/Clock": "time clock",
}


def _fields(text: str) -> dict[str, str]:
    pairs = (part.split() for part in text.split(",") if part.strip())
    return {name: kind for kind, name in pairs}


MESSAGES = {name: _fields(text) for name, text in _DEFINITIONS.items()}
"""Type -> field -> its type."""

SERVICES = {
    "std_srvs/Empty": ({}, {}),
    "std_srvs/Trigger": ({}, _fields("bool success, string message")),
    "std_srvs/SetBool": (_fields("bool data"), _fields("bool success, string message")),
    "rosapi/GetTime": ({}, _fields("time time")),
    "rosapi/TopicType": (_fields("string topic"), _fields("string type")),
    "rosapi/Topics": ({}, _fields("string[] topics, string[] types")),
}
"""Type -> fields of the request, fields of the response."""

_INTEGERS = {
    **{f"int{n}": (-(2 ** (n - 1)), 2 ** (n - 1) - 1) for n in (8, 16, 32, 64)},
    **{f"uint{n}": (0, 2**n - 1) for n in (8, 16, 32, 64)},
    "byte": (-128, 255),  # ROS 1 calls int8 so, ROS 2 an octet
    "char": (0, 255),
}
_TIMES = ("time", "duration")
_LIST = re.compile(r"^(?P<item>[^\[]+)\[\d*\]$")


class TypeMismatch(ValueError):
    """A message is not of its topic's type."""


def canonical(name: str, ros: int = 1) -> str:
    """A type's name as "package/Type"; ROS 2 also says "package/msg/Type".

    Raises:
        TypeMismatch: no such name in this ROS.
    """
    parts = [part for part in name.split("/") if part]
    if len(parts) == 2 or (ros == 2 and len(parts) == 3 and parts[1] in ("msg", "srv")):
        return f"{parts[0]}/{parts[-1]}"
    raise TypeMismatch(f"The type string {name} is not of the form package/Type")


def stamp(seconds: float, ros: int = 1) -> dict[str, int]:
    """A time as messages have it."""
    whole = math.floor(seconds)
    names = ("secs", "nsecs") if ros == 1 else ("sec", "nanosec")
    return dict(zip(names, (whole, int((seconds - whole) * 1e9)), strict=True))


def _of(kind: str, ros: int) -> dict[str, str]:
    if kind not in MESSAGES:
        raise TypeMismatch(f"Unable to import {kind}: the test server does not know it")
    fields = MESSAGES[kind]
    return {name: of for name, of in fields.items() if not (ros == 2 and kind == "std_msgs/Header" and name == "seq")}


def default(kind: str, ros: int = 1) -> Any:
    """What a field nobody filled in holds."""
    if found := _LIST.match(kind):
        return b"" if found["item"] in ("uint8", "char") else []
    if kind in _TIMES:
        return stamp(0, ros)
    if kind == "string":
        return ""
    if kind == "bool":
        return False
    if kind in _INTEGERS:
        return 0
    if kind in ("float32", "float64"):
        return 0.0
    return {name: default(of, ros) for name, of in _of(kind, ros).items()}


def conform(value: Any, kind: str, ros: int = 1, *, root: str = "", path: tuple[str, ...] = ()) -> Any:
    """A JSON value as the type has it: defaults filled in; a header without a time gets the present one.

    Where there is no header at all its time is zero: so rosbridge does, though its protocol says otherwise.

    Raises:
        TypeMismatch: a field that the type has not, or a value of another type; null is none of a number's values.
    """
    root = root or kind
    if found := _LIST.match(kind):
        return _conform_list(value, found["item"], ros, root, path)
    if kind in _TIMES:
        return _conform_time(value, kind, ros, root, path)
    if kind in ("bool", "string"):
        _demand(isinstance(value, bool if kind == "bool" else str), value, kind, root, path)
        return value
    if kind in _INTEGERS:
        _demand(isinstance(value, int) and not isinstance(value, bool), value, kind, root, path)
        low, high = _INTEGERS[kind]
        if not low <= value <= high:
            raise TypeMismatch(f"{root}: field {'.'.join(path)} must be {low} to {high}, not {value}")
        return value
    if kind in ("float32", "float64"):
        _demand(isinstance(value, int | float) and not isinstance(value, bool), value, kind, root, path)
        return float(value)
    return conform_fields(value, _of(kind, ros), ros, root=root, path=path, header=kind == "std_msgs/Header")


def conform_fields(
    value: Any, fields: dict[str, str], ros: int, *, root: str, path: tuple[str, ...] = (), header: bool = False
) -> dict[str, Any]:
    """As `conform`, of fields by their names."""
    _demand(isinstance(value, dict), value, "JSON object", root, path)
    filled = {name: default(of, ros) for name, of in fields.items()}
    if header:
        filled["stamp"] = stamp(time.time(), ros)
    for name, item in value.items():
        if name not in fields:
            raise TypeMismatch(f"Message type {root} does not have a field {'.'.join((*path, name))}")
        filled[name] = conform(item, fields[name], ros, root=root, path=(*path, name))
    return filled


def _conform_list(value: Any, item: str, ros: int, root: str, path: tuple[str, ...]) -> Any:
    if item in ("uint8", "char"):
        if isinstance(value, bytes):
            return value
        try:
            return base64.standard_b64decode(value) if isinstance(value, str) else bytes(value)
        except (ValueError, TypeError) as error:
            raise TypeMismatch(f"{root}: field {'.'.join(path)} is not base64 of bytes ({error})") from None
    _demand(isinstance(value, list | tuple), value, f"{item}[]", root, path)
    return [conform(one, item, ros, root=root, path=path) for one in value]


def _conform_time(value: Any, kind: str, ros: int, root: str, path: tuple[str, ...]) -> dict[str, int]:
    if kind == "time" and value == "now":
        return stamp(time.time(), ros)
    _demand(isinstance(value, dict), value, kind, root, path)
    made = stamp(0, ros)
    # ROS 2's rosbridge takes the names of ROS 1, too; the other way they are passed over in silence.
    others = {"secs": "sec", "nsecs": "nanosec"} if ros == 2 else {}
    for name, part in value.items():
        name = others.get(name, name)
        if name in made:
            _demand(isinstance(part, int) and not isinstance(part, bool), part, "int", root, (*path, name))
            made[name] = part
    return made


def _demand(right: bool, value: Any, kind: str, root: str, path: tuple[str, ...]) -> None:
    if not right:
        raise TypeMismatch(
            f"{root} message requires a {kind} for field {'.'.join(path)}, but got a {type(value).__name__}"
        )


def as_json(value: Any) -> Any:
    """A message as rosbridge writes it: bytes in base64, null for NaN and infinity, which JSON has not."""
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    if isinstance(value, bytes):
        return base64.standard_b64encode(value).decode("ascii")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
