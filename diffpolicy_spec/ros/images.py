"""From sensor_msgs/Image and CompressedImage to (C, H, W) arrays, by pillow."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.optional import require

__all__ = ["ENCODINGS", "BadMessage", "compressed_image", "raw_image"]

ENCODINGS: Mapping[str, tuple[int, int, tuple[int, ...]]] = {
    "rgb8": (3, 1, (0, 1, 2)),
    "bgr8": (3, 1, (2, 1, 0)),
    "rgba8": (4, 1, (0, 1, 2)),
    "bgra8": (4, 1, (2, 1, 0)),
    "mono8": (1, 1, (0,)),
    "8UC1": (1, 1, (0,)),
    "8UC3": (3, 1, (2, 1, 0)),
    "mono16": (1, 2, (0,)),
    "16UC1": (1, 2, (0,)),
}
"""Encoding of a raw image -> channels, bytes each, which of them are red, green, blue. 8UC3 is OpenCV's: blue first."""

MAX_SIDE = 1 << 14


class BadMessage(ValueError):
    """A message that cannot be read: what is wrong with which field."""


def raw_image(
    fields: Mapping[str, Any], data: bytes, size: tuple[int, int] | None = None, max_pixels: int = 1 << 24
) -> NDArray[Any]:
    """A sensor_msgs/Image, rows padded to `step` bytes.

    Args:
        fields: height, width, encoding, step, is_bigendian. data: of its data. size: (H, W) to resize to.

    Returns:
        (C, H, W): uint8 RGB or grey; of 16 bits float32, value / 65535. Transparency is dropped.

    Raises:
        BadMessage: an encoding that is not read, or numbers that do not fit the data.
    """
    encoding = fields.get("encoding")
    if not isinstance(encoding, str) or encoding not in ENCODINGS:
        raise BadMessage(f"Image.encoding {str(encoding)[:40]!r} is not read; one of {', '.join(ENCODINGS)} is")
    channels, width_bytes, order = ENCODINGS[encoding]
    height, width, step = (_side(fields.get(name), name, limit) for name, limit in _SIDES)
    row = width * channels * width_bytes
    step = step or row  # some drivers leave it empty
    if height * width > max_pixels:
        raise BadMessage(f"Image has {height} x {width} pixels; {max_pixels} at most are read")
    if step < row or len(data) < step * (height - 1) + row:
        raise BadMessage(
            f"Image has {len(data)} bytes in rows of {step}; {height} x {width} {encoding} need {height} rows of {row}"
        )
    padded = np.zeros(height * step, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8, count=min(len(data), height * step))
    rows = padded.reshape(height, step)[:, :row]
    if width_bytes == 2:
        kind = ">u2" if fields.get("is_bigendian") else "<u2"
        grey = np.ascontiguousarray(rows).view(kind).reshape(height, width, 1)
        return _planes(grey.astype(np.float32) / 65535, size)
    return _planes(rows.reshape(height, width, channels)[:, :, list(order)], size)


def compressed_image(
    data: bytes, format: str, size: tuple[int, int] | None = None, max_pixels: int = 1 << 24
) -> NDArray[Any]:
    """A sensor_msgs/CompressedImage: JPEG or PNG, whatever its `format` says beside.

    Args:
        data: the file. format: for messages. size: (H, W) to resize to.

    Returns:
        (C, H, W): uint8 RGB or grey; of 16 bits float32, value / 65535.

    Raises:
        BadMessage: no JPEG or PNG, broken, or of too many pixels (looked up before any is decoded).
    """
    if "compressedDepth" in format:
        raise BadMessage("CompressedImage: compressedDepth is not read; use the raw depth topic")
    image_module = require("PIL.Image", extra="ros", needed_by="images of a ROS topic")
    try:
        with image_module.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > max_pixels:
                raise BadMessage(
                    f"CompressedImage has {image.height} x {image.width} pixels; {max_pixels} at most are read"
                )
            image.load()
            if image.mode.startswith("I"):
                pixels = (np.asarray(image, dtype=np.float32) / 65535)[:, :, None]
            elif image.mode in ("1", "L", "LA"):
                pixels = np.asarray(image.convert("L"))[:, :, None]
            else:
                pixels = np.asarray(image.convert("RGB"))
    except BadMessage:
        raise
    # A broken file can raise nearly anything from a decoder: all of it is the file's fault.
    except Exception as error:
        told = f" ({format})" if format else ""
        raise BadMessage(
            f"CompressedImage{told} is no JPEG or PNG: {type(error).__name__}: {str(error)[:100]}"
        ) from None
    return _planes(pixels, size)


_SIDES = (("height", MAX_SIDE), ("width", MAX_SIDE), ("step", 16 * MAX_SIDE))


def _side(value: object, name: str, limit: int) -> int:
    least = 0 if name == "step" else 1
    if value is None and name == "step":
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= limit:
        raise BadMessage(f"Image.{name} must be {least} to {limit}, got {str(value)[:40]}")
    return value


def _planes(pixels: NDArray[Any], size: tuple[int, int] | None) -> NDArray[Any]:
    """(H, W, C) -> (C, H', W'): bilinear, with antialiasing where it gets smaller, as pillow does."""
    if size is not None and size != pixels.shape[:2]:
        image_module = require("PIL.Image", extra="ros", needed_by="resizing images of a ROS topic")
        flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
        image = image_module.fromarray(np.ascontiguousarray(flat))
        resized = np.asarray(image.resize((size[1], size[0]), image_module.Resampling.BILINEAR))
        pixels = resized.reshape(*size, pixels.shape[2])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
