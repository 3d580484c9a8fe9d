"""From ROS messages, as dicts, to numbers: pure functions that trust nothing in a message.

Numbers that are not finite arrive as null over rosbridge (JSON has none) and become NaN here.
"""

from __future__ import annotations

import array
import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.ros.contract_inputs import Field, Input
from diffpolicy_spec.ros.images import BadMessage, compressed_image, raw_image

__all__ = ["BadMessage", "JointsMissing", "base64_of", "bytes_of", "duration", "field_names", "header", "joint_numbers",
           "numbers", "read_message", "stamp", "stamp_of"]  # fmt: skip

MAX_NUMBERS = 100_000

Message = Mapping[str, Any]
Array = NDArray[np.float64]


class JointsMissing(BadMessage):
    """A JointState without joints that the contract names."""


def stamp_of(message: Message) -> float | None:
    """s, the time in a message's header; None where it has none, or zero (which in ROS says "not set").

    Raises:
        BadMessage: a header that is none.
    """
    header_ = message.get("header")
    if header_ is None:
        return None
    time = _mapping(_mapping(header_, "header").get("stamp"), "header.stamp")
    seconds = _integer(time.get("sec", time.get("secs")), "header.stamp, seconds")
    nanoseconds = _integer(time.get("nanosec", time.get("nsecs", 0)), "header.stamp, nanoseconds")
    total = seconds + 1e-9 * nanoseconds
    return total if total != 0 else None


def stamp(time: float, ros: int) -> dict[str, int]:
    """A time as ROS 1 or 2 writes it; of any sign, as a duration."""
    whole = math.floor(time)
    nano = round(1e9 * (time - whole))
    whole, nano = (whole + 1, 0) if nano >= 1_000_000_000 else (whole, nano)
    return {"secs": whole, "nsecs": nano} if ros == 1 else {"sec": whole, "nanosec": nano}


duration = stamp


def header(time: float, ros: int, frame_id: str = "") -> dict[str, Any]:
    """A std_msgs/Header."""
    return {"stamp": stamp(time, ros), "frame_id": frame_id}


def numbers(value: object, what: str) -> Array:
    """(n,) numbers of a list, null as NaN; arrays of other kinds, as rclpy has them, too.

    Raises:
        BadMessage: no list, or something in it that is no number.
    """
    if not isinstance(value, list | tuple | np.ndarray | array.array):
        raise BadMessage(f"{what} must be a list of numbers, got {_shown(value)}")
    if len(value) > MAX_NUMBERS:
        raise BadMessage(f"{what} has {len(value)} numbers; more than {MAX_NUMBERS} are not read")
    if isinstance(value, list) and not {type(v) for v in value} <= {int, float, type(None)}:
        other = next(v for v in value if type(v) not in (int, float, type(None)))
        raise BadMessage(f"{what} must be a list of numbers, and has {_shown(other)}")
    try:
        found = np.array(value, dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError, OverflowError) as error:
        raise BadMessage(f"{what} must be a list of numbers: {error}") from None
    if found.ndim != 1:
        raise BadMessage(f"{what} must be a plain list of numbers, got one of shape {found.shape}")
    return found


def joint_numbers(message: Message, field: str, joints: Sequence[str]) -> Array:
    """(n,) of a sensor_msgs/JointState, found by name: the order and number of joints in the message do not matter.

    Args:
        field: position, velocity or effort. joints: (n,) names.

    Raises:
        JointsMissing: joints that are not in it; the message names them, and those that are there.
        BadMessage: anything else that is wrong.
    """
    names = message.get("name")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise BadMessage(f"JointState.name must be a list of names, got {_shown(names)}")
    if len(names) > MAX_NUMBERS or len(set(names)) != len(names):
        raise BadMessage("JointState.name has a joint twice, or is of no robot's length")
    values = numbers(message.get(field), f"JointState.{field}")
    places = {name: i for i, name in enumerate(names)}
    missing = [name for name in joints if name not in places]
    if missing:
        there = ", ".join(sorted(names)[:20]) or "none"
        raise JointsMissing(f"joints {', '.join(missing)} are missing; there are: {there[:500]}")
    if len(values) != len(names):
        told = "has none" if not len(values) else f"has {len(values)}"
        raise BadMessage(f"JointState.{field} {told} for {len(names)} names")
    return values[[places[name] for name in joints]]


