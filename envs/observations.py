"""Observations under the names, and in the layout, that a policy was trained with."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.data.obs_map import ObsMap
from diffpolicy_spec.envs.base import Observation

__all__ = ["MappedObservations"]


class MappedObservations(gym.ObservationWrapper[Observation, NDArray[np.float64], Observation]):
    """Gives {name: (d,) float64} joined from the environment's observations, and images as (3, H, W) uint8.

    Args:
        env: gives everything the map names.
        names: what is observed.

    Raises:
        KeyError: the environment does not give what the map names.
    """

    def __init__(self, env: gym.Env[Any, Any], names: ObsMap) -> None:
        super().__init__(env)
        self.names = names
        space: Any = env.observation_space
        boxes: OrderedDict[str, gym.Space[Any]] = OrderedDict()
        for name, keys in names.vectors:
            size = sum(space[key].shape[0] for key in keys)
            boxes[name] = gym.spaces.Box(-np.inf, np.inf, (size,), np.float64)
        for name, key, _ in names.images:
            height, width, channels = space[key].shape
            boxes[name] = gym.spaces.Box(0, 255, (channels, height, width), np.uint8)
        self.observation_space = gym.spaces.Dict(boxes)

    def look(self, images: bool) -> None:
        """Say whether the next observations need images; without them they have the other names only."""
        self.env.unwrapped.observe_images = images  # type: ignore[attr-defined]

    def observation(self, observation: Observation) -> Observation:
        """The environment's observation by the names of the map."""
        out: Observation = {}
        for name, keys in self.names.vectors:
            out[name] = observation[keys[0]] if len(keys) == 1 else np.concatenate([observation[key] for key in keys])
        for name, key, _ in self.names.images:
            if key in observation:
                out[name] = np.ascontiguousarray(observation[key].transpose(2, 0, 1))
        return out
