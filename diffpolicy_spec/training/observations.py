"""What a policy observes, read from demonstrations: by its own names, by LeRobot's, joined, or as obs_map says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffpolicy_spec.data import DataError, Episode, observation_shapes, read_dataset
from diffpolicy_spec.data.obs_map import ObsMap, Offer, map_onto, obs_map_of
from diffpolicy_spec.policies import DiffusionPolicy
from diffpolicy_spec.policies.config import PolicyConfig

__all__ = ["Names", "episodes_for", "map_dataset"]

_LEROBOT_CAMERA = "observation.images."


@dataclass(frozen=True)
class Names:
    """What is known of the names of observations.

    Attributes:
        given: the setting `obs_map`: the policy's name -> the dataset's keys that are joined for it, or one key.
        joined: keys that diffusion_policy's single "obs" is made of, in this order, where a dataset has all of them.
        aliases: what LeRobot calls them: its name -> the dataset's key.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    joined: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> Names:
        """Of a command's settings `obs_map` and `task`.

        Raises:
            ValueError: an obs_map that is no mapping.
        """
        task = cfg["task"]
        given = obs_map_of(cfg["obs_map"], task["name"], [task["name"]])
        return cls(given, tuple(task["obs"]), task.get("aliases") or {})


def episodes_for(
    policy: DiffusionPolicy, dataset: Path, filter_key: str | None, names: Names | None = None
) -> list[Episode]:
    """Demonstrations with all that the policy observes, by its names; images stay in the file.

    Actions are as they are stored: they need not be what the policy's are.

    Raises:
        DataError: the dataset does not have it.
        FileNotFoundError: no such dataset.
    """
    config, shapes = policy.config, observation_shapes(dataset)
    found = map_dataset(config, dataset, shapes, names or Names())
    episodes = read_dataset(
        dataset, {key: shapes[key][0] for key in found.obs}, action_repr="raw", filter_key=filter_key,
        image_shapes={key: config.image_shapes[name] for name, key, _ in found.images},
    )  # fmt: skip
    return [_renamed(episode, found) for episode in episodes]


def map_dataset(policy: PolicyConfig, dataset: Path, shapes: Mapping[str, tuple[int, ...]], names: Names) -> ObsMap:
    """Which of a dataset's observations a policy's are, by the rules of `data.obs_map.map_onto`.

    Args:
        shapes: what the dataset has, see `data.observation_shapes`.

    Raises:
        DataError: observations that it does not have, or of other sizes; the message lists both sides.
    """
    vectors = {key: shape[0] for key, shape in shapes.items() if len(shape) == 1}
    images = {key: shape for key, shape in shapes.items() if len(shape) == 3}
    cameras = {_LEROBOT_CAMERA + name: key for key in images for name in (key, key.removesuffix("_image"))}
    seen = ", ".join(f"{key} {shape}" for key, shape in images.items())
    offer = Offer(
        where=str(dataset),
        vectors=vectors,
        joined=names.joined if set(names.joined) <= set(vectors) else (),
        images=images,
        aliases={**cameras, **names.aliases},
        described=(", ".join(f"{key} ({size})" for key, size in vectors.items()) or "no vectors")
        + (f"; images {seen} (height, width, channels)" if seen else "; no images"),
        otherwise="give the policy's own task=... or dataset=...",
    )
    try:
        found = map_onto(offer, policy.obs_dims, policy.image_shapes, names.given)
        found.sizes()
    except ValueError as error:
        raise DataError(str(error)) from error
    return found


def _renamed(episode: Episode, names: ObsMap) -> Episode:
    """The episode by the policy's names; what is joined is joined in the order that the map says."""
    obs = {name: np.concatenate([episode.obs[key] for key in keys], axis=1) for name, keys in names.vectors}
    return replace(episode, obs=obs, images={name: episode.images[key] for name, key, _ in names.images})
