"""robomimic's hdf5 files as a `Recording`, and written from one.

Layout (robomimic.github.io, "Dataset contents and visualization"): `data/demo_i/{actions, states, rewards, dones}`,
`obs/<key>` and `next_obs/<key>`, attributes `num_samples` and `model_file`; of `data`: `total` and `env_args`;
`mask/<filter key>`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diffpolicy_spec.atomic import write_atomically
from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.data.hdf5_file import check_dataset, open_hdf5, read_hdf5
from diffpolicy_spec.optional import require
from diffpolicy_spec.tools.recording import Block, Column, Recording, block_rows

__all__ = ["FORMAT", "open_hdf5_recording", "write_hdf5_recording"]

FORMAT = "robomimic hdf5"

# Written by the writer from what it writes.
_COUNTED = ("num_samples", "total")


@contextmanager
def open_hdf5_recording(path: str | Path) -> Iterator[Recording]:
    """Describe a robomimic file; its rows can be read within the context.

    Raises:
        FileNotFoundError, PermissionError, ImportError: see `data.hdf5_file.open_hdf5`.
        DataError: not an hdf5 file, not robomimic's layout, or no demonstration that could be read.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        yield _describe(file, path)


def _describe(file: Any, path: Path) -> Recording:
    if "data" not in file or not hasattr(file["data"], "keys") or not len(file["data"]):
        raise DataError(f"{path} has no 'data/demo_i' groups: not a robomimic dataset")
    data, problems, strangers = file["data"], [], [f"/{name}" for name in file if name not in ("data", "mask")]
    demos: dict[str, dict[str, Column]] = {}
    lengths: dict[str, int] = {}
    for name in sorted(data, key=_number):
        group = data.get(name)
        if not hasattr(group, "keys"):
            problems.append(f"data/{name} is not a demonstration")
            continue
        columns, rows = _columns(group, f"{path}: {name}", problems)
        if not rows:
            problems.append(f"{name} has no actions" if rows is None else f"{name} has no steps")
            continue
        demos[name], lengths[name] = columns, rows
    if not demos:
        raise DataError(f"{path} has no demonstration with actions: {'; '.join(problems[:3])}")
    names = list(demos)
    shared: dict[str, Column] = {}
    for key in dict.fromkeys(key for columns in demos.values() for key in columns):
        there = [name for name in names if key in demos[name]]
        kinds = {demos[name][key] for name in there}
        if len(there) < len(names):
            lacking = next(name for name in names if key not in demos[name])
            problems.append(f"'{key}' is not in all demonstrations: {lacking} has none")
        elif len(kinds) > 1:
            problems.append(f"'{key}' has rows of several shapes or types: {_kinds(kinds)}")
        else:
            shared[key] = kinds.pop()
    number = {name: i for i, name in enumerate(names)}
    return Recording(
        path=path,
        format=FORMAT,
        names=tuple(names),
        lengths=tuple(lengths.values()),
        columns=shared,
        read=lambda key: _read(data, names, key, path),
        masks=_masks(file, number, problems, path),
        attributes={k: v for k, v in data.attrs.items() if k not in _COUNTED},
        episode_attributes=tuple({k: v for k, v in data[n].attrs.items() if k not in _COUNTED} for n in names),
        problems=tuple(problems),
        strangers=tuple(strangers),
    )


def _columns(group: Any, where: str, problems: list[str]) -> tuple[dict[str, Column], int | None]:
    """Arrays of a demonstration, and its steps; None without actions."""
    found: dict[str, Any] = {}
    for name in group:
        item = group.get(name)
        if hasattr(item, "keys"):
            found |= {f"{name}/{key}": item.get(key) for key in item}
        else:
            found[name] = item
    if not hasattr(found.get("actions"), "shape"):
        return {}, None
    rows, columns = len(found["actions"]) if found["actions"].shape else 0, {}
    for key, item in found.items():
        try:
            check_dataset(item, f"{where}: '{key}'")
        except DataError as error:
            problems.append(str(error).removeprefix(f"{where.partition(': ')[0]}: "))
            continue
        if not item.shape or item.shape[0] != rows:
            problems.append(f"{group.name}: '{key}' has shape {item.shape}, the actions have {rows} rows")
        elif item.dtype.kind not in "biuf":
            problems.append(f"{group.name}: '{key}' holds {item.dtype}, expected numbers")
        else:
            original = tuple(int(n) for n in item.attrs["shape"]) if "shape" in item.attrs else None
            columns[key] = Column(tuple(item.shape[1:]), item.dtype, original)
    return columns, rows


