"""Camera images of demonstrations, left in their file until a batch needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.data.image_sources import ArrayImages, ImageSource

__all__ = ["FrameTable", "Frames", "check_images"]

_READ_AT_ONCE = 64 << 20  # bytes, as floats, that are read at a time when images are brought into memory


@dataclass(frozen=True)
class Frames:
    """One camera's images of one episode: N rows of a source.

    Attributes:
        name: of episode and camera, for messages.
        source: where they are.
        start: the source's row of the first one.
        count: N.
        shape: (H, W, C).
    """

    name: str
    source: ImageSource
    start: int
    count: int
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return self.count

    def read(self, rows: ArrayLike) -> NDArray[np.uint8]:
        """(n, H, W, C) of rows, numbered from the episode's first, in any order.

        Raises:
            DataError: they cannot be read.
        """
        wanted, back = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        if len(wanted) and not (0 <= wanted[0] and wanted[-1] < self.count):
            raise IndexError(f"{self.name}: rows {wanted[0]} to {wanted[-1]} of {self.count}")
        return self.source.read(self.start + wanted, self.name)[back]


def check_images(shape: Sequence[int], dtype: Any, steps: int, expected: tuple[int, int, int], where: str) -> None:
    """Raise DataError unless an array holds one image (H, W, C) a step, of 0 to 255; `expected` is (C, H, W)."""
    C, H, W = expected
    if tuple(shape) != (steps, H, W, C):
        raise DataError(f"{where} has shape {tuple(shape)}, expected {(steps, H, W, C)}: (N, H, W, C)")
    if dtype != np.uint8 and np.dtype(dtype).kind != "f":
        raise DataError(f"{where} holds {dtype}, expected images of 0 to 255 as uint8 or floats")


class FrameTable:
    """One camera's images of several episodes, numbered through.

    Args:
        frames: of each episode; of one shape.
    """

    def __init__(self, frames: Sequence[Frames]) -> None:
        self.frames = tuple(frames)
        self.shape = self.frames[0].shape
        self._ends = np.cumsum([len(f) for f in self.frames])
        self._begins = self._ends - [len(f) for f in self.frames]
        self._views: list[NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_views": None}  # a mapped file must not travel to another process

    @property
    def direct(self) -> bool:
        """Whether all images lie in memory, or in a file mapped to it."""
        return all(f.source.direct for f in self.frames)

    @property
    def nbytes(self) -> int:
        """As uint8."""
        return len(self) * int(np.prod(self.shape))

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n, H, W, C) of rows in any order.

        Raises:
            DataError: they cannot be read; the message names the episode and the camera.
        """
        if not self.direct:
            return self._read_stored(rows)
        if self._views is None:
            self._views = [f.source.view()[f.start : f.start + len(f)] for f in self.frames]
        views, episodes = self._views, np.searchsorted(self._ends, rows, side="right")
        inside = rows - self._begins[episodes]
        # Frames of a sequence follow one another: one copy for them.
        ends = np.flatnonzero((np.diff(rows) != 1) | (np.diff(episodes) != 0)) + 1
        marks = [0, *ends.tolist(), len(rows)] if len(rows) else []
        out = np.empty((len(rows), *self.shape), dtype=np.uint8)
        for low, high in pairwise(marks):
            row = int(inside[low])
            out[low:high] = views[int(episodes[low])][row : row + high - low]
        return out

    def _read_stored(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Each wanted row once, in the order of the file, those of one array together."""
        wanted, back = np.unique(rows, return_inverse=True)
        episodes = np.searchsorted(self._ends, wanted, side="right")
        starts = np.array([f.start for f in self.frames])
        inside = wanted - self._begins[episodes] + starts[episodes]
        parts, first = [], 0
        while first < len(wanted):
            frames, last = self.frames[episodes[first]], first + 1
            # Episodes of a replay buffer are rows of one array.
            while last < len(wanted) and self.frames[episodes[last]].source is frames.source:
                last += 1
            parts.append(self._named(frames, inside[first:last]))
            first = last
        return np.concatenate(parts)[back]

    def _named(self, frames: Frames, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Rows of the array that an episode is in; where they cannot be read, the message names theirs."""
        try:
            return frames.source.read(rows, frames.name)
        except DataError:
            for other in self.frames:
                own = rows[(rows >= other.start) & (rows < other.start + len(other))]
                if other.source is frames.source and len(own):
                    other.source.read(own, other.name)
            raise

    def in_memory(self, progress: Callable[[Sequence[Any]], Iterable[Any]] = iter) -> FrameTable:
        """The same, read once from beginning to end; `nbytes` of memory.

        Args:
            progress: wraps the iteration over what is read in one go, such as `tqdm`.
        """
        images = np.empty((len(self), *self.shape), dtype=np.uint8)
        source = ArrayImages(images)
        for frames, low, high, begin in progress(list(self._pieces())):
            images[begin : begin + high - low] = self._named(frames, np.arange(low, high))
        return FrameTable(
            [Frames(f.name, source, int(b), len(f), f.shape) for f, b in zip(self.frames, self._begins, strict=True)]
        )

    def _pieces(self) -> Iterator[tuple[Frames, int, int, int]]:
        """(an episode, first row, last row + 1 of its source, row here): all rows, in pieces of whole chunks."""
        first = 0
        while first < len(self.frames):
            frames, last = self.frames[first], first + 1
            while last < len(self.frames) and self._follows(last):
                last += 1
            start, begin = frames.start, int(self._begins[first])
            stop = start + int(self._ends[last - 1]) - begin
            chunk = frames.source.chunk(frames.name)
            step = max(_READ_AT_ONCE // (4 * int(np.prod(self.shape))) // chunk, 1) * chunk
            marks = [start, *range((start // step + 1) * step, stop, step), stop]
            for low, high in pairwise(marks):
                yield frames, low, high, begin + low - start
            first = last

    def _follows(self, episode: int) -> bool:
        """Whether an episode's rows follow those of the one before it in the same array."""
        before, frames = self.frames[episode - 1], self.frames[episode]
        return frames.source is before.source and frames.start == before.start + len(before)
