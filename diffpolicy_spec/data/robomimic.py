"""Reader of robomimic's hdf5 files.

Layout (robomimic.github.io, "Dataset contents and visualization"): `data/demo_i/actions (N, A)`,
`data/demo_i/obs/<key> (N, d)`, of cameras (N, H, W, C), and `mask/<filter key>` with the names of the demonstrations
that belong to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.data.episodes import Episode
from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.data.frames import Frames, check_images
from diffpolicy_spec.data.hdf5_file import check_dataset, open_hdf5, read_hdf5
from diffpolicy_spec.data.image_sources import ImageFile, hdf5_images
from diffpolicy_spec.data.split import FIXED_SPLIT, split_by_seed
from diffpolicy_spec.rotations import ACTION_REPRS, actions_to_rot6d

__all__ = ["convert_actions", "read_robomimic", "robomimic_shapes"]


def read_robomimic(
    path: str | Path,
    obs_dims: Mapping[str, int],
    *,
    action_repr: str = "absolute_rot6d",
    filter_key: str | None = None,
    action_key: str = "actions",
    image_shapes: Mapping[str, tuple[int, int, int]] | None = None,
) -> list[Episode]:
    """Read demonstrations into memory; images stay in the file.

    Args:
        path: the hdf5 file.
        obs_dims: observation keys to read -> their expected dimensions.
        action_repr: "absolute_rot6d" turns each arm's 7-D absolute action into 10-D (`rotations.actions_to_rot6d`);
            the others leave the actions as they are.
        filter_key: read only the demonstrations that `mask/<filter_key>` names; None reads all. In a file without
            masks "train" and "valid" are a fixed random split, 90 % and 10 %.
        action_key: "actions", or "actions_abs" in files of robomimic 0.5.
        image_shapes: cameras to read -> (C, H, W).

    Returns:
        Episodes, in the order of their numbers.

    Raises:
        FileNotFoundError: no such file.
        DataError: not an hdf5 file, not robomimic's layout, missing keys or demonstrations, wrong dimensions,
            values that are not finite; the message says where.
        ImportError: h5py is not installed.
    """
    with open_hdf5(path) as file:
        names, images = _names(file, path, filter_key), ImageFile(path)
        episodes = []
        for name in names:
            group, where = file["data"][name], f"{path}: {name}"
            episode = _episode(group, where, obs_dims, action_repr, action_key)
            seen = {c: _frames(images, group, where, c, s, len(episode)) for c, s in (image_shapes or {}).items()}
            episodes.append(replace(episode, images=seen))
        return episodes


def robomimic_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Observations of the first demonstration -> shape of one step's: (d,), of cameras (H, W, C). Nothing is read.

    Raises:
        FileNotFoundError, DataError, ImportError: as `read_robomimic`.
    """
    with open_hdf5(path) as file:
        group = file["data"][_names(file, path, None)[0]]
        obs = group.get("obs") if hasattr(group, "keys") else {}
        found = {key: obs.get(key) for key in obs} if hasattr(obs, "keys") else {}
        shapes = {key: getattr(item, "shape", None) or () for key, item in found.items()}
        return {key: tuple(shape[1:]) for key, shape in shapes.items() if len(shape) in (2, 4)}


def _names(file: Any, path: str | Path, filter_key: str | None) -> list[str]:
    if "data" not in file or not hasattr(file["data"], "keys") or len(file["data"]) == 0:
        raise DataError(f"{path} has no 'data/demo_i' groups: not a robomimic dataset")
    there = list(file["data"])
    if filter_key is None:
        names = there
    elif filter_key in ("train", "valid") and "mask" not in file:
        there = sorted(there, key=_number)
        names = [there[i] for i in split_by_seed(range(len(there)), FIXED_SPLIT)[filter_key == "valid"]]
        if not names:
            raise DataError(f"{path} has one demonstration, too few for a '{filter_key}' part: read all (null)")
    else:
        masks = list(file["mask"]) if "mask" in file and hasattr(file["mask"], "keys") else []
        if filter_key not in masks:
            raise DataError(f"{path} has no mask/{filter_key}; masks there: {', '.join(sorted(masks)) or 'none'}")
        listed = read_hdf5(file["mask"][filter_key], f"{path}: mask/{filter_key}").ravel()
        names = [n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in listed]
        missing = sorted(set(names) - set(there))
        if missing:
            raise DataError(f"{path}: mask/{filter_key} names demonstrations that are not there: {', '.join(missing)}")
        if not names:
            raise DataError(f"{path}: mask/{filter_key} names no demonstrations")
    return sorted(names, key=_number)


