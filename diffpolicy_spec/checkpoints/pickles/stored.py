"""Tensors of a torch.save file that stay in it until they are asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.pickles.archive import Archive, read_record
from diffpolicy_spec.checkpoints.shapes_only import is_left_out

__all__ = ["StoredTensor", "load_tensors"]


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor that is still in its file; `load_tensors` reads it.

    Attributes:
        archive: the file.
        key: its storage; several tensors may share one.
        dtype, shape: of the tensor.
        offset, stride: where its numbers stand in the storage, in numbers.
    """

    archive: Archive
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def load(self) -> Tensor:
        """The tensor, read from the file."""
        return load_tensors({"": self})[""]


def load_tensors(stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """Read tensors from their file, each storage once, into memory of their own.

    Raises:
        CheckpointError: a storage is truncated or damaged, or the tensors share storages to be more than the file.
    """
    storages: dict[tuple[Path, str], Tensor] = {}
    tensors: dict[str, Tensor] = {}
    copied = 0
    for name, tensor in stored.items():
        size = tensor.numel * tensor.dtype.itemsize
        if is_left_out(size):
            tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            continue
        where = (tensor.archive.path, tensor.key)
        if where not in storages:
            storages[where] = read_record(tensor.archive, tensor.key)
        view = storages[where].view(tensor.dtype).as_strided(tensor.shape, tensor.stride, tensor.offset)
        if not view.is_contiguous():
            copied += size
            if copied > tensor.archive.size:
                raise CheckpointError(f"{tensor.archive.path} is not read: its tensors are larger than the file")
        tensors[name] = view.contiguous()
    return tensors
