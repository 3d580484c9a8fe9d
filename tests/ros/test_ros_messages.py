"""Messages to numbers: every type, what rosbridge does to them, and what nobody should send."""

import array
import base64
import contextlib
import io
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffpolicy_spec.ros.contract_inputs import Field, Input
from diffpolicy_spec.ros.images import ENCODINGS, raw_image
from diffpolicy_spec.ros.messages import (
    BadMessage,
    JointsMissing,
    base64_of,
    bytes_of,
    duration,
    numbers,
    read_message,
    stamp,
    stamp_of,
)

JOINTS = Input("/j", "sensor_msgs/JointState", (Field("q", "position", ("a", "b")), Field("v", "velocity", ("b",))))
POSE = Input("/p", "geometry_msgs/PoseStamped", (Field("pos", "position"), Field("quat", "orientation")))
ARRAY = Input("/a", "std_msgs/Float64MultiArray", (Field("x", "data", start=1, stop=3),))
IMAGE = Input("/i", "sensor_msgs/Image", (Field("front", "image"),))
JPEG = Input("/c", "sensor_msgs/CompressedImage", (Field("front", "image"),))

JOINT_STATE = {
    "header": {"stamp": {"sec": 5, "nanosec": 500_000_000}},
    "name": ["b", "finger", "a"],
    "position": [2.0, 9.0, 1],
    "velocity": [0.2, 0.9, None],
    "effort": [],
}


def pose(orientation=(0.0, 0.0, 0.0, 1.0)):
    x, y, z, w = orientation
    return {"pose": {"position": {"x": 1, "y": 2.5, "z": 3}, "orientation": {"x": x, "y": y, "z": z, "w": w}}}


