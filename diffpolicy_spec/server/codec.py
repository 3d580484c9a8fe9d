"""msgpack with arrays as openpi-client packs them, read strictly: what comes from the network is hostile until checked.

An array is the map {b"__ndarray__": True, b"data": bytes in C order, b"dtype": numpy's name, b"shape": [n, ...]}, a
numpy scalar {b"__npgeneric__": True, b"data": number, b"dtype": name} (openpi_client.msgpack_numpy). Only booleans,
integers and floats of at most 8 bytes are read, and no objects of any other kind: nothing here can run code.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.optional import require

__all__ = ["MOST_DEPTH", "MOST_DIMENSIONS", "MOST_ENTRIES", "MOST_ITEMS", "CodecError", "pack", "unpack"]

msgpack = require("msgpack", extra="client", needed_by="diffpolicy_spec.server")

MOST_DEPTH = 8
"""Containers within containers."""
MOST_ITEMS = 1024
"""Entries of one list or map."""
MOST_ENTRIES = 16384
"""Values of a message, containers included; arrays count as one. A policy's observations are some dozens."""
MOST_DIMENSIONS = 6
"""Of an array."""
_MOST_TEXT = 65536  # bytes of one string

_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_ARRAY_KEYS = frozenset({_ARRAY, b"data", b"dtype", b"shape"})
_SCALAR_KEYS = frozenset({_SCALAR, b"data", b"dtype"})
_LEAVES = (type(None), bool, int, float, str, bytes, np.ndarray, np.generic)
_DTYPE = re.compile(r"[<>=|]?(b1|i1|i2|i4|i8|u1|u2|u4|u8|f2|f4|f8)")


class CodecError(ValueError):
    """Bytes that are no message, or one that this codec does not take."""


def pack(value: Any) -> bytes:
    """Plain data and numpy arrays as bytes.

    Raises:
        CodecError: a value that has no place in a message, an array of objects among them.
    """
    try:
        return msgpack.packb(value, default=_packed)
    except (TypeError, ValueError, OverflowError) as error:
        raise CodecError(f"cannot be packed: {error}") from error


def unpack(data: bytes) -> Any:
    """The message that bytes hold: None, bool, int, float, str, bytes, lists, maps, numpy arrays and scalars.

    Arrays are views of the message where they can be, and read-only.

    Raises:
        CodecError: anything else, and what is larger than the limits above.
    """
    count = _Count()
    try:
        value = msgpack.unpackb(
            data, object_hook=count.map, list_hook=count.list, strict_map_key=True, ext_hook=_no_extension,
            max_str_len=_MOST_TEXT, max_bin_len=len(data), max_array_len=MOST_ITEMS, max_map_len=MOST_ITEMS,
            max_ext_len=0,
        )  # fmt: skip
    except CodecError:
        raise
    except Exception as error:  # msgpack has many of its own, and of Python's
        raise CodecError(f"not a msgpack message: {type(error).__name__}: {str(error)[:200]}") from error
    _check_depth(value)
    return value


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "biuf":
        raise TypeError(f"an array of {value.dtype}")
    if isinstance(value, np.ndarray):
        return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__}")


class _Count:
    """Counts values while a message is read: a small message can hold very many of one byte each."""

    def __init__(self) -> None:
        self._count = 0

    def _more(self, count: int) -> None:
        self._count += 1 + count
        if self._count > MOST_ENTRIES:
            raise CodecError(f"more than {MOST_ENTRIES} values")

    def list(self, value: list[Any]) -> list[Any]:
        self._more(len(value))
        return value

    def map(self, value: dict[Any, Any]) -> Any:
        self._more(len(value))
        if _ARRAY in value:
            return _array(value)
        return _scalar(value) if _SCALAR in value else value


def _dtype(name: Any) -> np.dtype[Any]:
    if isinstance(name, bytes):
        name = name.decode("ascii", "replace")
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise CodecError(f"arrays must be of b1, i1 ... i8, u1 ... u8, f2, f4 or f8, got {str(name)[:40]!r}")
    return np.dtype(name)


def _array(value: dict[Any, Any]) -> NDArray[Any]:
    if value.keys() != _ARRAY_KEYS:
        raise CodecError("an array must have __ndarray__, data, dtype and shape, and nothing else")
    dtype, data, shape = _dtype(value[b"dtype"]), value[b"data"], value[b"shape"]
    if not isinstance(data, bytes):
        raise CodecError(f"an array's data must be bytes, got {type(data).__name__}")
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
        raise CodecError(f"an array's shape must be a list of at most {MOST_DIMENSIONS} lengths")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**31 for n in shape):
        raise CodecError("an array's shape must be whole numbers of 0 or more")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise CodecError(f"an array of {shape} {dtype} has {math.prod(shape) * dtype.itemsize} bytes, got {len(data)}")
    array: NDArray[Any] = np.ndarray(shape, dtype, buffer=data)
    if dtype.kind == "b":
        return array.view(np.uint8) != 0  # a boolean of neither 0 nor 1 means nothing
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _scalar(value: dict[Any, Any]) -> np.generic:
    if value.keys() != _SCALAR_KEYS or type(value[b"data"]) not in (bool, int, float):
        raise CodecError("a numpy scalar must have __npgeneric__, data (a number) and dtype, and nothing else")
    dtype, number = _dtype(value[b"dtype"]).newbyteorder("="), value[b"data"]
    if dtype.kind in "iu" and not (type(number) is int and np.iinfo(dtype).min <= number <= np.iinfo(dtype).max):
        raise CodecError(f"no {dtype}: {str(number)[:40]}")
    try:
        return dtype.type(number)
    except OverflowError as error:  # a whole number that no float comes near
        raise CodecError(f"no {dtype}: {error}") from error


def _no_extension(code: int, data: bytes) -> Any:
    raise CodecError(f"msgpack's extension types are not used here (type {code})")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner.extend(one.values())
            elif isinstance(one, list):
                inner.extend(one)
            elif not isinstance(one, _LEAVES):
                raise CodecError(f"a {type(one).__name__} has no place in a message")
        if not inner:
            return
        level = inner
    raise CodecError(f"containers nested more than {MOST_DEPTH} deep")
