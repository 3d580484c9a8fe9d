"""One reader for all formats: which one a path holds is seen from the path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffpolicy_spec.data.episodes import Episode
from diffpolicy_spec.data.replay_buffer import read_replay_buffer, replay_buffer_shapes
from diffpolicy_spec.data.robomimic import read_robomimic, robomimic_shapes

__all__ = ["observation_shapes", "read_dataset"]


def read_dataset(
    path: str | Path,
    obs_dims: Mapping[str, int],
    *,
    action_repr: str,
    filter_key: str | None = None,
    action_key: str | None = None,
    image_shapes: Mapping[str, tuple[int, int, int]] | None = None,
) -> list[Episode]:
    """Read demonstrations into memory: a folder, *.zarr or *.zip is a replay buffer, another file a robomimic hdf5.

    Args:
        path: the dataset.
        obs_dims: observation keys to read -> their expected dimensions.
        action_repr: what the policy's actions are, see the readers.
        filter_key: a part of the dataset, e.g. "train"; None: all of it.
        action_key: the array of the actions; None: the format's own, "actions" of robomimic, "action" of zarr.
        image_shapes: cameras to read -> (C, H, W); their images stay in the file.

    Raises:
        FileNotFoundError, DataError, ImportError: as `read_robomimic` and `read_replay_buffer`.
    """
    options: dict[str, Any] = {"action_repr": action_repr, "filter_key": filter_key, "image_shapes": image_shapes}
    if action_key is not None:
        options["action_key"] = action_key
    return (read_replay_buffer if _is_store(path) else read_robomimic)(path, obs_dims, **options)


def observation_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """What can be read with `read_dataset`: observation -> shape of one step's, (d,), of cameras (H, W, C).

    Raises:
        FileNotFoundError, DataError, ImportError: as `read_dataset`.
    """
    return (replay_buffer_shapes if _is_store(path) else robomimic_shapes)(path)


def _is_store(path: str | Path) -> bool:
    return Path(path).is_dir() or Path(path).suffix in (".zarr", ".zip")
