"""rosbridge's frames: fragments put together, everything bounded."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpolicy_spec.ros.frames import BadFrame, FrameReader


def cut(frame: dict, size: int, name: str = "1", whole: bool = True) -> list[bytes]:
    text = json.dumps(frame)
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    total = len(parts) if whole else (len(text) - 1) / size + 1  # as rosbridge writes it
    return [
        json.dumps({"op": "fragment", "id": name, "num": i, "total": total, "data": part}).encode()
        for i, part in enumerate(parts)
    ]


@given(st.text(max_size=200), st.integers(1, 50), st.booleans(), st.randoms())
def test_fragments_in_any_order_make_the_message(text, size, whole, order: random.Random):
    frame = {"op": "publish", "topic": "/t", "msg": {"data": text}}
    parts = cut(frame, size, whole=whole)
    order.shuffle(parts)
    reader = FrameReader(10_000)
    found = [reader.read(part) for part in parts]
    assert found[:-1] == [None] * (len(parts) - 1)
    assert found[-1] == frame


def test_messages_between_fragments_and_two_fragmented_ones():
    one, other = {"op": "publish", "n": 1}, {"op": "publish", "n": 2}
    reader = FrameReader(1000)
    parts = [part for pair in zip(cut(one, 5, "a"), cut(other, 5, "b"), strict=True) for part in pair]
    found = [reader.read(part) for part in parts[:-2]]
    assert reader.read(b'{"op": "status"}') == {"op": "status"}
    assert found == [None] * len(found)
    assert [reader.read(part) for part in parts[-2:]] == [one, other]


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"{", "no JSON"),
        (b"[" * 900, "no JSON"),
        (b"1" + b"0" * 900, "without `op`"),
        (b"[]", "without `op`"),
        (b'{"op": 3}', "without `op`"),
        (b'{"op": "fragment"}', "num and total"),
        (b'{"op": "fragment", "id": "a", "num": 3, "total": 3, "data": ""}', "num and total"),
        (b'{"op": "fragment", "id": "a", "num": 0, "total": NaN, "data": ""}', "num and total"),
        (b'{"op": "fragment", "id": "a", "num": 0, "total": 1e300, "data": ""}', "num and total"),
        (b'{"op": "fragment", "id": [1], "num": 0, "total": 1, "data": ""}', "id and data"),
        (b'{"op": "fragment", "id": "a", "num": 0, "total": 1, "data": 3}', "id and data"),
        (b'{"op": "fragment", "id": "a", "num": 0, "total": 1, "data": "{\\"op\\": \\"fragment\\"}"}', "of fragments"),
        (b" " * 1001, "1001 bytes; 1000 at most"),
    ],
)
def test_what_is_no_frame_is_told(payload, words):
    with pytest.raises(BadFrame, match=words):
        FrameReader(1000).read(payload)


def test_a_message_too_large_in_fragments_is_told_once_and_dropped():
    frame = {"op": "publish", "data": "x" * 3000}
    reader = FrameReader(1000)
    told = 0
    for part in cut(frame, 400):
        try:
            assert reader.read(part) is None
        except BadFrame:
            told += 1
    assert told == 1
    small = {"op": "publish", "data": "y"}
    assert [reader.read(part) for part in cut(small, 20)][-1] == small


def test_fragments_that_never_end_do_not_pile_up():
    reader = FrameReader(1000, max_parts=4)
    for i in range(1000):
        assert reader.read(cut({"op": "publish", "data": "x" * 300}, 150, name=str(i))[0]) is None
    assert len(reader._parts) == 4


def test_a_fragment_that_comes_twice_counts_once():
    frame = {"op": "publish", "data": "x" * 30}
    first, *others = cut(frame, 20)
    reader = FrameReader(1000)
    assert reader.read(first) is None
    assert reader.read(first) is None
    assert [reader.read(part) for part in others][-1] == frame


@given(st.binary(max_size=60))
def test_any_bytes_are_a_frame_or_told(payload):
    try:
        frame = FrameReader(1000).read(payload)
    except BadFrame:
        return
    assert frame is None or isinstance(frame["op"], str)
