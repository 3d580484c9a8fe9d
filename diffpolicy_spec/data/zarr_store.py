"""Opening and reading zarr stores from strangers.

Every fault of the store is a DataError, no code in it is run, and nothing is allocated on its word alone.
"""

from __future__ import annotations

import bz2
import itertools
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.data.claims import FREE_BYTES, check_claim
from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.optional import require

__all__ = ["check_array", "open_store", "read_zarr"]

# What may be decompressed before it is known how much there is: unpacked up to a limit. codec -> (data, limit) -> data.
_BOUNDED: dict[str, Callable[[bytes, int], bytes]] = {
    "zlib": lambda data, limit: zlib.decompressobj(47).decompress(data, limit),
    "gzip": lambda data, limit: zlib.decompressobj(47).decompress(data, limit),
    "bz2": lambda data, limit: bz2.BZ2Decompressor().decompress(data, limit),
    "lzma": lambda data, limit: lzma.LZMADecompressor().decompress(data, limit),
}


@contextmanager
def open_store(path: str | Path) -> Iterator[Any]:
    """The root group of a zarr store, a folder or a .zip of one, for reading; closed on leaving.

    Raises:
        FileNotFoundError: no such store.
        PermissionError: it may not be read.
        DataError: not a zarr store, or a damaged one.
        ImportError: zarr is not installed.
    """
    zarr = require("zarr", extra="data", needed_by="reading a replay buffer")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"dataset {path} does not exist: give dataset=PATH of a zarr replay buffer")
    try:
        if path.is_dir():
            store: Any = str(path)
        else:
            _check_zip(path)
            store = zarr.storage.ZipStore(path, mode="r")
        root = zarr.open_group(store, mode="r")
    except (PermissionError, DataError):
        raise
    except Exception as error:  # zarr checks little of its JSON: TypeError, KeyError, RecursionError, OverflowError ...
        raise DataError(f"{path} is not a readable zarr store: {_one_line(error)}") from error
    try:
        yield root
    except (DataError, FileNotFoundError, PermissionError):
        raise
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError,
            RuntimeError, zipfile.BadZipFile) as error:  # fmt: skip
        raise DataError(f"{path} is damaged: {_one_line(error)}") from error
    finally:
        root.store.close()


def check_array(array: Any, where: str) -> None:
    """Raise DataError unless it is an array of numbers, by codecs that only decompress, not larger than what is stored
    of it suggests."""
    zarr = require("zarr", extra="data")
    if not isinstance(array, zarr.Array):
        raise DataError(f"{where} is a group, expected an array")
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} holds {array.dtype}, expected numbers")
    # numcodecs' "pickle" unpickles what a chunk holds.
    unsafe = [name for name in _codecs(array) if "pickle" in name]
    if unsafe:
        raise DataError(f"{where} is stored by the codec '{unsafe[0]}', which runs code of the file: nothing was read")
    if max(array.nbytes, _chunk_bytes(array)) > FREE_BYTES:
        check_claim(array.nbytes, array.nbytes_stored(), where)
        check_claim(_chunk_bytes(array), max(array.nbytes, array.nbytes_stored()), where)


def read_zarr(array: Any, where: str, rows: slice = slice(None)) -> NDArray[Any]:
    """Rows of an array, checked as `check_array` does; `where` is for messages.

    Raises:
        DataError: not an array of numbers, or one that cannot be read; a codec that is not installed is named.
    """
    check_array(array, where)
    try:
        if array.ndim == 0:
            return np.asarray(array[()])
        _check_chunks(array, where, rows)
        return np.asarray(array[rows])
    except DataError:
        raise
    except Exception as error:  # what the decompressors raise
        raise DataError(f"{where} cannot be read: {_one_line(error)}") from error


def _check_zip(path: Path) -> None:
    """Raise DataError where unpacking a member takes far more memory than the file."""
    with zipfile.ZipFile(path) as file:
        for member in file.infolist():
            if member.file_size > FREE_BYTES and member.file_size > 20 * member.compress_size:
                raise DataError(
                    f"{path}: '{member.filename}' would unpack {member.compress_size:,} bytes to "
                    f"{member.file_size / 1e6:,.0f} MB: damaged?"
                )


def _codecs(array: Any) -> list[str]:
    """Names of filters and compressors, of zarr's format 2 or 3."""
    metadata = array.metadata
    used = [*(getattr(metadata, "filters", None) or ()), getattr(metadata, "compressor", None)]
    used += list(getattr(metadata, "codecs", None) or ())
    return [str(getattr(c, "codec_id", None) or type(c).__name__).lower() for c in used if c is not None]


def _chunk_bytes(array: Any) -> int:
    return int(np.prod(array.chunks, dtype=object)) * array.dtype.itemsize


def _check_chunks(array: Any, where: str, rows: slice) -> None:
    """Raise DataError where a chunk of these rows would unpack to more than a chunk holds and more than is believed."""
    if getattr(array.metadata, "zarr_format", 3) != 2 or getattr(array.metadata, "compressor", None) is None:
        return
    zarr = require("zarr", extra="data")
    codec, limit = _codecs(array)[-1], max(_chunk_bytes(array), FREE_BYTES)
    start, stop, _ = rows.indices(array.shape[0])
    size = array.chunks[0]
    others = [range(-(-n // c)) for n, c in zip(array.shape[1:], array.chunks[1:], strict=True)]
    prototype = zarr.core.buffer.default_buffer_prototype()
    for index in itertools.product(range(start // size, -(-stop // size)), *others):
        key = f"{array.store_path.path}/{array.metadata.encode_chunk_key(index)}"
        found = zarr.core.sync.sync(array.store_path.store.get(key, prototype))
        if found is None:  # all of it is the fill value
            continue
        if _unpacked(codec, found.to_bytes(), limit) > limit:
            raise DataError(f"{where}: chunk {index} would unpack to more than {limit / 1e6:,.0f} MB: damaged?")


def _unpacked(codec: str, data: bytes, limit: int) -> int:
    """How many bytes a chunk says, or turns out, to unpack to; counted up to limit + 1."""
    if codec == "blosc":  # Blosc's header: version, format, flags, size of a number, nbytes, block size, cbytes
        return int.from_bytes(data[4:8], "little")
    if codec in _BOUNDED and 1032 * len(data) > limit:
        try:
            return len(_BOUNDED[codec](data, limit + 1))
        except (zlib.error, OSError, lzma.LZMAError):
            return 0  # the codec itself will say what is wrong
    if codec == "zstd":
        return _zstd_size(data)
    return 0


def _zstd_size(data: bytes) -> int:
    """The content size in a Zstandard frame's header (RFC 8878, 3.1.1.1); 0 where it does not say."""
    if data[:4] != b"\x28\xb5\x2f\xfd" or len(data) < 6:
        return 0
    single, flag = bool(data[4] & 0x20), data[4] >> 6
    size = (1, 2, 4, 8)[flag] if flag or single else 0
    begin = 5 + (not single) + (0, 1, 2, 4)[data[4] & 3]
    value = int.from_bytes(data[begin : begin + size], "little")
    return value + 256 if size == 2 else value


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
