"""Opening and reading hdf5 files from strangers.

Every fault of the file is a DataError, and nothing is allocated on its word alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.data.claims import check_claim
from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.optional import require

__all__ = ["check_dataset", "open_hdf5", "read_hdf5"]


@contextmanager
def open_hdf5(path: str | Path, **options: Any) -> Iterator[Any]:
    """An h5py.File, for reading, closed on leaving; faults of the file that show only within are DataErrors, too.

    Args:
        path: the file.
        **options: further arguments of h5py.File.

    Raises:
        FileNotFoundError: no such file.
        PermissionError: it may not be read.
        DataError: not an hdf5 file, or a damaged one.
        ImportError: h5py is not installed.
    """
    h5py = require("h5py", extra="data", needed_by="reading a robomimic dataset")
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder, not an hdf5 file")
    if not path.is_file():
        raise FileNotFoundError(f"dataset {path} does not exist; for a task of this package collect one: dps-collect")
    with path.open("rb"):  # PermissionError, and not hdf5's words for it
        pass
    try:
        file = h5py.File(path, "r", **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} is not a readable hdf5 file (truncated or damaged?): {error}") from error
    try:
        with file:
            yield file
    except (DataError, FileNotFoundError, PermissionError):
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def check_dataset(dataset: Any, where: str) -> None:
    """Raise DataError unless it is an array of numbers in this file, not larger than what is stored of it suggests."""
    h5py = require("h5py", extra="data")
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{where} is a group, expected an array")
    if dataset.shape is None or dataset.dtype.kind not in "biufSO" or dataset.dtype.fields:
        raise DataError(f"{where} holds {dataset.dtype}, expected numbers")
    if dataset.is_virtual or dataset.external:
        raise DataError(f"{where} keeps its data in other files, which are not read: copy it into this one (h5repack)")
    check_claim(dataset.nbytes, dataset.id.get_storage_size(), where)
    if dataset.chunks is not None:
        check_claim(int(np.prod(dataset.chunks, dtype=object)) * dataset.dtype.itemsize, dataset.nbytes, where)


def read_hdf5(dataset: Any, where: str, rows: slice = slice(None)) -> NDArray[Any]:
    """Rows of an array, checked as `check_dataset` does; `where` is for messages.

    Raises:
        DataError: not an array of numbers, or one that cannot be read.
    """
    check_dataset(dataset, where)
    try:
        return np.asarray(dataset[rows] if dataset.ndim else dataset[()])
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:  # what h5py and its filters raise
        raise DataError(f"{where} cannot be read: {error}") from error
