"""The 10-D action that policies predict, on top of an environment with absolute 7-D actions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.envs.base import ActionError, checked_action
from diffpolicy_spec.rotations import actions_from_rot6d

__all__ = ["Rot6dActions"]


class Rot6dActions(gym.ActionWrapper[dict[str, NDArray[np.float64]], NDArray[np.float64], NDArray[np.float64]]):
    """Actions of 10 numbers per arm: position (3, m), first two rows of the rotation matrix (6), gripper (1).

    The rows need not be orthonormal: Gram-Schmidt makes them so, as in diffusion_policy.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        box = env.action_space
        if not isinstance(box, gym.spaces.Box) or box.shape is None or len(box.shape) != 1 or box.shape[0] % 7:
            raise ValueError(f"Rot6dActions needs absolute actions of 7 numbers per arm, got {box}")
        low, high = box.low.reshape(-1, 7), box.high.reshape(-1, 7)
        ones = np.ones((low.shape[0], 6))
        self.action_space = gym.spaces.Box(
            np.concatenate([low[:, :3], -ones, low[:, 6:]], axis=1).ravel(),
            np.concatenate([high[:, :3], ones, high[:, 6:]], axis=1).ravel(),
            dtype=np.float64,
        )

    def action(self, action: Any) -> NDArray[np.float64]:
        """(10 * arms,) -> (7 * arms,).

        Raises:
            ActionError: wrong shape, not finite, or rows that name no rotation; nothing has moved then.
        """
        size = self.action_space.shape[0]  # type: ignore[index]
        array = checked_action(action, size, "position, rot6d and gripper of each arm")
        try:
            return actions_from_rot6d(array)
        except ValueError as error:
            raise ActionError(f"{error}: {array}") from error
