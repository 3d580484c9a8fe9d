"""Opening and reading zarr stores from strangers, and writing them.

Every fault of the store is a DataError, no code in it is run, and nothing is allocated on its word alone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.atomic import atomic_folder, write_atomically
from diffpolicy_spec.data.claims import FREE_BYTES, check_claim
from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.data.zarr_chunks import checked_store
from diffpolicy_spec.optional import require

__all__ = ["check_array", "open_store", "read_zarr", "write_store"]


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
            store = zarr.storage.LocalStore(path, read_only=True)
        elif path.is_file():
            _check_zip(path)
            store = zarr.storage.ZipStore(path, mode="r")
        else:
            raise DataError(f"{path} is neither a file nor a folder")
        # Without consolidated metadata, from which arrays would be opened past the checks.
        root = zarr.open_group(checked_store(store), mode="r", use_consolidated=False)
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
    if min((*array.shape, *array.chunks), default=0) < 0 or 0 in array.chunks:
        raise DataError(f"{where} has shape {array.shape} in chunks of {array.chunks}: damaged")
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


def write_store(path: str | Path, fill: Callable[[Any], None], attributes: Mapping[str, Any] | None = None) -> None:
    """Write a store of format 2, which diffusion_policy's zarr reads, too; it appears whole or not at all.

    Args:
        path: a folder, or a file that ends in .zip; replaced if there is one.
        fill: is given the root group.
        attributes: of the root.

    Raises:
        ImportError: zarr is not installed.
    """
    zarr = require("zarr", extra="data", needed_by="writing a replay buffer")

    def create(store: Any) -> None:
        fill(zarr.create_group(store=store, zarr_format=2, attributes=dict(attributes or {})))

    def fill_zip(temporary: Path) -> None:
        with zarr.storage.ZipStore(temporary, mode="w") as store:
            create(store)

    if Path(path).suffix == ".zip":
        write_atomically(path, fill_zip)
        return
    with atomic_folder(path) as folder:
        create(str(folder))


def _codecs(array: Any) -> list[str]:
    """Names of filters and compressors, of zarr's format 2 or 3."""
    metadata = array.metadata
    used = [*(getattr(metadata, "filters", None) or ()), getattr(metadata, "compressor", None)]
    used += list(getattr(metadata, "codecs", None) or ())
    return [str(getattr(c, "codec_id", None) or type(c).__name__).lower() for c in used if c is not None]


def _chunk_bytes(array: Any) -> int:
    return int(np.prod(array.chunks, dtype=object)) * array.dtype.itemsize


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
