"""What stands at a path, seen from its content: a dataset of which format, or a checkpoint."""

from __future__ import annotations

import zipfile
from pathlib import Path

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.formats import ZARR_FILES

__all__ = ["kind_of"]


def kind_of(path: Path) -> str:
    """ "hdf5", "zarr", "lerobot dataset" or "checkpoint"; what is none of the datasets may be a checkpoint.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: it cannot be looked at (a loop of links, a device), or it is empty.
        PermissionError: it may not be read.
    """
    try:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        if path.is_dir():
            return _kind_of_folder(path)
        if not path.is_file():
            raise CheckpointError(f"{path} is neither a file nor a folder")
        with path.open("rb") as file:
            start = file.read(8)
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not start:
        raise CheckpointError(f"{path} is empty")
    if start == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    return "zarr" if start.startswith(b"PK") and _is_zarr_zip(path) else "checkpoint"


def _kind_of_folder(path: Path) -> str:
    if (path / "meta" / "info.json").is_file():
        return "lerobot dataset"
    if any((path / name).is_file() for name in ZARR_FILES) or path.suffix == ".zarr":
        return "zarr"
    return "checkpoint"


def _is_zarr_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.endswith((*ZARR_FILES, ".zarray")) for name in file.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return path.suffix == ".zip"
