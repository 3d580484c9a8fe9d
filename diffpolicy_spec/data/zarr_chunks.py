"""Chunks of a zarr store, looked at before they are decompressed.

The decompressors believe what a chunk's header says: a truncated Blosc chunk is read beyond its end, and a few bytes
can ask for gigabytes.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from diffpolicy_spec.data.claims import FREE_BYTES
from diffpolicy_spec.optional import require

__all__ = ["ChunkError", "check_chunk", "checked_store"]


class ChunkError(OSError):
    """A chunk that must not be decompressed; readers make a DataError of it that names file and array."""


_PIECE = 1 << 20  # bytes that are unpacked at a time
_FILES: dict[str, Callable[[io.BytesIO], Any]] = {"gzip": gzip.open, "bz2": bz2.open, "lzma": lzma.open}


def check_chunk(codec: str, data: bytes, chunk_bytes: int, name: str) -> None:
    """Raise ChunkError where a chunk is truncated, or would unpack to more than a chunk holds and is believed.

    Args:
        codec: numcodecs' name of the compressor.
        chunk_bytes: of a chunk of the array.
    """
    limit, unpacked = max(chunk_bytes, FREE_BYTES), 0
    if codec == "blosc":  # its header: version, format, flags, size of a number, nbytes, block size, cbytes
        unpacked, stored = (int.from_bytes(data[at : at + 4], "little") for at in (4, 12))
        if len(data) < 16 or stored != len(data):
            raise ChunkError(f"chunk {name} has {len(data):,} bytes and should have {stored:,}: truncated?")
    elif codec == "zstd":
        unpacked = _zstd_size(data)
    elif codec == "lz4":  # numcodecs puts the size before it
        unpacked = int.from_bytes(data[:4], "little")
    elif codec in ("bz2", "lzma") or (codec in ("zlib", "gzip") and 1032 * len(data) > limit):
        try:
            unpacked = _count(codec, data, limit)
        except (zlib.error, OSError, lzma.LZMAError, EOFError):
            return  # the codec itself will say what is wrong
    if unpacked > limit:
        raise ChunkError(f"chunk {name} would unpack to more than {limit / 1e6:,.0f} MB: damaged?")


def _count(codec: str, data: bytes, limit: int) -> int:
    """Bytes that come out of a chunk whose header does not say, counted until they are more than `limit`."""
    total = 0
    if codec == "zlib":
        unpacker = zlib.decompressobj()
        while data and total <= limit:
            total += len(unpacker.decompress(data, _PIECE))
            data = unpacker.unconsumed_tail
        return total
    with _FILES[codec](io.BytesIO(data)) as file:
        while total <= limit and (piece := file.read(_PIECE)):
            total += len(piece)
    return total


def _zstd_size(data: bytes) -> int:
    """The content size in a Zstandard frame's header (RFC 8878, 3.1.1.1); 0 where it does not say."""
    if data[:4] != b"\x28\xb5\x2f\xfd" or len(data) < 6:
        return 0
    single, flag = bool(data[4] & 0x20), data[4] >> 6
    size = (1, 2, 4, 8)[flag] if flag or single else 0
    begin = 5 + (not single) + (0, 1, 2, 4)[data[4] & 3]
    value = int.from_bytes(data[begin : begin + size], "little")
    return value + 256 if size == 2 else value


def checked_store(store: Any) -> Any:
    """A zarr store that checks each chunk of an array of format 2 when it is read."""
    return _checked_class()(store)


@functools.cache
def _checked_class() -> Any:
    """zarr is imported where a store is opened, not before."""
    zarr = require("zarr", extra="data")

    class CheckedStore(zarr.storage.WrapperStore):  # type: ignore[name-defined]
        def __init__(self, store: Any) -> None:
            super().__init__(store)
            self._arrays: dict[str, tuple[str, int] | None] = {}  # path -> (compressor, bytes of a chunk)

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            found = await self._store.get(key, prototype, byte_range)
            folder, _, name = key.rpartition("/")
            if found is None or byte_range is not None:
                return found
            if name == ".zarray":
                self._arrays[folder] = _compressor(found.to_bytes())
            elif not name.startswith(".") and name != "zarr.json":
                told = next((self._arrays[p] for p in _above(folder) if p in self._arrays), None)
                if told is not None:
                    check_chunk(told[0], found.to_bytes(), told[1], name)
            return found

    return CheckedStore


def _above(folder: str) -> list[str]:
    """A folder and those it is in: chunks may be nested, "data/img/0/1"."""
    parts = folder.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _compressor(metadata: bytes) -> tuple[str, int] | None:
    """What an array's .zarray says of its compressor; None where it has none. What is wrong with it zarr will say."""
    try:
        content = json.loads(metadata)
        codec, chunks, dtype = content["compressor"]["id"], content["chunks"], content["dtype"]
        return str(codec), int(np.prod(chunks, dtype=object)) * np.dtype(dtype).itemsize
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None
