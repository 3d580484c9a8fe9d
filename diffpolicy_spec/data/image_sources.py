"""Arrays of images that stay in their file: opened once in each process that reads, and read a few rows at a time."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.data.hdf5_file import check_dataset, open_hdf5
from diffpolicy_spec.data.zarr_store import check_array, open_store

__all__ = ["ArrayImages", "ImageFile", "ImageSource", "MappedImages", "StoredImages", "as_uint8", "hdf5_images"]


class ImageSource(Protocol):
    """Images (N, H, W, C), uint8 when they are read."""

    @property
    def direct(self) -> bool:
        """Whether rows lie in memory, or in a file mapped to it, as they are."""

    def view(self) -> NDArray[np.uint8]:
        """(N, H, W, C), where `direct`."""

    def chunk(self, where: str) -> int:
        """Rows that can only be read together."""

    def read(self, rows: NDArray[np.int64], where: str) -> NDArray[np.uint8]:
        """(n, H, W, C) of rows in rising order.

        Raises:
            DataError: they cannot be read, or are no images; `where` begins the message.
        """


class ImageFile:
    """An hdf5 file or zarr store that is opened again in every process: handles do not survive a fork."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._pid, self._kept = 0, ExitStack()
        self._root: Any = None
        self._arrays: dict[str, Any] = {}
        self._bytes: NDArray[np.uint8] | None = None

    def array(self, name: str, where: str) -> Any:
        """The hdf5 dataset or zarr array of that name, checked when it is opened."""
        if self._pid != os.getpid():
            self._pid, self._arrays, self._kept = os.getpid(), {}, ExitStack()
            zarr = self.path.is_dir() or self.path.suffix in (".zarr", ".zip")
            # No cache of chunks, which hdf5 would keep for each of hundreds of arrays: a chunk is read once a batch.
            opened = open_store(self.path) if zarr else open_hdf5(self.path, rdcc_nbytes=0)
            self._root = self._kept.enter_context(opened)
        if name not in self._arrays:
            array = self._root[name]
            (check_dataset if hasattr(array, "id") else check_array)(array, where)
            self._arrays[name] = array
        return self._arrays[name]

    def bytes(self) -> NDArray[np.uint8]:
        """The file's bytes, mapped to memory."""
        if self._bytes is None:
            self._bytes = np.memmap(self.path, dtype=np.uint8, mode="r")
        return self._bytes

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


class MappedImages:
    """Images that lie in an hdf5 file as they are, one after the other: read as memory is, and cached by the system."""

    direct = True

    def __init__(self, file: ImageFile, offset: int, shape: tuple[int, ...]) -> None:
        self.file, self.offset, self.shape = file, offset, shape

    def view(self) -> NDArray[np.uint8]:
        size = int(np.prod(self.shape))
        return self.file.bytes()[self.offset : self.offset + size].reshape(self.shape)

    def chunk(self, where: str) -> int:
        return 1

    def read(self, rows: NDArray[np.int64], where: str) -> NDArray[np.uint8]:
        return self.view()[rows]


class ArrayImages:
    """Images in memory."""

    direct = True

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images

    def view(self) -> NDArray[np.uint8]:
        return self.images

    def chunk(self, where: str) -> int:
        return 1

    def read(self, rows: NDArray[np.int64], where: str) -> NDArray[np.uint8]:
        return self.images[rows]


class StoredImages:
    """Images that only their format's own reader can give: rows of one chunk, and neighbours, are read in one go."""

    direct = False

    def __init__(self, file: ImageFile, name: str) -> None:
        self.file, self.name = file, name

    def view(self) -> NDArray[np.uint8]:
        raise NotImplementedError("these images are not in memory")

    def chunk(self, where: str) -> int:
        chunks = self.file.array(self.name, where).chunks
        return int(chunks[0]) if chunks else 1

    def read(self, rows: NDArray[np.int64], where: str) -> NDArray[np.uint8]:
        array, chunk, parts = self.file.array(self.name, where), self.chunk(where), []
        try:
            for group in np.split(rows, 1 + np.flatnonzero(_apart(rows, chunk))):
                low = int(group[0])
                parts.append(as_uint8(np.asarray(array[low : int(group[-1]) + 1])[group - low], where))
        except DataError:
            raise
        except Exception as error:  # what h5py, zarr and all their decompressors raise
            told = " ".join(str(error).split())[:300]
            raise DataError(f"{where} cannot be read: {type(error).__name__}: {told}") from error
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def hdf5_images(file: ImageFile, dataset: Any) -> MappedImages | StoredImages:
    """How images of an hdf5 dataset are read best: mapped where they lie in the file as they are."""
    offset = dataset.id.get_offset() if dataset.chunks is None and dataset.dtype == np.uint8 else None
    if offset is None or offset + dataset.nbytes > file.path.stat().st_size:
        return StoredImages(file, dataset.name)
    return MappedImages(file, offset, dataset.shape)


def _apart(rows: NDArray[np.int64], chunk: int) -> NDArray[np.bool_]:
    """(n - 1,): whether row i + 1 is neither the next row nor in the chunk of row i."""
    return (np.diff(rows) > 1) & (rows[1:] // chunk != rows[:-1] // chunk)


def as_uint8(images: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Images of 0 to 255 as uint8; fractions are rounded.

    Raises:
        DataError: NaN, or values outside.
    """
    if images.dtype == np.uint8:
        return images
    # The comparison is false for NaN, too.
    if images.size and not (images.min() >= 0 and images.max() <= 255):
        raise DataError(f"{where} holds values outside 0 to 255, or NaN: not images")
    return np.rint(images).astype(np.uint8)
