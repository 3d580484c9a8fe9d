"""Messages: what openpi's client packs is read, and nothing else is."""

from __future__ import annotations

import pickle
import time

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openpi_client import msgpack_numpy

from diffpolicy_spec.server.codec import MOST_ENTRIES, CodecError, pack, unpack

MESSAGE = {
    "state": np.linspace(0, 1, 6).reshape(2, 3),
    "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 3), np.float32),
    "number": np.array(3.0),
    "scalar": np.float32(0.5),
    "text": "lift it",
    "nested": {"list": [1, 2.5, None, b"raw"]},
}


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b)


def test_bytes_are_those_of_openpis_client():
    assert pack(MESSAGE) == msgpack_numpy.packb(MESSAGE)
    assert same(unpack(msgpack_numpy.packb(MESSAGE)), MESSAGE)
    assert same(msgpack_numpy.unpackb(pack(MESSAGE)), MESSAGE)


def test_arrays_of_another_byte_order_are_turned():
    big = np.arange(6, dtype=">f8").reshape(2, 3)
    read = unpack(msgpack_numpy.packb(big))
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, big)


def array(**changes):
    return {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f8", b"shape": [1]} | changes


HOSTILE = {
    "an object array": array(**{"dtype": None}) | {b"dtype": "|O"},
    "a structure": array() | {b"dtype": "<f8,<i4"},
    "void": array() | {b"dtype": "V8"},
    "complex": array() | {b"dtype": "<c8"},
    "text": array() | {b"dtype": "<U2"},
    "a date": array() | {b"dtype": "<M8[s]"},
    "16 byte floats": array() | {b"dtype": "<f16"},
    "no dtype at all": array() | {b"dtype": 7},
    "more than there is": array() | {b"shape": [2**40, 2**40]},
    "an overflowing shape": array() | {b"shape": [2**62, 4, 0]},
    "a negative shape": array() | {b"shape": [-1]},
    "a boolean shape": array() | {b"shape": [True]},
    "no shape": array() | {b"shape": 1},
    "too many dimensions": array() | {b"shape": [1] * 33},
    "numbers for data": array() | {b"data": [0] * 8},
    "something beside": array() | {b"more": 1},
    "a part missing": {b"__ndarray__": True, b"data": b""},
    "a scalar of an object": {b"__npgeneric__": True, b"data": [1], b"dtype": "<f8"},
    "a scalar out of range": {b"__npgeneric__": True, b"data": 1000, b"dtype": "|u1"},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_arrays_that_are_none_are_refused(what: str):
    with pytest.raises(CodecError):
        unpack(msgpack.packb({"x": HOSTILE[what]}))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xc1", b"\x92\x01", b"\x01\x02", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xffab",
        b"\x91" * 5000 + b"\xc0", msgpack.packb([[[[[[[[[[1]]]]]]]]]]), msgpack.packb({1: 2}),
        msgpack.packb(msgpack.Timestamp(1, 2)), msgpack.packb(msgpack.ExtType(5, b"abc")), msgpack.packb([0] * 5000),
        pickle.dumps({"a": 1}), msgpack.packb("x" * 100_000), b"\xa1\xff",
    ],
)  # fmt: skip
def test_bytes_that_are_no_message_are_refused(data: bytes):
    with pytest.raises(CodecError):
        unpack(data)


def test_a_small_message_of_very_many_values_is_refused_at_once():
    bomb = b"\xdc\x04\x00" + (b"\xdc\x04\x00" + b"\xc0" * 1024) * 1024  # 1 MB, a million values
    start = time.process_time()
    with pytest.raises(CodecError, match=f"more than {MOST_ENTRIES} values"):
        unpack(bomb)
    assert time.process_time() - start < 0.2


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes):
    try:
        value = unpack(data)
    except CodecError:
        return
    assert isinstance(value, type(None) | bool | int | float | str | bytes | list | dict | np.ndarray | np.generic)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_flipped_byte_is_read_or_refused(where: int, byte: int):
    data = bytearray(pack(MESSAGE))
    data[where % len(data)] = byte
    try:
        unpack(bytes(data))
    except CodecError:
        return


@pytest.mark.parametrize("value", [np.array([object()]), object(), {"f": print}, np.zeros(2, complex), 2**70])
def test_what_has_no_place_in_a_message_is_not_packed(value):
    with pytest.raises(CodecError):
        pack(value)
