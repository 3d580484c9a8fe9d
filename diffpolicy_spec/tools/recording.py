"""Demonstrations as they stand in a file of any format: what there is, at once, and the rows as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK_BYTES", "Block", "Column", "Recording", "block_rows"]

BLOCK_BYTES = 8 << 20
"""About how much of a dataset is in memory at a time; a chunk of the file that is larger is read whole."""


@dataclass(frozen=True)
class Column:
    """One array with a row for each step.

    Attributes:
        shape: of a row; () for numbers.
        dtype: as stored.
        original: shape of a row before it was flattened for a format that wants vectors; else None.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    original: tuple[int, ...] | None = None

    @property
    def row_bytes(self) -> int:
        """Of one step."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    @property
    def is_image(self) -> bool:
        """Whether a row is (H, W, C) with one, three or four channels."""
        return len(self.shape) == 3 and self.shape[-1] in (1, 3, 4)


@dataclass(frozen=True)
class Block:
    """Consecutive rows of one episode: `rows` (n, ...) stand at `offset` of episode number `episode`."""

    episode: int
    offset: int
    rows: NDArray[Any]


@dataclass(frozen=True)
class Recording:
    """E episodes.

    Attributes:
        path: where it is.
        format: "robomimic hdf5" or "diffusion_policy zarr".
        names: of the episodes.
        lengths: their steps.
        columns: "actions", "obs/<key>", and what else there is ("states", "rewards", "next_obs/<key>") by robomimic's
            names -> what a row is.
        read: column name -> its blocks, in order, all episodes.
        masks: filter key -> numbers of the episodes it names.
        attributes: of the whole, env_args among them (as text, JSON).
        episode_attributes: of each episode, e.g. model_file.
        problems: what is wrong, as sentences; what they speak of is left out of the rest.
        strangers: what is there and has no counterpart in this description.
    """

    path: Path
    format: str
    names: tuple[str, ...]
    lengths: tuple[int, ...]
    columns: Mapping[str, Column]
    read: Callable[[str], Iterator[Block]]
    masks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    episode_attributes: tuple[Mapping[str, Any], ...] = ()
    problems: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Of all episodes."""
        return sum(self.lengths)


def block_rows(row_bytes: int, chunk_rows: int = 1) -> int:
    """Rows that make about BLOCK_BYTES, whole chunks."""
    wanted = max(1, BLOCK_BYTES // max(1, row_bytes))
    return max(1, wanted // chunk_rows) * chunk_rows
