"""Recorded episodes: a small file each while recording, one robomimic hdf5 in the end; each appears whole or never."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.atomic import write_atomically
from diffpolicy_spec.data.split import split_by_seed
from diffpolicy_spec.optional import require

__all__ = ["Episode", "load_episode", "save_episode", "split_by_seed", "write_robomimic"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Episode:
    """One episode of N steps; row i is the state before action i, as robomimic has it.

    Attributes:
        seed: given to the environment's reset.
        success: whether it counts as a demonstration.
        actions: (N, A).
        states: (N, S), flattened simulator states: time, qpos, qvel.
        obs: key -> (N, d).
        rewards: (N,), after the action.
        dones: (N,) int, 1 where the task is solved or the recording ends (robomimic's done_mode 2).
    """

    seed: int
    success: bool
    actions: Array
    states: Array
    obs: dict[str, Array]
    rewards: Array
    dones: NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.actions)
        rows = {"states": self.states, "rewards": self.rewards, "dones": self.dones}
        rows |= {f"obs/{key}": value for key, value in self.obs.items()}
        wrong = {key: value.shape for key, value in rows.items() if len(value) != n}
        if n == 0 or wrong:
            raise ValueError(f"an episode needs one row per action and at least one: {n} actions, {wrong}")


def save_episode(path: Path, episode: Episode) -> None:
    """Write one episode (numpy's npz), atomically: a reader sees all of it or no file."""
    arrays = {f"obs/{key}": value for key, value in episode.obs.items()}
    names = ("seed", "success", "actions", "states", "rewards", "dones")
    arrays |= {name: np.asarray(getattr(episode, name)) for name in names}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, numpy would append .npz
            np.savez(file, **arrays)

    write_atomically(path, write)


def load_episode(path: Path) -> Episode:
    """Read what `save_episode` wrote."""
    with np.load(path, allow_pickle=False) as data:
        return Episode(
            seed=int(data["seed"]),
            success=bool(data["success"]),
            actions=data["actions"],
            states=data["states"],
            obs={key.removeprefix("obs/"): data[key] for key in data.files if key.startswith("obs/")},
            rewards=data["rewards"],
            dones=data["dones"],
        )


def write_robomimic(
    path: Path, episodes: Iterable[Episode], *, env_args: dict[str, Any], model_xml: str, seed: int
) -> int:
    """Write a robomimic hdf5, atomically: data/demo_i, in the order given, and the filters mask/train and mask/valid.

    Args:
        path: replaced if there is one.
        episodes: at least one.
        env_args: attribute `env_args` of `data`, from which robomimic rebuilds the environment.
        model_xml: attribute `model_file` of each demonstration.
        seed: attribute `seed` of `data`; the split comes from it, see `split_by_seed`.

    Returns:
        Steps in all.

    Raises:
        ImportError: h5py is not installed.
    """
    h5py = require("h5py", extra="sim")
    total, seeds = 0, []

    def write(temporary: Path) -> None:
        nonlocal total
        with h5py.File(temporary, "w") as file:
            data = file.create_group("data")
            for i, episode in enumerate(episodes):
                group = data.create_group(f"demo_{i}")
                group.attrs["num_samples"] = len(episode.actions)
                group.attrs["seed"] = episode.seed
                group.attrs["model_file"] = model_xml
                for name in ("actions", "states", "rewards", "dones"):
                    group.create_dataset(name, data=getattr(episode, name))
                for key, value in episode.obs.items():
                    group.create_dataset(f"obs/{key}", data=value)
                total += len(episode.actions)
                seeds.append(episode.seed)
            if not seeds:
                raise ValueError("there is no episode to write")
            data.attrs["total"] = total
            data.attrs["env_args"] = json.dumps(env_args, indent=4)
            data.attrs["seed"] = seed
            for name, members in zip(("train", "valid"), split_by_seed(seeds, seed), strict=True):
                file.create_dataset(f"mask/{name}", data=np.array(sorted(f"demo_{i}" for i in members), dtype="S"))

    write_atomically(path, write)
    return total
