"""diffusion_policy's replay buffers: zarr stores, a folder or a .zip, read into episodes and written.

Layout (diffusion_policy, `common/replay_buffer.py`): `data/<key> (T, ...)`, all episodes one after the other, and
`meta/episode_ends (E,)`, the row after the last one of each. The stores are of zarr's format 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffpolicy_spec.data.episodes import Episode
from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.data.frames import Frames, check_images
from diffpolicy_spec.data.image_sources import ImageFile, StoredImages
from diffpolicy_spec.data.robomimic import convert_actions
from diffpolicy_spec.data.split import FIXED_SPLIT, split_by_seed
from diffpolicy_spec.data.zarr_store import check_array, open_store, read_zarr, write_store

__all__ = ["IMAGE_SOURCES", "SOURCES", "read_replay_buffer", "replay_buffer_shapes", "write_replay_buffer"]

# Observations that a store may hold as columns of another array: key -> (array, columns).
# Push-T: state is agent x, y, block x, y, angle.
SOURCES: dict[str, tuple[str, slice]] = {"agent_pos": ("state", slice(0, 2))}

# Cameras that a store may hold under another name: Push-T's.
IMAGE_SOURCES = {"image": "img"}


def read_replay_buffer(
    path: str | Path,
    obs_dims: Mapping[str, int],
    *,
    action_repr: str = "raw",
    filter_key: str | None = None,
    action_key: str = "action",
    image_shapes: Mapping[str, tuple[int, int, int]] | None = None,
) -> list[Episode]:
    """Read demonstrations into memory; images stay in the store.

    An observation `key` is `data/<key>`, its rows flattened: keypoints (T, 9, 2) are 18 numbers. A key in `SOURCES` is
    taken from there where the store has no array of its own.

    Args:
        path: the store, a folder or a .zip of one.
        obs_dims: observation keys to read -> their expected dimensions.
        action_repr: "raw", "absolute" and "delta" leave the actions as they are; "absolute_rot6d" turns 7 numbers an
            arm into 10.
        filter_key: "train" or "valid": that part of a fixed random split, 90 % and 10 % of the episodes; None: all.
        action_key: the array of the actions.
        image_shapes: cameras to read -> (C, H, W); `data/<camera>` is (T, H, W, C), uint8 or floats of 0 to 255.

    Returns:
        Episodes, in the order of the store.

    Raises:
        FileNotFoundError: no such store.
        DataError: not a replay buffer, missing keys, wrong dimensions, episode_ends that do not fit the data, values
            that are not finite; the message says where.
        ImportError: zarr is not installed.
    """
    if filter_key not in (None, "train", "valid"):
        raise DataError(f"{path} is a zarr store, which has 'train' and 'valid' (a fixed split), not {filter_key!r}")
    with open_store(path) as root:
        actions = _array(root, "data", action_key, path)
        ends = _ends(root, len(actions), path)
        obs = {key: _observation(root, key, dim, len(actions), path) for key, dim in obs_dims.items()}
        images = {c: _images(root, c, shape, len(actions), path) for c, shape in (image_shapes or {}).items()}
    starts = np.concatenate([[0], ends[:-1]])
    chosen: Sequence[int] = range(len(ends))
    if filter_key is not None:
        chosen = split_by_seed(chosen, FIXED_SPLIT)[filter_key == "valid"]
        if not chosen:
            raise DataError(f"{path} has {len(ends)} episode, too few for a '{filter_key}' part: read all (null)")
    episodes = []
    for i in chosen:
        rows, where = slice(int(starts[i]), int(ends[i])), f"{path}: episode {i}"
        seen = {key: values[rows].astype(np.float32) for key, values in obs.items()}
        frames = {
            camera: Frames(f"{where}: '{source.name}'", source, rows.start, rows.stop - rows.start, shape)
            for camera, (source, shape) in images.items()
        }
        episodes.append(Episode(where, seen, convert_actions(actions[rows], where, action_repr), frames))
    return episodes


def replay_buffer_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Observations of a store -> shape of one step's, as they are read: (d,), of cameras (H, W, C). Nothing is read.

    Raises:
        FileNotFoundError, DataError, ImportError: as `read_replay_buffer`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    with open_store(path) as root:
        data = root.get("data")
        for key in sorted(data.array_keys()) if hasattr(data, "array_keys") else []:
            try:
                shape = tuple(data[key].shape)
            except Exception:  # a codec that is not installed: it cannot be observed
                continue
            if shape and key != "action":
                image = len(shape) == 4 and shape[-1] in (1, 3, 4)
                shapes[key] = shape[1:] if image else (int(np.prod(shape[1:], dtype=object)),)
    for key, (source, columns) in SOURCES.items():
        if key not in shapes and len(shapes.get(source, ())) == 1:
            shapes[key] = (len(range(*columns.indices(shapes[source][0]))),)
    for camera, source in IMAGE_SOURCES.items():
        if camera not in shapes and len(shapes.get(source, ())) == 3:
            shapes[camera] = shapes.pop(source)
    return shapes


def write_replay_buffer(path: str | Path, data: Mapping[str, ArrayLike], episode_ends: ArrayLike) -> None:
    """Write a store that diffusion_policy reads, too; it appears whole or not at all.

    Args:
        path: a folder, e.g. "pusht.zarr", or a file that ends in .zip; replaced if there is one.
        data: key -> (T, ...), all episodes one after the other; "action" among them.
        episode_ends: (E,) row after the last one of each episode; the last is T.

    Raises:
        DataError: arrays of different lengths, or episode_ends that do not fit them.
        ImportError: zarr is not installed.
    """
    arrays = {key: np.asarray(values) for key, values in data.items()}
    lengths = {key: len(values) if values.ndim else 0 for key, values in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"{path}: arrays must have one row per step each, got {lengths}")
    ends = _checked_ends(np.asarray(episode_ends), next(iter(lengths.values())), path)

    def fill(root: Any) -> None:
        group = root.create_group("data")
        for key, values in arrays.items():
            group.create_array(key, data=values)
        root.create_group("meta").create_array("episode_ends", data=ends)

    write_store(path, fill)


def _array(root: Any, group: str, key: str, path: str | Path) -> NDArray[Any]:
    """One array, whole."""
    parent: Any = root.get(group)
    if not hasattr(parent, "array_keys") or key not in parent:
        there = sorted(parent.array_keys()) if hasattr(parent, "array_keys") else []
        raise DataError(f"{path} has no '{group}/{key}'; there are: {', '.join(there) or 'none'}")
    array = read_zarr(parent[key], f"{path}: '{group}/{key}'")
    if array.ndim == 0:
        raise DataError(f"{path}: '{group}/{key}' is one number, expected rows")
    return array


def _observation(root: Any, key: str, dim: int, rows: int, path: str | Path) -> NDArray[Any]:
    """(T, dim)."""
    source, columns = key, slice(None)
    if f"data/{key}" not in root and key in SOURCES:
        source, columns = SOURCES[key]
    stored = _array(root, "data", source, path)
    if len(stored) != rows:
        raise DataError(f"{path}: 'data/{source}' has {len(stored)} rows, the actions have {rows}")
    values = stored.reshape(rows, -1)[:, columns]
    if values.shape[1] != dim:
        raise DataError(f"{path}: '{key}' has {values.shape[1]} numbers a step ({stored.shape}), expected {dim}")
    return values


def _images(
    root: Any, camera: str, shape: tuple[int, int, int], rows: int, path: str | Path
) -> tuple[StoredImages, tuple[int, int, int]]:
    """A camera's array, checked in shape, and (H, W, C)."""
    data, name = root["data"], camera
    if camera not in data and camera in IMAGE_SOURCES:
        name = IMAGE_SOURCES[camera]
    where = f"{path}: 'data/{name}'"
    if name not in data:
        raise DataError(f"{where} is not there; there are: {', '.join(sorted(data.array_keys())) or 'none'}")
    try:
        array = data[name]
    except Exception as error:  # a codec that is not installed shows when the array is opened
        raise DataError(f"{where} cannot be read: {' '.join(str(error).split())[:300]}") from error
    check_array(array, where)
    check_images(array.shape, array.dtype, rows, shape, where)
    return StoredImages(ImageFile(path), f"data/{name}"), tuple(array.shape[1:])


def _ends(root: Any, rows: int, path: str | Path) -> NDArray[np.int64]:
    return _checked_ends(_array(root, "meta", "episode_ends", path), rows, path)


def _checked_ends(ends: NDArray[Any], rows: int, path: str | Path) -> NDArray[np.int64]:
    where = f"{path}: meta/episode_ends"
    if ends.ndim != 1 or not len(ends) or not np.issubdtype(ends.dtype, np.integer):
        raise DataError(f"{where} must be whole numbers, one an episode, got {ends.dtype} of shape {ends.shape}")
    ends = ends.astype(np.int64)
    steps = np.diff(ends, prepend=0)
    if (steps <= 0).any():
        i = int(np.argmax(steps <= 0))
        raise DataError(f"{where} must increase: episode {i} ends at {ends[i]} and has {steps[i]} steps")
    if ends[-1] != rows:
        raise DataError(f"{where} ends at {ends[-1]}, the data has {rows} rows")
    return ends
