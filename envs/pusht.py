"""Push-T on gym-pusht, the pymunk simulation of diffusion_policy's environment."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.envs.base import Array
from diffpolicy_spec.envs.pusht_rules import PushTBase
from diffpolicy_spec.envs.tasks import Task
from diffpolicy_spec.optional import require

__all__ = ["PushTEnv", "build_pusht"]


class PushTEnv(PushTBase):
    """Push-T as gym-pusht simulates it; see `PushTBase` for observations, actions and rules.

    The same seed starts where diffusion_policy's evaluation starts (its `legacy_test`, seeds from 100000), and the
    physics are those its demonstrations were recorded with.

    Raises:
        ImportError: gym-pusht is not installed.
    """

    def __init__(self, task: str = "pusht", **kwargs: Any) -> None:
        super().__init__(task, **kwargs)
        height, width = self.render_size
        self._env = _gym_pusht().PushTEnv(
            obs_type="state", render_mode="rgb_array", visualization_width=width, visualization_height=height
        )

    def state(self) -> Array:
        """(5,): agent x, y, block x, y, angle, now; the angle is not wrapped."""
        agent, block = self._env.agent, self._env.block
        return np.array([*agent.position, *block.position, block.angle])

    def render(self) -> NDArray[np.uint8] | None:
        """The current frame with the last action as a cross, (H, W, 3) uint8; None without a render_mode."""
        if self.render_mode is None:
            return None
        return np.asarray(self._env.render(), dtype=np.uint8)

    def close(self) -> None:
        """Free the simulator; a second call does nothing."""
        super().close()
        self._env.close()

    def _image(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        height, width = size
        # gym-pusht's own way to an observation; its public one is bound to the size and kind chosen when it is made.
        return np.asarray(self._env._get_img(self._env._draw(), width=width, height=height), dtype=np.uint8)

    def _begin(self, draw: Array) -> None:
        # Given a state, gym-pusht draws nothing itself. It builds a new pymunk space, so nothing of an earlier episode
        # is left but the action that frames show.
        self._env.reset(seed=0, options={"reset_to_state": draw})
        self._env._last_action = None

    def _advance(self, action: Array) -> None:
        self._env.step(action)


def build_pusht(task: Task, *, action_repr: str, **kwargs: Any) -> PushTEnv:
    """What the task table names for Push-T on gym-pusht; `action_repr` is always "raw"."""
    return PushTEnv(task.name, **kwargs)


def _gym_pusht() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # a greeting on standard output
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pygame's own imports
        return require("gym_pusht.envs.pusht", extra="pusht", needed_by="the task pusht")
