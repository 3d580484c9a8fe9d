"""Datasets from one format into the other, streamed: robomimic's hdf5 and diffusion_policy's zarr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.tools.hdf5_recording import open_hdf5_recording, write_hdf5_recording
from diffpolicy_spec.tools.recording import Recording
from diffpolicy_spec.tools.zarr_recording import open_zarr_recording, write_zarr_recording, zarr_names

__all__ = ["DatasetPlan", "open_recording", "plan_dataset"]


@dataclass(frozen=True)
class DatasetPlan:
    """A conversion that has not begun.

    Attributes:
        summary: what will be written, in words.
        losses: what the target will not hold, as sentences.
        notes: what else a user should know.
        write: does it.
    """

    summary: str
    losses: tuple[str, ...]
    notes: tuple[str, ...]
    write: Callable[[], None]


@contextmanager
def open_recording(path: Path, format: str) -> Iterator[Recording]:
    """A dataset of either format ("hdf5" or "zarr"), open for reading."""
    with (open_hdf5_recording if format == "hdf5" else open_zarr_recording)(path) as recording:
        yield recording


@contextmanager
def plan_dataset(
    source: Path, format: str, target: Path, to: str, drop: Sequence[str] = (), *, compress: bool = True
) -> Iterator[DatasetPlan]:
    """What a conversion would write and lose; it is done by the plan's `write`, within the context.

    Args:
        source, format: the dataset and what it is: "hdf5" or "zarr".
        target, to: what is made: "hdf5" or "zarr".
        drop: columns to leave out: "states", "next_obs" (all below it), "obs/<key>".
        compress: images of an hdf5 file.

    Raises:
        DataError: the source is damaged, or what it holds does not fit together; a name to drop that is not there.
        FileNotFoundError, PermissionError, ImportError: as the readers.
    """
    with open_recording(source, format) as recording:
        if recording.problems:
            raise DataError(f"{source} is not converted: {'; '.join(recording.problems[:5])}")
        recording = _without(recording, drop)
        notes = []
        if to == "hdf5" and "env_args" not in recording.attributes:
            notes.append("there are no env_args: robomimic cannot build an environment from the file")
        if to == "zarr":
            extras = [n for c, n in zarr_names(recording).items() if c != "actions" and not c.startswith("obs/")]
            if extras:
                notes.append(f"diffusion_policy has no use for, and ignores: {', '.join(f'data/{n}' for n in extras)}")
            if target.suffix != ".zip" and any(column.is_image for column in recording.columns.values()):
                notes.append(f"each frame will be a file: {target.name}.zip would be one")
        write = partial(write_hdf5_recording, compress=compress) if to == "hdf5" else write_zarr_recording
        yield DatasetPlan(
            summary=f"{len(recording.names)} episodes, {recording.steps:,} steps: {', '.join(recording.columns)}",
            losses=tuple(f"{name} has no place in {'robomimic' if to == 'hdf5' else 'diffusion_policy'}'s layout"
                         for name in recording.strangers),
            notes=tuple(notes),
            write=lambda: write(recording, target),
        )  # fmt: skip


def _without(recording: Recording, drop: Sequence[str]) -> Recording:
    kept = dict(recording.columns)
    for name in drop:
        gone = [column for column in kept if column == name or column.startswith(f"{name}/")]
        if not gone:
            raise DataError(f"{recording.path} has no '{name}' to drop; there are: {', '.join(recording.columns)}")
        if "actions" in gone:
            raise DataError("a dataset without actions is none: 'actions' cannot be dropped")
        for column in gone:
            del kept[column]
    return replace(recording, columns=kept)
