"""Images of batches: read ahead of the step that needs them, by processes of their own, as uint8 up to the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffpolicy_spec.data.episodes import Episode
from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.data.frames import FrameTable
from diffpolicy_spec.training.batches import Batch
from diffpolicy_spec.training.order import Order, Share

__all__ = ["CACHES", "ImageLoading", "ImageReader", "image_tables"]

CACHES = ("auto", "ram", "none")
"""Where images are kept, see `ImageLoading`."""

_AHEAD = 2  # batches that each process reads ahead


@dataclass(frozen=True)
class ImageLoading:
    """How images are read; changes no result.

    Attributes:
        cache: "none": from the file for every batch. "ram": brought into memory as uint8 before the first step. "auto":
            uncompressed images of an hdf5 from the file, which the system caches; others into memory where they fit.
        cache_gb: most memory for it, GB; None: half of the machine's, shared by all processes of a run.
        workers: processes that read ahead; 0: the training process reads.

    Raises:
        ValueError: another cache, or a negative number.
    """

    cache: str = "auto"
    cache_gb: float | None = None
    workers: int = 2

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            raise ValueError(f"cache_images must be {', '.join(CACHES)}; got {self.cache!r}")
        if self.workers < 0 or not (self.cache_gb is None or self.cache_gb >= 0):
            raise ValueError(f"image workers and cache_gb must not be negative: {self.workers}, {self.cache_gb}")

    def budget(self, processes: int = 1) -> int:
        """Bytes that one process may keep."""
        if self.cache_gb is not None:
            return int(self.cache_gb * 1e9) // processes
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // processes


def image_tables(
    episodes: Sequence[Episode],
    cameras: Iterable[str],
    loading: ImageLoading,
    *,
    budget: int,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> tuple[dict[str, FrameTable], int]:
    """Each camera's images of all episodes, brought into memory where `loading` says so, and the bytes taken.

    Raises:
        DataError: images that cannot be read, or more of them than the memory they may take.
    """
    tables = {camera: FrameTable([episode.images[camera] for episode in episodes]) for camera in cameras}
    if loading.cache == "none":
        return tables, 0
    wanted = {camera: table for camera, table in tables.items() if loading.cache == "ram" or not table.direct}
    needed = sum(table.nbytes for table in wanted.values())
    if needed > budget:
        if loading.cache == "ram":
            raise DataError(
                f"cache_images=ram needs {needed / 1e9:.1f} GB for {', '.join(wanted)}, and may take "
                f"{budget / 1e9:.1f}: raise image_cache_gb, or use cache_images=none"
            )
        return tables, 0
    return tables | {camera: table.in_memory(progress) for camera, table in wanted.items()}, needed


class ImageReader:
    """Images of the batches of a run, step after step.

    Args:
        tables: camera -> images.
        frames: (S, To) long, the images of every sequence.
        order, share: which sequences a step needs here.
        loading: how many processes read ahead.
        last: the step after the last one.
        device: where images go.
    """

    def __init__(
        self,
        tables: Mapping[str, FrameTable],
        frames: Tensor,
        order: Order,
        share: Share,
        loading: ImageLoading,
        last: int,
        device: torch.device | str,
    ) -> None:
        self._steps = _Steps(tables, frames, order, share)
        self._loading, self._last, self._device = loading, last, torch.device(device)
        self._next, self._ahead = -1, iter(())

    def fill(self, batch: Batch, step: int | None = None) -> Batch:
        """The same batch with its images, on the device.

        Args:
            step: it is the batch of this step; None: of any sequences, read now.

        Raises:
            DataError: images that cannot be read.
        """
        if step is None:
            assert batch.frames is not None
            images = self._steps.read(batch.frames)
        else:
            images = self._at(step)
        return replace(batch, images={c: x.to(self._device, non_blocking=True) for c, x in images.items()})

    def _at(self, step: int) -> dict[str, Tensor]:
        if not self._loading.workers:
            return _checked(self._steps[step])
        if step != self._next:
            self._ahead, self._next = self._read_ahead(step), step
        self._next += 1
        return _checked(next(self._ahead))

    def _read_ahead(self, step: int) -> Iterator[Any]:
        return iter(
            DataLoader(
                self._steps,
                batch_size=None,
                sampler=range(step, self._last),
                num_workers=self._loading.workers,
                prefetch_factor=_AHEAD,
                collate_fn=_as_it_is,
                pin_memory=self._device.type == "cuda",
                generator=torch.Generator(),  # the loader draws a seed for its processes, which draw nothing
            )
        )


class _Steps(Dataset):
    """step -> camera -> images (N, To, H, W, C), or the message of what went wrong."""

    def __init__(self, tables: Mapping[str, FrameTable], frames: Tensor, order: Order, share: Share) -> None:
        self.tables, self.frames, self.order, self.share = dict(tables), frames, order, share

    def __getitem__(self, step: int) -> dict[str, Tensor] | str:
        rows = self.order.rows(step)
        try:
            return self.read(self.frames[rows[self.share.of(len(rows))]])
        except DataError as error:  # raised here, it would reach the user inside a traceback of this process
            return str(error)

    def read(self, frames: Tensor) -> dict[str, Tensor]:
        rows = frames.flatten().numpy().astype(np.int64, copy=False)
        return {
            camera: torch.from_numpy(table.read(rows)).unflatten(0, tuple(frames.shape))
            for camera, table in self.tables.items()
        }


def _checked(images: dict[str, Tensor] | str) -> dict[str, Tensor]:
    if isinstance(images, str):
        raise DataError(images)
    return images


def _as_it_is(images: Any) -> Any:
    return images