def _read(data: Any, names: list[str], key: str, path: Path) -> Iterator[Block]:
    for episode, name in enumerate(names):
        dataset, where = data[name][key], f"{path}: {name}: '{key}'"
        row_bytes = dataset.nbytes // max(1, len(dataset))
        size = block_rows(row_bytes, dataset.chunks[0] if dataset.chunks else 1)
        for start in range(0, len(dataset), size):
            yield Block(episode, start, read_hdf5(dataset, where, slice(start, start + size)))


def _masks(file: Any, number: dict[str, int], problems: list[str], path: Path) -> dict[str, tuple[int, ...]]:
    masks = {}
    if "mask" in file and not hasattr(file["mask"], "keys"):
        problems.append("'mask' is an array, expected a group")
        return {}
    for key in file.get("mask", ()):
        listed = read_hdf5(file["mask"][key], f"{path}: mask/{key}").ravel()
        members = [n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in listed]
        missing = [n for n in members if n not in number]
        if missing:
            problems.append(f"mask/{key} names demonstrations that are not there: {', '.join(missing[:3])}")
        masks[key] = tuple(number[n] for n in members if n in number)
    return masks


def _number(name: str) -> tuple[int, str]:
    """demo_10 comes after demo_9."""
    digits = name.rpartition("_")[2]
    return (int(digits) if digits.isdecimal() and len(digits) < 18 else -1, name)


def _kinds(kinds: set[Column]) -> str:
    return ", ".join(sorted(f"{c.dtype} {c.shape}" for c in kinds))


def write_hdf5_recording(recording: Recording, path: str | Path, *, compress: bool = True) -> None:
    """Write a robomimic file; it appears whole or not at all.

    Args:
        compress: store images frame by frame with gzip; otherwise as they are, which training maps into memory.

    Raises:
        ImportError: h5py is not installed.
        DataError: what is read turns out to be damaged.
    """
    h5py = require("h5py", extra="data", needed_by="writing a robomimic dataset")

    def fill(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            data = file.create_group("data")
            data.attrs["total"] = recording.steps
            for key, value in recording.attributes.items():
                data.attrs[key] = value
            groups = [data.create_group(name) for name in recording.names]
            for group, length in zip(groups, recording.lengths, strict=True):
                group.attrs["num_samples"] = length
            for group, attributes in zip(groups, recording.episode_attributes, strict=False):
                for key, value in attributes.items():
                    group.attrs[key] = value
            for key, column in recording.columns.items():
                _fill_column(groups, recording, key, column, compress)
            for key, members in recording.masks.items():
                file.create_dataset(f"mask/{key}", data=np.array([recording.names[i] for i in members], dtype="S"))

    write_atomically(path, fill)


def _fill_column(groups: list[Any], recording: Recording, key: str, column: Column, compress: bool) -> None:
    # robomimic's observations are vectors or images.
    flat = 1 < len(column.shape) and not column.is_image
    shape = (int(np.prod(column.shape)),) if flat else (column.original or column.shape)
    packed = column.is_image and compress
    kept = {"chunks": (1, *shape), "compression": "gzip", "compression_opts": 1} if packed else {}
    datasets = []
    for group, length in zip(groups, recording.lengths, strict=True):
        datasets.append(group.create_dataset(key, shape=(length, *shape), dtype=column.dtype, **kept))
        if flat:
            datasets[-1].attrs["shape"] = column.shape
    for block in recording.read(key):
        rows = block.rows.reshape(len(block.rows), *shape)
        datasets[block.episode][block.offset : block.offset + len(rows)] = rows