def bytes_of(value: object, what: str, max_bytes: int) -> bytes:
    """The bytes of a `uint8[]`: base64 text as over rosbridge, a list of numbers, or bytes as from rclpy.

    Raises:
        BadMessage: anything else, or more than max_bytes.
    """
    try:
        if isinstance(value, str):
            if len(value) > 4 * (max_bytes // 3 + 1):
                raise BadMessage(f"{what} has {len(value)} characters of base64; {max_bytes} bytes at most are read")
            data = base64.b64decode(value, validate=True)
        elif isinstance(value, list):
            data = bytes(value[: max_bytes + 1])
        else:
            view = memoryview(value)  # type: ignore[arg-type]
            if view.nbytes > max_bytes:
                raise BadMessage(f"{what} has {view.nbytes} bytes; {max_bytes} at most are read")
            data = view.tobytes()
    except (binascii.Error, TypeError, ValueError) as error:
        if isinstance(error, BadMessage):
            raise
        raise BadMessage(f"{what} is no base64 and no list of bytes: {str(error)[:100]}") from None
    if len(data) > max_bytes:
        raise BadMessage(f"{what} has more than {max_bytes} bytes")
    return data


def base64_of(data: bytes) -> str:
    """A `uint8[]` for rosbridge."""
    return base64.b64encode(data).decode("ascii")


def read_message(message: object, topic: Input, max_pixels: int = 1 << 24) -> list[NDArray[Any]]:
    """What a contract wants of a message.

    Args:
        message: as a dict. topic: its entry in the contract. max_pixels: of an image.

    Returns:
        For each of the topic's fields (d,) float64, or (C, H, W) uint8 (float32 of 16 bits) in [0, 255] ([0, 1]).

    Raises:
        BadMessage: whatever is wrong with the message; JointsMissing names joints.
    """
    fields = _mapping(message, topic.type)
    if topic.type == "sensor_msgs/JointState":
        return [_scaled(joint_numbers(fields, part.field, part.joints), part) for part in topic.fields]
    if topic.type == "geometry_msgs/PoseStamped":
        pose = _mapping(fields.get("pose"), "PoseStamped.pose")
        return [_pose_part(pose, part) for part in topic.fields]
    if topic.type == "std_msgs/Float64MultiArray":
        return [_scaled(_array_part(fields, part), part) for part in topic.fields]
    if topic.type == "sensor_msgs/CompressedImage":
        data = bytes_of(fields.get("data"), "CompressedImage.data", 4 * max_pixels)
        return [
            compressed_image(data, str(fields.get("format", ""))[:100], part.size, max_pixels) for part in topic.fields
        ]
    data = bytes_of(fields.get("data"), "Image.data", 16 * max_pixels)
    return [raw_image(fields, data, part.size, max_pixels) for part in topic.fields]


def field_names(part: Field, count: int) -> list[str]:
    """What the numbers of a field are called, for messages."""
    if part.joints:
        return list(part.joints)
    letters = {"position": "xyz", "orientation": "xyzw"}.get(part.field, "")
    begin = part.start or 0
    return [f"{part.key}.{letters[i]}" if i < len(letters) else f"{part.key}[{begin + i}]" for i in range(count)]


def _pose_part(pose: Message, part: Field) -> Array:
    axes = "xyzw" if part.field == "orientation" else "xyz"
    values = _mapping(pose.get(part.field), f"PoseStamped.pose.{part.field}")
    found = numbers([values.get(axis, "nothing") for axis in axes], f"PoseStamped.pose.{part.field} ({axes})")
    if part.field == "position":
        return _scaled(found, part)
    norm = float(np.linalg.norm(found))
    if abs(norm - 1) > 0.01:  # all zero where nobody filled it in; NaN goes on to who counts it
        raise BadMessage(f"PoseStamped.pose.orientation is no unit quaternion, its length is {norm:g}")
    found = found / norm
    return -found if part.sign == "w_positive" and found[3] < 0 else found


def _array_part(fields: Message, part: Field) -> Array:
    layout = fields.get("layout")
    offset = _integer(_mapping(layout, "layout").get("data_offset", 0), "layout.data_offset") if layout else 0
    values = numbers(fields.get("data"), "Float64MultiArray.data")
    if not 0 <= offset <= len(values):
        raise BadMessage(f"Float64MultiArray has data_offset {offset}, and {len(values)} numbers")
    values = values[offset:]
    stop = len(values) if part.stop is None else part.stop
    if len(values) < stop:
        raise BadMessage(f"Float64MultiArray has {len(values)} numbers, key {part.key!r} needs {stop}")
    return values[part.start or 0 : stop]


def _scaled(values: Array, part: Field) -> Array:
    try:
        return np.asarray(part.scale) * values + np.asarray(part.offset)
    except ValueError:
        raise BadMessage(f"key {part.key!r}: scale or offset are not for {len(values)} numbers") from None


def _mapping(value: object, what: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadMessage(f"{what} must have fields, got {_shown(value)}")
    return value


def _integer(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 1 << 40:
        raise BadMessage(f"{what} must be a whole number, got {_shown(value)}")
    return value


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    return (
        f"{type(value).__name__} {str(value)[:40]!r}" if isinstance(value, str | int | float) else type(value).__name__
    )
