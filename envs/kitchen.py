"""Franka Kitchen on gymnasium-robotics, scored as diffusion_policy scores it: p_1 to p_7."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.envs.base import Observation, TaskEnv, checked_action
from diffpolicy_spec.envs.rendering import OffscreenRenderer
from diffpolicy_spec.envs.tasks import Task, get_task
from diffpolicy_spec.optional import require

__all__ = ["SUBTASKS", "SUCCESS_SUBTASKS", "KitchenEnv", "build_kitchen"]

SUBTASKS = ("bottom burner", "top burner", "light switch", "slide cabinet", "hinge cabinet", "microwave", "kettle")
SUCCESS_SUBTASKS = 4  # a demonstration completes four

# gymnasium-robotics' view: (m, rad) around a point of the world.
_DISTANCE, _AZIMUTH, _ELEVATION, _LOOK_AT = 2.2, np.deg2rad(70.0), np.deg2rad(-35.0), np.array([-0.2, 0.5, 2.0])
_CAMERA = "left_cap"  # a camera of the model, which looks at nothing useful: it is moved there


class KitchenEnv(TaskEnv):
    """A Franka arm does what it can of seven things in a kitchen, in any order: FrankaKitchen-v1, all of `SUBTASKS`.

    Observation: {"observation": (59,)} float64: the arm's 9 joint positions and 9 velocities, then 21 positions and 20
    velocities of the kitchen, with gymnasium-robotics' noise. (diffusion_policy's own build of this kitchen observes 60
    numbers, 30 positions and 30 zeros: its checkpoints do not fit.)

    Action (9,): joint velocities, +-1 is +-2 rad/s (m/s for the two fingers), clipped by the simulator.

    Reward is the part of the seven subtasks completed so far, n / 7, so an episode's largest reward is
    diffusion_policy's score, its summed rewards / 7. info["metrics"] has p_1 to p_7: p_n is 1.0 once at least n
    subtasks are completed, else 0.0; their means over episodes are diffusion_policy's p_n. info["success"] is p_4, what
    a demonstration does, for tables that have one number; the episode goes on until all seven are completed, or is
    truncated at the horizon. info["completed"] names the subtasks in the order in which they were completed.

    The episode is a function of the seed given to reset: the kitchen always starts in the same state, and the noise of
    the observations, which the arm's controller feels as well, is drawn from the seed.

    Args:
        task: name in the task table.
        render_mode: None or "rgb_array".
        terminate_on_success: whether an episode ends when all seven are completed.
        horizon: steps until truncation; default: the task's.
        render_size: (height, width) of frames, pixels.
        obs: the observations that are given; there is one, "observation".
        **kwargs: of gymnasium-robotics' environment: robot_noise_ratio, object_noise_ratio.

    Raises:
        ValueError: another render_mode, or a horizon below 1.
        ImportError: gymnasium-robotics is not installed.
    """

    def __init__(
        self,
        task: str = "kitchen",
        *,
        render_mode: str | None = None,
        terminate_on_success: bool = True,
        horizon: int | None = None,
        render_size: tuple[int, int] = (256, 256),
        obs: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            get_task(task), render_mode=render_mode, terminate_on_success=terminate_on_success, horizon=horizon, obs=obs
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (9,), np.float64)
        self.observation_space = gym.spaces.Dict(self._boxes())
        self._env = _kitchen().KitchenEnv(
            tasks_to_complete=list(SUBTASKS), terminate_on_tasks_completed=False, render_mode=None, **kwargs
        )
        self._renderer = OffscreenRenderer(_CAMERA, *render_size, hidden=()) if render_mode else None
        if self._renderer is not None:
            _move_camera(self._env.model)
        self._completed: list[str] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see gymnasium. `options` is not used.

        Returns:
            (observation, info) with info = {"success": bool, "completed": tuple, "metrics": {"p_1": float, ...}}.
        """
        self._check_open()
        super().reset(seed=seed)
        raw, _ = self._env.reset(seed=int(self.np_random.integers(2**31)))
        self._completed, self._elapsed = [], 0
        return self._observe(raw), self._info()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step of 0.08 s.

        Args:
            action: (9,).

        Raises:
            ActionError: before anything moves.
            ResetNeeded: before the first reset or after the end of the episode.
        """
        self._check_under_way()
        raw, _, _, _, told = self._env.step(checked_action(action, 9, "velocities of seven joints and two fingers"))
        # Several may be completed in one step; the simulator reports them in the order of a set.
        self._completed += sorted(set(told["step_task_completions"]) - set(self._completed))
        terminated, truncated = self._stepped(len(self._completed) == len(SUBTASKS))
        return self._observe(raw), len(self._completed) / len(SUBTASKS), terminated, truncated, self._info()

    def render(self) -> NDArray[np.uint8] | None:
        """The current frame, (H, W, 3) uint8; None without a render_mode. Has no influence on the simulation.

        Raises:
            RenderUnavailable: no offscreen OpenGL on this machine.
        """
        return None if self._renderer is None else self._renderer.frame(self._env.model, self._env.data)

    def close(self) -> None:
        """Free the renderer and the simulator; a second call does nothing."""
        if self._renderer is not None:
            self._renderer.close()
        if self._env is not None:
            self._env.close()
            self._env = None
        super().close()

    def _info(self) -> dict[str, Any]:
        done = len(self._completed)
        return {
            "success": done >= SUCCESS_SUBTASKS,
            "completed": tuple(self._completed),
            "metrics": {f"p_{n}": float(done >= n) for n in range(1, len(SUBTASKS) + 1)},
        }

    def _observe(self, raw: dict[str, Any]) -> Observation:
        return {key: np.array(raw[key], dtype=np.float64) for key in self.obs}


def build_kitchen(task: Task, *, action_repr: str, **kwargs: Any) -> KitchenEnv:
    """What the task table names for the kitchen; `action_repr` is always "raw"."""
    return KitchenEnv(task.name, **kwargs)


def _move_camera(model: Any) -> None:
    """Put a camera of the model where gymnasium-robotics' viewer looks from."""
    mujoco = require("mujoco", extra="kitchen")
    c, s = np.cos(_ELEVATION), np.sin(_ELEVATION)
    forward = np.array([c * np.cos(_AZIMUTH), c * np.sin(_AZIMUTH), s])
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    quaternion = np.empty(4)  # a camera looks along its -z, with y up
    mujoco.mju_mat2Quat(quaternion, np.stack([right, np.cross(right, forward), -forward], axis=1).ravel())
    camera = model.camera(_CAMERA)
    camera.pos, camera.quat, camera.fovy = _LOOK_AT - _DISTANCE * forward, quaternion, 45.0


def _kitchen() -> Any:
    with contextlib.redirect_stderr(io.StringIO()):  # notices about its other environments
        return require(
            "gymnasium_robotics.envs.franka_kitchen.kitchen_env", extra="kitchen", needed_by="the task kitchen"
        )