def _number(name: str) -> tuple[int, str]:
    """demo_10 comes after demo_9; names without a number come first."""
    digits = name.rpartition("_")[2]
    return (int(digits) if digits.isdigit() else -1, name)


def _episode(group: Any, where: str, obs_dims: Mapping[str, int], action_repr: str, action_key: str) -> Episode:
    if not hasattr(group, "keys"):
        raise DataError(f"{where} is an array, expected a group with '{action_key}' and 'obs'")
    if action_key not in group:
        raise DataError(f"{where} has no '{action_key}'; there are: {', '.join(sorted(group)) or 'none'}")
    available: Sequence[str] = sorted(group["obs"]) if "obs" in group and hasattr(group["obs"], "keys") else []
    obs = {}
    for key, dim in obs_dims.items():
        if key not in available:
            raise DataError(f"{where} has no 'obs/{key}'; there are: {', '.join(available) or 'none'}")
        stored = group["obs"][key]
        check_dataset(stored, f"{where}: 'obs/{key}'")
        if stored.ndim != 2 or stored.shape[1] != dim:
            raise DataError(f"{where}: 'obs/{key}' has shape {stored.shape}, expected (N, {dim})")
        steps = getattr(group[action_key], "shape", None)
        if steps and steps[0] not in (0, stored.shape[0]):  # before it is read: it may unpack to any size
            raise DataError(f"{where}: 'obs/{key}' has shape {stored.shape}, expected ({steps[0]}, {dim})")
        values = read_hdf5(stored, f"{where}: 'obs/{key}'")
        obs[key] = _numbers(values, where, f"obs/{key}").astype(np.float32)
    actions = convert_actions(read_hdf5(group[action_key], f"{where}: '{action_key}'"), where, action_repr)
    return Episode(where, obs, actions)


def _frames(file: ImageFile, group: Any, where: str, camera: str, shape: tuple[int, int, int], steps: int) -> Frames:
    """One camera's images, checked in shape and left where they are."""
    where = f"{where}: 'obs/{camera}'"
    if "obs" not in group or camera not in group["obs"]:
        there = sorted(group["obs"]) if "obs" in group else []
        raise DataError(f"{where} is not there; there are: {', '.join(there) or 'none'}")
    dataset = group["obs"][camera]
    check_dataset(dataset, where)
    check_images(dataset.shape, dataset.dtype, steps, shape, where)
    return Frames(where, hdf5_images(file, dataset), 0, steps, dataset.shape[1:])


def _numbers(values: NDArray[Any], where: str, key: str) -> NDArray[Any]:
    if values.dtype.kind not in "biuf":
        raise DataError(f"{where}: '{key}' holds {values.dtype}, expected numbers")
    return values


def convert_actions(actions: NDArray[Any], where: str, action_repr: str) -> NDArray[np.float32]:
    """(N, A) stored actions -> (N, Da) in the policy's representation; `where` is for messages.

    Raises:
        DataError: not two-dimensional, or not what the representation is made from.
    """
    _numbers(actions, where, "actions")
    if actions.ndim != 2:
        raise DataError(f"{where}: actions have shape {actions.shape}, expected (N, A)")
    if action_repr in ("absolute", "delta", "raw"):
        return actions.astype(np.float32)
    if action_repr != "absolute_rot6d":
        raise DataError(f"action_repr '{action_repr}' is not known: {', '.join(ACTION_REPRS)}")
    steps, dim = actions.shape
    if dim == 0 or dim % 7:
        raise DataError(f"{where}: absolute_rot6d needs 7 action dimensions an arm, got {dim}")
    # Checked here too, because the conversion would smear one NaN over the whole rotation.
    if not np.isfinite(actions).all():
        raise DataError(f"{where}: 'actions' holds NaN or infinity")
    # Converted in float64: rot6d of a rotation near pi loses digits in float32.
    per_arm = actions_to_rot6d(actions.astype(np.float64).reshape(steps, dim // 7, 7))
    return per_arm.reshape(steps, dim // 7 * 10).astype(np.float32)