def raw(pixels: np.ndarray, encoding: str, pad: int = 0, bigendian: int = 0) -> dict:
    """(H, W, C) in the encoding's own order."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1).view(np.uint8)
    padded = np.pad(rows, ((0, 0), (0, pad)), constant_values=77)
    return {
        "height": height, "width": width, "encoding": encoding, "is_bigendian": bigendian, "step": padded.shape[1],
        "data": base64_of(padded.tobytes()),
    }  # fmt: skip


def encoded(pixels: np.ndarray, kind: str) -> dict:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return {"format": kind.lower(), "data": base64.b64encode(file.getvalue()).decode()}


def test_joints_are_found_by_name():
    position, velocity = read_message(JOINT_STATE, JOINTS)
    assert position.tolist() == [1.0, 2.0]
    assert velocity.tolist() == [0.2]


def test_null_is_nan():
    topic = Input("/j", JOINTS.type, (Field("v", "velocity", ("a", "b")),))
    [velocity] = read_message(JOINT_STATE, topic)
    assert math.isnan(velocity[0])
    assert velocity[1] == 0.2


def test_missing_joints_are_named_and_so_are_those_there():
    with pytest.raises(JointsMissing, match=r"joints a are missing; there are: b, c"):
        read_message(JOINT_STATE | {"name": ["c", "b"], "position": [1, 2]}, JOINTS)
    with pytest.raises(BadMessage, match="velocity has none for 3 names"):
        read_message(JOINT_STATE | {"velocity": []}, JOINTS)


def test_poses():
    position, orientation = read_message(pose((0, 0, -0.6, -0.8)), POSE)
    assert position.tolist() == [1, 2.5, 3]
    np.testing.assert_allclose(orientation, [0, 0, -0.6, -0.8], atol=1e-15)
    positive = Input("/p", POSE.type, (Field("quat", "orientation", sign="w_positive"),))
    np.testing.assert_allclose(read_message(pose((0, 0, -0.6, -0.8)), positive)[0], [0, 0, 0.6, 0.8], atol=1e-15)
    with pytest.raises(BadMessage, match="no unit quaternion"):
        read_message(pose((0, 0, 0, 0)), POSE)


def test_arrays():
    message = {"layout": {"dim": [], "data_offset": 1}, "data": [9, 1, 2, 3.5]}
    assert read_message(message, ARRAY)[0].tolist() == [2, 3.5]
    with pytest.raises(BadMessage, match="has 1 numbers, key 'x' needs 3"):
        read_message(message | {"data": [9, 1]}, ARRAY)
    scaled = Input("/a", ARRAY.type, (Field("x", "data", start=0, stop=2, scale=(2.0, -1.0), offset=1.0),))
    assert read_message({"data": [1, 2]}, scaled)[0].tolist() == [3, -1]
    with pytest.raises(BadMessage, match="scale or offset are not for 3 numbers"):
        read_message({"data": [1, 2, 3]}, Input("/a", ARRAY.type, (Field("x", "data", scale=(1.0, 2.0)),)))


def test_arrays_as_rclpy_has_them():
    for data in (array.array("d", [1.0, 2.0, 3.0]), np.array([1.0, 2, 3], np.float32), (1.0, 2.0, 3.0)):
        assert read_message({"data": data}, ARRAY)[0].tolist() == [2, 3]


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "8UC1", "8UC3"])
@pytest.mark.parametrize("pad", [0, 5])
def test_raw_images(encoding, pad):
    channels, _, order = ENCODINGS[encoding]
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, channels), np.uint8)
    [found] = read_message(raw(pixels, encoding, pad), IMAGE)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels[:, :, list(order)].transpose(2, 0, 1))


@pytest.mark.parametrize(("bigendian", "kind"), [(0, "<u2"), (1, ">u2")])
def test_images_of_16_bits(bigendian, kind):
    pixels = np.array([[0, 65535], [256, 1]]).astype(kind)[:, :, None]
    [found] = read_message(raw(pixels, "mono16", 2, bigendian), IMAGE)
    np.testing.assert_allclose(found, np.array([[[0, 65535], [256, 1]]]) / 65535, rtol=1e-6)


def test_the_last_row_need_not_be_padded():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    message = raw(pixels, "rgb8", 4)
    data = base64.b64decode(message["data"])[:-4]
    np.testing.assert_array_equal(raw_image(message, data), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoding": "yuv422"}, "one of rgb8"),
        ({"encoding": ["rgb8"]}, "one of rgb8"),
        ({"height": 100}, "need 100 rows"),
        ({"height": 0}, "height must be 1"),
        ({"width": 2**15}, "width must be"),
        ({"width": 2.0}, "width must be"),
        ({"step": 3}, "rows of 3"),
        ({"data": "x" * 9}, "no base64"),
        ({"data": None}, "no base64"),
        ({"data": [300]}, "no base64"),
    ],
)
def test_broken_raw_images_are_told(change, words):
    message = raw(np.zeros((4, 6, 3), np.uint8), "rgb8") | change
    with pytest.raises(BadMessage, match=words):
        read_message(message, IMAGE)


def test_compressed_images():
    rows, columns = np.mgrid[:40, :60]
    smooth = np.stack([rows * 3, columns * 2, rows + columns], -1).astype(np.uint8)
    [png] = read_message(encoded(smooth, "PNG"), JPEG)
    np.testing.assert_array_equal(png, smooth.transpose(2, 0, 1))
    [jpeg] = read_message(encoded(smooth, "JPEG"), JPEG)
    assert np.abs(jpeg.astype(int) - smooth.transpose(2, 0, 1)).mean() < 3
    [grey] = read_message(encoded(smooth[:, :, 0], "PNG"), JPEG)
    np.testing.assert_array_equal(grey, smooth[None, :, :, 0])
    deep = (smooth[:, :, 0].astype(np.uint16)) * 257
    [found] = read_message(encoded(deep, "PNG"), JPEG)
    np.testing.assert_allclose(found, smooth[None, :, :, 0] / 255, rtol=1e-6)


@pytest.mark.parametrize("kind", ["raw", "compressed"])
def test_images_are_resized(kind):
    rows, columns = np.mgrid[:80, :120]
    smooth = np.stack([rows * 2, columns, rows + columns], -1).astype(np.uint8)
    topic = Input("/i", IMAGE.type if kind == "raw" else JPEG.type, (Field("front", "image", size=(40, 60)),))
    [found] = read_message(raw(smooth, "rgb8") if kind == "raw" else encoded(smooth, "PNG"), topic)
    assert found.shape == (3, 40, 60)
    mean = smooth.reshape(40, 2, 60, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(found - mean)[:, 2:-2, 2:-2].max() < 2


def test_a_small_file_of_a_huge_image_is_not_decoded():
    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    assert len(file.getvalue()) < 20_000
    with pytest.raises(BadMessage, match="9000 x 9000 pixels"):
        read_message({"format": "png", "data": base64_of(file.getvalue())}, JPEG)


def test_broken_and_foreign_files_are_told():
    whole = base64.b64decode(encoded(np.zeros((40, 40, 3), np.uint8), "JPEG")["data"])
    gif = io.BytesIO()
    Image.new("RGB", (4, 4)).save(gif, "GIF")
    for data in (b"", b"abc", whole[: len(whole) // 2], gif.getvalue()):
        with pytest.raises(BadMessage, match="no JPEG or PNG"):
            read_message({"format": "jpeg", "data": base64_of(data)}, JPEG)
    with pytest.raises(BadMessage, match="compressedDepth"):
        read_message({"format": "16UC1; compressedDepth", "data": ""}, JPEG)


def test_bytes_come_in_three_ways():
    data = bytes(range(256))
    for value in (
        base64_of(data),
        list(data),
        data,
        bytearray(data),
        array.array("B", data),
        np.frombuffer(data, "u1"),
    ):
        assert bytes_of(value, "data", 256) == data
        with pytest.raises(BadMessage, match="255"):
            bytes_of(value, "data", 255)


@pytest.mark.parametrize("bad", [None, "12", {}, [1, "2"], [True], [[1]], [1, [2]], 3, b"ab", [2**2000], range(3)])
def test_what_is_no_list_of_numbers_is_told(bad):
    with pytest.raises(BadMessage, match="things"):
        numbers(bad, "things")


@given(st.floats(-1e9, 1e9), st.sampled_from([1, 2]))
def test_times_survive(time, ros):
    written = stamp(time, ros)
    assert set(written) == ({"secs", "nsecs"} if ros == 1 else {"sec", "nanosec"})
    whole, nano = written.values()
    assert 0 <= nano < 1_000_000_000
    assert whole + 1e-9 * nano == pytest.approx(time, abs=1e-6)
    found = stamp_of({"header": {"stamp": json.loads(json.dumps(written))}})
    assert found is None if (whole, nano) == (0, 0) else found == pytest.approx(time, abs=1e-6)
    assert duration(0.05, 2) == {"sec": 0, "nanosec": 50_000_000}


def test_a_message_without_a_time_has_none():
    assert stamp_of({}) is None
    assert stamp_of({"header": {"stamp": {"secs": 0, "nsecs": 0}}}) is None
    for broken in (3, {"stamp": 3}, {"stamp": {}}, {"stamp": {"sec": "1"}}, {"stamp": {"sec": 1, "nanosec": 2.5}}):
        with pytest.raises(BadMessage):
            stamp_of({"header": broken})


numbers_or_null = st.none() | st.floats(allow_infinity=False, allow_nan=False)


@given(st.permutations(["a", "b", "c", "d"]), st.lists(numbers_or_null, min_size=4, max_size=4))
def test_joint_states_survive_in_any_order(names, values):
    by_name = dict(zip(names, values, strict=True))
    message = json.loads(json.dumps({"name": names, "position": values}))
    topic = Input("/j", JOINTS.type, (Field("q", "position", ("a", "b", "d")),))
    [found] = read_message(message, topic)
    for name, value in zip(("a", "b", "d"), found, strict=True):
        assert math.isnan(value) if by_name[name] is None else value == by_name[name]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
KEYS = [
    "header",
    "name",
    "position",
    "velocity",
    "pose",
    "data",
    "layout",
    "height",
    "width",
    "encoding",
    "step",
    "format",
]


@settings(max_examples=300)
@given(st.sampled_from([JOINTS, POSE, ARRAY, IMAGE, JPEG]), st.dictionaries(st.sampled_from(KEYS), anything) | anything)
def test_whatever_comes_is_read_or_told(topic, message):
    told = ""
    try:
        assert len(read_message(message, topic)) == len(topic.fields)
    except BadMessage as error:
        told = str(error)
    assert len(told) < 2000
    if isinstance(message, dict):
        with contextlib.suppress(BadMessage):
            stamp_of(message)
