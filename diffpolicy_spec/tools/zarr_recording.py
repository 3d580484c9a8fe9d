"""diffusion_policy's replay buffers as a `Recording`, and written from one.

Layout (diffusion_policy, `common/replay_buffer.py`): `data/<key> (T, ...)`, `meta/episode_ends (E,)`, zarr format 2.
What robomimic's files have beside that is carried where diffusion_policy does not mind it: step arrays in `data`; in
`meta` masks (`mask.<name>`, (E,) bool) and long texts of episodes (`text.<name>`, bytes, with `.ends`); and which is
which in the attribute `robomimic` of the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.data.zarr_store import check_array, open_store, read_zarr, write_store
from diffpolicy_spec.tools.recording import Block, Column, Recording, block_rows

__all__ = ["FORMAT", "open_zarr_recording", "write_zarr_recording", "zarr_names"]

FORMAT = "diffusion_policy zarr"
NOTE = "robomimic"  # the attribute

_LONG = 1000  # characters; longer texts go into arrays, where they are compressed


@contextmanager
def open_zarr_recording(path: str | Path) -> Iterator[Recording]:
    """Describe a replay buffer; its rows can be read within the context.

    Raises:
        FileNotFoundError, PermissionError, ImportError: see `data.zarr_store.open_store`.
        DataError: not a zarr store, or not a replay buffer.
    """
    path = Path(path)
    with open_store(path) as root:
        yield _describe(root, path)


def _describe(root: Any, path: Path) -> Recording:
    data, meta = root.get("data"), root.get("meta")
    if not hasattr(data, "array_keys") or not hasattr(meta, "array_keys") or "episode_ends" not in meta:
        raise DataError(f"{path} has no 'data' and 'meta/episode_ends': not a replay buffer of diffusion_policy")
    ends = read_zarr(meta["episode_ends"], f"{path}: 'meta/episode_ends'")
    if (
        ends.ndim != 1
        or not len(ends)
        or ends.dtype.kind not in "iu"
        or (np.diff(ends.astype(object), prepend=0) <= 0).any()
    ):
        raise DataError(f"{path}: meta/episode_ends must be increasing whole numbers, one an episode")
    note, problems = _note(root, path), []
    named: Mapping[str, str] = note.get("columns", {})
    columns, arrays = {}, {}
    for key in sorted(data.array_keys()):
        column = named.get(key) or ("actions" if key == "action" else f"obs/{key}")
        where = f"{path}: 'data/{key}'"
        try:
            check_array(data[key], where)
        except DataError as error:
            problems.append(str(error).removeprefix(f"{path}: "))
            continue
        array = data[key]
        if array.ndim == 0 or array.shape[0] != int(ends[-1]):
            problems.append(f"'data/{key}' has shape {array.shape}, episode_ends end at {ends[-1]}")
            continue
        columns[column], arrays[column] = Column(tuple(array.shape[1:]), np.dtype(array.dtype)), (array, where)
    if "actions" not in columns:
        problems.append("'data' has no usable 'action'")
    names = note.get("names")
    if not isinstance(names, list) or len(names) != len(ends) or not all(isinstance(n, str) for n in names):
        names = [f"demo_{i}" for i in range(len(ends))]
    masks, texts, strangers = _meta(meta, len(ends), path, problems)
    short = note.get("episodes")
    each = short if isinstance(short, list) and len(short) == len(ends) else [{} for _ in names]
    given = note.get("attributes", {})
    return Recording(
        path=path,
        format=FORMAT,
        names=tuple(names),
        lengths=tuple(int(n) for n in np.diff(ends.astype(np.int64), prepend=0)),
        columns=columns,
        read=lambda column: _read(*arrays[column], ends.astype(np.int64)),
        masks=masks,
        attributes=given if isinstance(given, dict) else {},
        episode_attributes=tuple({**short, **{k: v[i] for k, v in texts.items()}} for i, short in enumerate(each)),
        problems=tuple(problems),
        strangers=(*strangers, *(f"attribute '{key}'" for key in root.attrs if key != NOTE)),
    )


def _note(root: Any, path: Path) -> dict[str, Any]:
    note = root.attrs.get(NOTE, {})
    columns = note.get("columns", {}) if isinstance(note, dict) else None
    if not isinstance(columns, dict) or not all(isinstance(v, str) for v in columns.values()):
        raise DataError(f"{path}: the attribute '{NOTE}' is not what dps-convert writes")
    return dict(note)


def _meta(
    meta: Any, episodes: int, path: Path, problems: list[str]
) -> tuple[dict[str, tuple[int, ...]], dict[str, list[str]], list[str]]:
    """Masks, texts of episodes, and names of what else there is."""
    masks: dict[str, tuple[int, ...]] = {}
    texts: dict[str, list[str]] = {}
    strangers = []
    for key in sorted(meta.array_keys()):
        if key == "episode_ends" or (key.startswith("text.") and key.endswith(".ends")):
            continue
        kind, _, name = key.partition(".")
        if kind not in ("mask", "text") or not name:
            strangers.append(f"'meta/{key}'")
            continue
        values = read_zarr(meta[key], f"{path}: 'meta/{key}'")
        if kind == "mask":
            if values.shape == (episodes,):
                masks[name] = tuple(int(i) for i in np.flatnonzero(values))
            else:
                problems.append(f"'meta/{key}' has shape {values.shape}, expected ({episodes},)")
            continue
        ends = read_zarr(meta[f"{key}.ends"], f"{path}: 'meta/{key}.ends'") if f"{key}.ends" in meta else np.zeros(0)
        if values.dtype != np.uint8 or ends.shape != (episodes,) or (np.diff(ends, prepend=0) < 0).any():
            problems.append(f"'meta/{key}' is not a text of each episode")
            continue
        starts = [0, *(int(e) for e in ends[:-1])]
        texts[name] = [values[a : int(b)].tobytes().decode(errors="replace") for a, b in zip(starts, ends, strict=True)]
    return masks, texts, strangers


def _read(array: Any, where: str, ends: NDArray[np.int64]) -> Iterator[Block]:
    """Every chunk is read once, though episodes end within chunks."""
    row_bytes = array.nbytes // max(1, array.shape[0])
    size, starts = block_rows(row_bytes, array.chunks[0]), np.concatenate([[0], ends[:-1]])
    episode = 0
    for begin in range(0, array.shape[0], size):
        rows = read_zarr(array, where, slice(begin, begin + size))
        at = begin
        while at < begin + len(rows):
            stop = min(int(ends[episode]), begin + len(rows))
            yield Block(episode, at - int(starts[episode]), rows[at - begin : stop - begin])
            episode += stop == ends[episode]
            at = stop


def zarr_names(recording: Recording) -> dict[str, str]:
    """Column -> its name in `data`: the action is "action", observations go by their keys.

    Raises:
        DataError: two columns would have one name.
    """
    names: dict[str, str] = {}
    for column in recording.columns:
        name = "action" if column == "actions" else column.removeprefix("obs/").replace("/", ".")
        if name in names.values():
            other = next(c for c, n in names.items() if n == name)
            raise DataError(f"{recording.path}: '{other}' and '{column}' would both be 'data/{name}' of a zarr store")
        names[column] = name
    return names


def write_zarr_recording(recording: Recording, path: str | Path) -> None:
    """Write a replay buffer, a folder or a .zip; it appears whole or not at all. A frame of images is a chunk.

    Raises:
        ImportError: zarr is not installed.
        DataError: names that collide, or what is read turns out to be damaged.
    """
    names = zarr_names(recording)
    long = sorted({k for each in recording.episode_attributes for k, v in each.items() if len(str(v)) > _LONG})
    note = {
        "columns": {names[column]: column for column in recording.columns},
        "names": list(recording.names),
        "attributes": {k: _plain(v) for k, v in recording.attributes.items()},
        "episodes": [{k: _plain(v) for k, v in e.items() if k not in long} for e in recording.episode_attributes],
    }

    def fill(root: Any) -> None:
        data, meta = root.create_group("data"), root.create_group("meta")
        for column, kind in recording.columns.items():
            _fill_array(data, names[column], recording, column, kind)
        meta.create_array("episode_ends", data=np.cumsum(recording.lengths).astype(np.int64))
        for key, members in recording.masks.items():
            meta.create_array(f"mask.{key}", data=np.isin(np.arange(len(recording.names)), members))
        for key in long:
            texts = [str(each.get(key, "")).encode() for each in recording.episode_attributes]
            meta.create_array(f"text.{key}", data=np.frombuffer(b"".join(texts), np.uint8))
            meta.create_array(f"text.{key}.ends", data=np.cumsum([len(t) for t in texts]).astype(np.int64))

    write_store(path, fill, attributes={NOTE: note})


def _fill_array(group: Any, name: str, recording: Recording, column: str, kind: Column) -> None:
    """Rows are gathered to whole chunks: a zip store cannot write one twice."""
    shape = kind.original or kind.shape
    size = 1 if kind.is_image else min(recording.steps, block_rows(kind.row_bytes))
    array = group.create_array(name, shape=(recording.steps, *shape), chunks=(size, *shape), dtype=kind.dtype)
    step = block_rows(kind.row_bytes, size)
    waiting: list[NDArray[Any]] = []
    written = held = 0
    for block in recording.read(column):
        waiting.append(block.rows)
        held += len(block.rows)
        if held >= step or written + held == recording.steps:
            rows = np.concatenate(waiting).reshape(-1, *shape)
            whole = held if written + held == recording.steps else held // size * size
            array[written : written + whole] = rows[:whole]
            waiting, held, written = [rows[whole:].reshape(-1, *kind.shape)], held - whole, written + whole


def _plain(value: Any) -> Any:
    """An attribute as JSON has it."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    try:
        json.dumps(value)
    except TypeError:
        return str(value)
    return value
