"""What the environments of the task table share: checks, spaces, and the course of an episode."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from numpy.typing import NDArray

from diffpolicy_spec.envs.rendering import checked_size
from diffpolicy_spec.envs.tasks import Task

__all__ = ["ActionError", "Array", "Observation", "TaskEnv", "checked_action"]

Array = NDArray[np.float64]
Observation = dict[str, NDArray[Any]]


class ActionError(ValueError):
    """An action that must not reach the robot: wrong shape, not a number, infinite."""


def checked_action(action: Any, size: int, meaning: str) -> Array:
    """The action as float64 of shape (size,).

    Raises:
        ActionError: another shape, or entries that are not finite numbers; nothing has moved then.
    """
    try:
        array = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ActionError(f"the action is not an array of numbers: {error}") from error
    if array.shape != (size,):
        raise ActionError(f"the action must have shape ({size},) = {meaning}, got {array.shape}")
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array)).tolist()
        raise ActionError(f"the action has NaN or infinite entries at {bad}: {array}")
    return array


class TaskEnv(gym.Env[Observation, Array]):
    """Base of the environments.

    Args:
        task: row of the task table.
        render_mode: None or "rgb_array".
        terminate_on_success: False lets the episode run on to the horizon.
        horizon: steps until truncation; default: the task's.
        obs: low-dimensional observations that are given, in this order; None: `task.obs`.
        images: image observation -> its (height, width), pixels; given after the others as (H, W, 3) uint8.

    Attributes:
        observe_images: whether the next observations have images. Drawing costs more than simulating: who looks at
            only some of the steps says so before each.

    Raises:
        ValueError: another render_mode, a horizon below 1, or observations that the task does not have.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's own)
    task: Task

    def __init__(
        self,
        task: Task,
        *,
        render_mode: str | None,
        terminate_on_success: bool,
        horizon: int | None,
        obs: Sequence[str] | None = None,
        images: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        if horizon is not None and horizon < 1:
            raise ValueError(f"horizon must be at least 1 step, got {horizon}")
        if isinstance(obs, str):
            raise ValueError(f"obs must be a list of observations, got {obs!r}")
        self.task = task
        self.obs = dict(task.obs) if obs is None else {key: task.size_of(key) for key in obs}
        self.images = {key: checked_size(size) for key, size in (images or {}).items()}
        self.observe_images = True
        self.metadata = {**self.metadata, "render_fps": task.control_freq}
        self.render_mode = render_mode
        self.terminate_on_success = terminate_on_success
        self.horizon = task.horizon if horizon is None else horizon
        self._elapsed: int | None = None  # None: there is no episode under way
        self._closed = False

    def _boxes(self) -> OrderedDict[str, gym.Space[Any]]:
        """Spaces of the observation, in its order; gymnasium sorts the keys of a plain dict."""
        boxes: OrderedDict[str, gym.Space[Any]] = OrderedDict()
        for key, size in self.obs.items():
            boxes[key] = gym.spaces.Box(-np.inf, np.inf, (size,), np.float64)
        for key, (height, width) in self.images.items():
            boxes[key] = gym.spaces.Box(0, 255, (height, width, 3), np.uint8)
        return boxes

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedEnvironmentError("reset() after close(): make a new environment")

    def _check_under_way(self) -> None:
        if self._elapsed is None:
            raise ResetNeeded("the episode is over or was never started: call reset() before step()")

    def _stepped(self, solved: bool) -> tuple[bool, bool]:
        """Count a step: (terminated, truncated)."""
        assert self._elapsed is not None
        self._elapsed += 1
        terminated = solved and self.terminate_on_success
        truncated = not terminated and self._elapsed >= self.horizon
        if terminated or truncated:
            self._elapsed = None
        return terminated, truncated

    def close(self) -> None:
        """End the use of this environment; a second call does nothing."""
        self._closed, self._elapsed = True, None
