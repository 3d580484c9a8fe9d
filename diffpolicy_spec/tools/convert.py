"""Checkpoints and datasets from one format into another; what would be lost is told before anything is written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffpolicy_spec.atomic import atomic_folder
from diffpolicy_spec.checkpoints.lerobot import lerobot_losses, write_lerobot
from diffpolicy_spec.checkpoints.native import CONFIG
from diffpolicy_spec.checkpoints.shipped import load_policy, shipped_names
from diffpolicy_spec.tools.convert_dataset import plan_dataset
from diffpolicy_spec.tools.kinds import kind_of

__all__ = ["TARGETS", "ConversionError", "Plan", "convert", "plan_conversion"]

TARGETS = ("native", "lerobot", "zarr", "hdf5")
"""What can be written: two kinds of checkpoints, two of datasets."""

_SUFFIXES = {".zarr": "zarr", ".zip": "zarr", ".hdf5": "hdf5", ".h5": "hdf5"}


class ConversionError(ValueError):
    """What is asked for cannot be done, or would lose something; the message says what, and what to do."""


@dataclass(frozen=True)
class Plan:
    """A conversion that has not begun.

    Attributes:
        summary: what is converted into what.
        losses: what the target cannot hold and would be missed, as sentences.
        notes: what else a user should know.
        write: does it; the target appears whole or not at all.
    """

    summary: str
    losses: tuple[str, ...]
    notes: tuple[str, ...]
    write: Callable[[], None]


def convert(
    source: str | Path,
    target: str | Path,
    to: str | None = None,
    *,
    overwrite: bool = False,
    allow_loss: bool = False,
    drop: Sequence[str] = (),
    storage_dtype: str = "float32",
    compress: bool = True,
    tell: Callable[[str], object] = print,
) -> None:
    """Write `source` as `target`, in another format.

    Args:
        to: one of TARGETS; None: what the target's name ends in, and "native" for a checkpoint.
        overwrite: replace a target that is there, if it is of the kind that is written.
        allow_loss: go on though something of weight is lost.
        drop: columns of a dataset to leave out, see `plan_dataset`.
        storage_dtype: of a native checkpoint's weights, "float32" or "float16".
        compress: images of an hdf5 file.
        tell: takes each sentence of the plan before anything is written.

    Raises:
        ConversionError: formats that have no way between them, a target that is there, or a loss without allow_loss.
        CheckpointError, DataError, FileNotFoundError, PermissionError, ImportError: the source cannot be read.
    """
    _, to = _formats(source, Path(target), to)
    _check_target(Path(target), to, overwrite)
    with plan_conversion(source, target, to, drop=drop, storage_dtype=storage_dtype, compress=compress) as plan:
        for sentence in (plan.summary, *(f"note: {n}" for n in plan.notes), *(f"lost: {loss}" for loss in plan.losses)):
            tell(sentence)
        if plan.losses and not allow_loss:
            raise ConversionError(f"nothing is written, {target} would lack what is named above: --allow-loss goes on")
        plan.write()


@contextmanager
def plan_conversion(
    source: str | Path,
    target: str | Path,
    to: str | None = None,
    *,
    drop: Sequence[str] = (),
    storage_dtype: str = "float32",
    compress: bool = True,
) -> Iterator[Plan]:
    """What `convert` would do; arguments and errors as there. Written within the context, by the plan's `write`."""
    target = Path(target)
    kind, to = _formats(source, target, to)
    if not compress and to != "hdf5":
        raise ConversionError(f"images are stored uncompressed in hdf5 files only, not in {to}")
    if kind != "checkpoint":
        with plan_dataset(Path(source), kind, target, to, drop, compress=compress) as planned:
            yield Plan(f"{source} ({kind}) -> {target} ({to}): {planned.summary}", planned.losses, planned.notes,
                       planned.write)  # fmt: skip
        return
    if drop:
        raise ConversionError("a checkpoint has no columns to drop")
    yield from _plan_checkpoint(source, target, to, storage_dtype)


def _formats(source: str | Path, target: Path, to: str | None) -> tuple[str, str]:
    """What the source is ("checkpoint", "hdf5", "zarr"), and what it shall become: one of TARGETS."""
    shipped = isinstance(source, str) and source in shipped_names()
    kind = "checkpoint" if shipped else kind_of(Path(source))
    if to is None:
        to = _SUFFIXES.get(target.suffix, "native" if kind == "checkpoint" else None)
    if to not in TARGETS:
        raise ConversionError(f"say what {target} shall be: --to {' or '.join(TARGETS)}")
    if not shipped and _same(Path(source), target):
        raise ConversionError(f"{target} would replace what it is made from: give another name")
    if kind == "lerobot dataset":
        raise ConversionError(f"{source} is a LeRobot dataset, which is not converted here")
    if (kind == "checkpoint") != (to in ("native", "lerobot")):
        what = "checkpoint" if kind == "checkpoint" else f"dataset ({kind})"
        raise ConversionError(f"{source} is a {what}; it cannot become {to}")
    return kind, to


def _plan_checkpoint(source: str | Path, target: Path, to: str, storage_dtype: str) -> Iterator[Plan]:
    policy = load_policy(source)
    parameters = sum(p.numel() for p in policy.network.parameters())
    origin = str(policy.origin.get("format", "native")) if policy.origin else "native"
    summary = f"{source} ({origin}, {parameters / 1e6:.2f} M parameters) -> {target} ({to})"
    if to == "native":
        training = {"converted_from": Path(source).name}
        notes = tuple(policy.notes)
        if storage_dtype != "float32":
            notes = (*notes, f"weights are rounded to {storage_dtype}: what was calibrated for them no longer fits")
        yield Plan(summary, (), notes, lambda: policy.save(target, storage_dtype=storage_dtype,
                                                                         training=training))  # fmt: skip
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
    try:
        # Written aside first: what LeRobot cannot hold is known when it has been written.
        told = write_lerobot(policy, fresh / target.name)
        losses = tuple(lerobot_losses(policy))
        notes = tuple(sentence for sentence in told if sentence not in losses)
        yield Plan(summary, losses, notes, lambda: _take_place(fresh / target.name, target))
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _take_place(fresh: Path, target: Path) -> None:
    with atomic_folder(target) as folder:
        for file in fresh.iterdir():
            file.rename(folder / file.name)


def _check_target(target: Path, to: str, overwrite: bool) -> None:
    """Raise ConversionError where something is at the target that may not be replaced by one of TARGETS."""
    if not target.exists() and not target.is_symlink():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    if not overwrite:
        raise ConversionError(f"{target} exists: --overwrite replaces it")
    dataset = to in ("zarr", "hdf5")
    same = kind_of(target) == to if dataset else (target / CONFIG).is_file()
    if not same:
        what = "folder" if target.is_dir() else "file"
        raise ConversionError(f"{target} is a {what} of something else than {to}, and is not replaced")


def _same(source: Path, target: Path) -> bool:
    a, b = source.resolve(), target.resolve()
    return a == b or a in b.parents or b in a.parents
