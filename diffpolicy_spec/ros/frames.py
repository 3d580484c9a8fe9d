"""rosbridge's frames: what a server may send, read with bounds."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

__all__ = ["BadFrame", "FrameReader"]


class BadFrame(ValueError):
    """A frame that is none of rosbridge's, or too large."""


class FrameReader:
    """Frames of one connection, fragments put together.

    Args:
        max_bytes: of a message, fragments together.
        max_parts: fragmented messages under way at a time; the oldest is given up.
    """

    def __init__(self, max_bytes: int, max_parts: int = 8) -> None:
        self._max_bytes, self._max_parts = max_bytes, max_parts
        self._parts: OrderedDict[str, _Parts] = OrderedDict()

    def read(self, payload: bytes) -> Mapping[str, Any] | None:
        """An operation, a mapping with "op"; None: a fragment, and more are to come.

        Raises:
            BadFrame: what is wrong with it. A fragmented message that is too large is told once.
        """
        frame = self._decoded(payload)
        return self._joined(frame) if frame["op"] == "fragment" else frame

    def _decoded(self, payload: bytes) -> Mapping[str, Any]:
        if len(payload) > self._max_bytes:
            raise BadFrame(f"a message of {len(payload)} bytes; {self._max_bytes} at most are read")
        try:
            frame = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise BadFrame(f"no JSON: {str(error)[:100]}") from None
        if not isinstance(frame, dict) or not isinstance(frame.get("op"), str):
            raise BadFrame("no operation of rosbridge: JSON without `op`")
        return frame

    def _joined(self, frame: Mapping[str, Any]) -> Mapping[str, Any] | None:
        name, data, num, total = (frame.get(key) for key in ("id", "data", "num", "total"))
        if isinstance(total, float) and 1 <= total <= self._max_bytes:
            total = int(total)  # rosbridge writes (length - 1) / size + 1, and means whole ones
        if not isinstance(num, int) or not isinstance(total, int) or not 0 <= num < total <= self._max_bytes:
            raise BadFrame("a fragment without num and total")
        if not isinstance(name, str | int) or not isinstance(data, str):
            raise BadFrame("a fragment without id and data")
        parts = self._parts.get(str(name))
        if parts is None or parts.total != total:
            parts = self._parts[str(name)] = _Parts(total)
            while len(self._parts) > self._max_parts:
                self._parts.popitem(last=False)
        was_too_large = parts.too_large
        parts.add(num, data, self._max_bytes)
        if not parts.missing:
            del self._parts[str(name)]
        if parts.too_large and not was_too_large:
            raise BadFrame(f"a message in {total} fragments of more than {self._max_bytes} bytes")
        if parts.missing or parts.too_large:
            return None
        joined = self._decoded("".join(parts.data[i] for i in range(total)).encode("utf-8", "surrogatepass"))
        if joined["op"] == "fragment":
            raise BadFrame("fragments of fragments")
        return joined


class _Parts:
    """Fragments of a message; one that grows too large keeps none of its data."""

    def __init__(self, total: int) -> None:
        self.total, self.data = total, dict[int, str]()
        self.too_large = False
        self._seen, self._size = 0, 0

    @property
    def missing(self) -> bool:
        return self._seen < self.total

    def add(self, num: int, data: str, max_bytes: int) -> None:
        if num in self.data:
            return
        self._seen += 1
        self._size += len(data)
        if self.too_large or self._size > max_bytes:
            self.too_large = True
            self.data.clear()
        else:
            self.data[num] = data
