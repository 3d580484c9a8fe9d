"""The user's own observations: from a dataset, or from a file of what the robot has seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffpolicy_spec.policies import DiffusionPolicy
from diffpolicy_spec.training.calibrate import draw_conditions
from diffpolicy_spec.training.observations import Names

__all__ = ["conditions_from_dataset", "conditions_from_file"]


def conditions_from_dataset(
    policy: DiffusionPolicy, dataset: Path, count: int, filter_key: str | None, seed: int, names: Names | None = None
) -> Tensor:
    """(count, To * Do) conditions of different moments of demonstrations; see `draw_conditions`.

    Raises:
        ValueError: fewer different moments than that; DataError (a ValueError): the dataset does not fit the policy.
        FileNotFoundError: no such dataset.
    """
    if not dataset.exists():
        raise FileNotFoundError(
            f"dataset {dataset} does not exist: give dataset=PATH, or observations=PATH of recorded observations"
        )
    conditions = draw_conditions(policy, dataset, count, filter_key, seed, names)
    if len(conditions.unique(dim=0)) < count:
        raise ValueError(f"{dataset} does not have {count} different observations: give a smaller num_observations")
    return conditions


def conditions_from_file(policy: DiffusionPolicy, path: Path, count: int, seed: int) -> Tensor:
    """Conditions of `count` observations drawn from an .npz or .safetensors file, in the order of the file.

    The file holds what `policy.predict_action` takes: for each key of the policy an array (M, To, d), in the
    observation's own units. With M <= count all of them are taken.

    Raises:
        ValueError: neither kind of file, unreadable, no observations, or (ObservationError) not what the policy
            observes.
        FileNotFoundError: no such file.
    """
    if not path.exists():
        raise FileNotFoundError(f"observations {path} do not exist")
    obs = _read(path)
    if not obs:
        raise ValueError(f"{path} holds no arrays; expected {', '.join(policy.config.obs_keys)}")
    conditions = policy.encode(obs).cpu()
    if len(conditions) == 0:
        raise ValueError(f"{path} holds no observations")
    order = torch.randperm(len(conditions), generator=torch.Generator().manual_seed(seed))
    return conditions[order[:count].sort().values]


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path} cannot be read as .npz: {error}") from error
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read as .safetensors: {error}") from error
    raise ValueError(f"observations {path}: an .npz or .safetensors file is expected")
