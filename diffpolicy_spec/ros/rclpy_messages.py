"""ROS 2's message objects to dicts and back, by what the generated classes say of their fields. Imports no ROS.

rosidl_runtime_py has both ways, too; it makes a list of every byte of an image, text of an octet, and changes the lists
it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["as_dict", "fill"]

_FLOATS = ("float", "double")


def as_dict(message: Any) -> dict[str, Any]:
    """A message's fields; arrays of numbers and bytes stay what rclpy has them as (`array.array`, numpy)."""
    return {name: _plain(getattr(message, name), kind) for name, kind in message.get_fields_and_field_types().items()}


def _plain(value: Any, kind: str) -> Any:
    if hasattr(value, "get_fields_and_field_types"):
        return as_dict(value)
    if kind == "octet":
        return value[0]
    if isinstance(value, list | tuple) and value and hasattr(value[0], "get_fields_and_field_types"):
        return [as_dict(item) for item in value]
    return value


def fill(message: Any, fields: Mapping[str, Any], find: Callable[[str], type]) -> Any:
    """Set a message's fields; those that are not given keep their defaults.

    Args:
        message: of a generated class. fields: as `as_dict` gives them; lists stay as they are.
        find: the class of a type's name, as "trajectory_msgs/msg/JointTrajectoryPoint".

    Returns:
        The message.

    Raises:
        ValueError: a field that the type has not, or a value that it does not take.
    """
    kinds = message.get_fields_and_field_types()
    for name, value in fields.items():
        if name not in kinds:
            raise ValueError(f"{type(message).__name__} has no field {name!r}; it has {', '.join(kinds)}")
        try:
            setattr(message, name, _made(getattr(message, name), value, kinds[name], find))
        except (AssertionError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(message).__name__}.{name} ({kinds[name]}): {error}") from error
    return message


def _made(now: Any, value: Any, kind: str, find: Callable[[str], type]) -> Any:
    if hasattr(now, "get_fields_and_field_types"):
        return fill(now, value, find)
    if kind == "octet":
        return bytes([value])
    if kind in _FLOATS:
        return float(value)
    item = _item(kind)
    if item in _FLOATS:
        return [float(number) for number in value]
    if "/" in item:
        package, name = item.split("/")
        made = find(f"{package}/msg/{name}")
        return [fill(made(), fields, find) for fields in value]
    return value


def _item(kind: str) -> str:
    """The type of a list's items: "sequence<double>", "sequence<double, 10>", "double[9]"; "" of what is no list."""
    if kind.startswith("sequence<"):
        return kind.removeprefix("sequence<").removesuffix(">").split(",")[0]
    return kind.split("[")[0] if kind.endswith("]") else ""
