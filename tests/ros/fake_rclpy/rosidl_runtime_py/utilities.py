"""Classes of messages and services by name, as rosidl generates them: their setters take what those take, no more."""

from __future__ import annotations

import array
from functools import cache
from typing import Any

from rosbridge_types import MESSAGES, SERVICES

_NAMES = {
    "bool": "boolean", "byte": "octet", "float64": "double", "float32": "float",
    "time": "builtin_interfaces/Time", "duration": "builtin_interfaces/Duration",
}  # fmt: skip
_CODES = {"double": "d", "float": "f", "int8": "b", "uint8": "B", "int32": "i", "uint32": "I"}
_PYTHON = {"boolean": bool, "string": str, "double": float, "float": float}
_TIMES = {"sec": "int32", "nanosec": "uint32"}


def get_message(identifier: str) -> type:
    """The class of a message, as "sensor_msgs/msg/JointState"."""
    package, middle, name = identifier.split("/")
    assert middle == "msg", identifier
    return _message(f"{package}/{name}")


def get_service(identifier: str) -> type:
    """The class of a service, with Request and Response."""
    package, middle, name = identifier.split("/")
    assert middle == "srv", identifier
    request, response = SERVICES[f"{package}/{name}"]
    parts = {"Request": _class(f"{name}_Request", request), "Response": _class(f"{name}_Response", response)}
    return type(name, (), parts)


@cache
def _message(name: str) -> type:
    if name in ("builtin_interfaces/Time", "builtin_interfaces/Duration"):
        return _class(name.split("/")[1], _TIMES)
    fields = {field: kind for field, kind in MESSAGES[name].items() if (name, field) != ("std_msgs/Header", "seq")}
    return _class(name.split("/")[1], fields)


def _class(name: str, fields: dict[str, str]) -> type:
    kinds = {field: _kind(kind) for field, kind in fields.items()}

    def __init__(self: Any, **given: Any) -> None:
        for field, kind in kinds.items():
            setattr(self, field, given.get(field, _default(kind)))

    body: dict[str, Any] = {
        "__init__": __init__,
        "__slots__": [f"_{field}" for field in kinds],
        "get_fields_and_field_types": classmethod(lambda cls: dict(kinds)),
    }
    for field, kind in kinds.items():
        body[field] = property(_getter(field), _setter(field, kind))
    return type(name, (), body)


def _kind(kind: str) -> str:
    if kind.endswith("[]"):
        return f"sequence<{_kind(kind[:-2])}>"
    return _NAMES.get(kind, kind)


def _default(kind: str) -> Any:
    if kind.startswith("sequence<"):
        return []
    if kind == "octet":
        return bytes([0])
    return _message(kind)() if "/" in kind else _PYTHON.get(kind, int)()


def _getter(field: str) -> Any:
    return lambda self: getattr(self, f"_{field}")


def _setter(field: str, kind: str) -> Any:
    def put(self: Any, value: Any) -> None:
        if kind.startswith("sequence<"):
            item = kind[len("sequence<") : -1]
            code = _CODES.get(item)
            if isinstance(value, array.array):
                assert value.typecode == code, f"The '{field}' array.array() must have the type code of '{code}'"
            else:
                fits = not isinstance(value, str) and all(_fits(one, item) for one in value)
                assert fits, f"The '{field}' field must be a set or sequence and each value of type '{item}'"
                value = list(value) if code is None else array.array(code, value)
        else:
            assert _fits(value, kind), f"The '{field}' field must be of type '{kind}'"
        setattr(self, f"_{field}", value)

    return put


def _fits(value: Any, kind: str) -> bool:
    if "/" in kind:
        return isinstance(value, _message(kind))
    if kind == "octet":
        return isinstance(value, bytes | bytearray) and len(value) == 1
    if kind in _PYTHON:
        return isinstance(value, _PYTHON[kind])
    bits = int(kind.removeprefix("u").removeprefix("int"))
    low, high = (0, 2**bits) if kind.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    return isinstance(value, int) and low <= value < high
