"""robomimic's robosuite tasks as gymnasium environments: low-dimensional observations, absolute or delta actions."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
from collections import OrderedDict
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from numpy.typing import NDArray

from diffpolicy_spec.envs.rendering import OffscreenRenderer, RenderUnavailable
from diffpolicy_spec.envs.tasks import RobosuiteTask, UnknownTaskError, get_task
from diffpolicy_spec.optional import require

__all__ = ["ActionError", "RobosuiteEnv", "checked_action"]

Array = NDArray[np.float64]
Observation = dict[str, Array]

# Far outside a table-top arm's reach: they describe the units; nothing is clipped to them.
_ABSOLUTE_LOW = (-2.0, -2.0, 0.0, -2 * np.pi, -2 * np.pi, -2 * np.pi, -1.0)
_ABSOLUTE_HIGH = (2.0, 2.0, 3.0, 2 * np.pi, 2 * np.pi, 2 * np.pi, 1.0)


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


class RobosuiteEnv(gym.Env[Observation, Array]):
    """One task of the table on robosuite 1.5, driven through operational-space control of the gripper's pose.

    Observation: dict of float64 arrays, the task's keys in the task's order. robot0_eef_quat (xyzw) is the hand body's
    orientation, as in robomimic's datasets; actions command the grip site, which is turned by a fixed rotation
    against it (`eef_pose` gives the site's pose). "object" for Lift is cube_pos, cube_quat (xyzw) and
    gripper_to_cube_pos = cube_pos - eef_pos. (robosuite up to 1.4 had eef_pos - cube_pos there: datasets and
    checkpoints of that age need the sign of those three entries flipped.)

    Action, 7 numbers per arm: "absolute": position (m, world frame), axis-angle (rad, world frame), gripper (its sign:
    -1 opens, +1 closes); "delta": normalised to [-1, 1], +-5 cm and +-0.5 rad a step in the robot base's frame, and
    the gripper.

    Reward is 1.0 in states where the task is solved (robomimic's rule), else 0.0; the episode terminates there, or is
    truncated at the horizon. info["success"] tells whether it is solved now.

    The episode is a function of the seed given to reset: what ran before in this object or process makes no difference
    (the controller is rebuilt and MuJoCo's data cleared by every reset). The physical model is built once, from
    `model_seed`; robosuite draws the size of Lift's cube with it.

    Args:
        task: name in the task table.
        action_repr: "absolute" or "delta".
        render_mode: None or "rgb_array".
        terminate_on_success: False lets the episode run on to the horizon (recorders hold the last pose for a while).
        horizon: steps until truncation; default: the task's.
        model_seed: what the model's own randomness is drawn from.
        camera: what render() shows; default: the task's.
        render_size: (height, width) of frames, pixels.

    Raises:
        UnknownTaskError: no such task, or not one of robosuite's.
        ValueError: another action_repr or render_mode.
        ImportError: robosuite is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's own)

    def __init__(
        self,
        task: str = "lift",
        *,
        action_repr: str = "absolute",
        render_mode: str | None = None,
        terminate_on_success: bool = True,
        horizon: int | None = None,
        model_seed: int = 0,
        camera: str | None = None,
        render_size: tuple[int, int] = (256, 256),
    ) -> None:
        row = get_task(task)
        if not isinstance(row, RobosuiteTask):
            raise UnknownTaskError(f"task '{task}' is not simulated by robosuite: use make_env")
        self.task = row
        if action_repr not in ("absolute", "delta"):
            raise ValueError(f"action_repr must be 'absolute' or 'delta', got {action_repr!r}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        if horizon is not None and horizon < 1:
            raise ValueError(f"horizon must be at least 1 step, got {horizon}")
        self.action_repr = action_repr
        self.render_mode = render_mode
        self.horizon = self.task.horizon if horizon is None else horizon
        self.terminate_on_success = terminate_on_success

        arms = len(self.task.robots)
        low, high = (_ABSOLUTE_LOW, _ABSOLUTE_HIGH) if action_repr == "absolute" else ((-1.0,) * 7, (1.0,) * 7)
        self.action_space = gym.spaces.Box(np.tile(low, arms), np.tile(high, arms), dtype=np.float64)
        # An OrderedDict keeps the task's order; gymnasium sorts the keys of a plain dict.
        boxes = OrderedDict((key, gym.spaces.Box(-np.inf, np.inf, (size,), np.float64)) for key, size in self.task.obs)
        self.observation_space = gym.spaces.Dict(boxes)  # type: ignore[assignment]
        self._env_kwargs = _make_kwargs(self.task.robots, action_repr, self.task.control_freq)
        self._env = _robosuite().make(
            self.task.robosuite_name,
            **self._env_kwargs,
            seed=model_seed,
            ignore_done=True,
            hard_reset=False,
            has_renderer=False,
            has_offscreen_renderer=False,
            renderer="mujoco",  # with has_renderer=False: load no viewer at all
        )
        self._renderer = OffscreenRenderer(camera or self.task.camera, *render_size) if render_mode else None
        self._elapsed: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see gymnasium. `options` is not used.

        Returns:
            (observation, info) with info = {"success": bool}.
        """
        if self._env is None:
            raise ClosedEnvironmentError("reset() after close(): make a new environment")
        super().reset(seed=seed)
        # robosuite draws poses from env.rng, which its samplers share: set it in place, from our own generator.
        episode = np.random.default_rng(self.np_random.integers(2**63))
        self._env.rng.bit_generator.state = episode.bit_generator.state
        raw = self._env.reset()
        self._elapsed = 0
        return self._observation(raw), {"success": self.is_success()}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step (1 / control_freq s).

        Args:
            action: (7 * arms,).

        Raises:
            ActionError: before anything moves.
            ResetNeeded: before the first reset or after the end of the episode.
        """
        if self._elapsed is None:
            raise ResetNeeded("the episode is over or was never started: call reset() before step()")
        size = self.action_space.shape[0]  # type: ignore[index]
        array = checked_action(action, size, f"{self.action_repr} position, axis-angle and gripper of each arm")
        raw, _, _, _ = self._env.step(array)
        self._elapsed += 1
        success = self.is_success()
        terminated = success and self.terminate_on_success
        truncated = not terminated and self._elapsed >= self.horizon
        if terminated or truncated:
            self._elapsed = None
        return self._observation(raw), float(success), terminated, truncated, {"success": success}

    def render(self) -> NDArray[np.uint8] | None:
        """The current frame, (H, W, 3) uint8; None without a render_mode. Has no influence on the simulation.

        Raises:
            RenderUnavailable: no offscreen OpenGL on this machine.
        """
        if self._renderer is None:
            return None
        return self._renderer.frame(self._env.sim.model._model, self._env.sim.data._data)

    def close(self) -> None:
        """Free the renderer and the simulator; a second call does nothing."""
        if self._renderer is not None:
            self._renderer.close()
        if self._env is not None:
            self._env.close()
            self._env = None
        self._elapsed = None

    def is_success(self) -> bool:
        """robomimic's rule for the current state: robosuite's own `_check_success`."""
        return bool(self._env._check_success())

    def eef_pose(self, arm: int = 0) -> tuple[Array, Array]:
        """Pose that an absolute action commands, as it is now: position (3,) in m and matrix (3, 3), world frame."""
        robot, data = self._env.robots[arm], self._env.sim.data
        site = robot.eef_site_id[robot.arms[0]]
        return data.site_xpos[site].copy(), data.site_xmat[site].reshape(3, 3).copy()

    def sim_state(self) -> Array:
        """(1 + nq + nv,): time, qpos, qvel, as robomimic stores them under `states`."""
        return np.array(self._env.sim.get_state().flatten(), dtype=np.float64)

    def model_xml(self) -> str:
        """MuJoCo's model of this environment, as robomimic stores it in the attribute `model_file`."""
        return str(self._env.sim.model.get_xml())

    def env_args(self) -> dict[str, Any]:
        """What robomimic's tools rebuild the environment from (the dataset attribute `env_args`, as JSON)."""
        return {
            "env_name": self.task.robosuite_name,
            "env_version": _robosuite().__version__,
            "type": 1,  # robomimic's EnvType.ROBOSUITE_TYPE
            "env_kwargs": json.loads(json.dumps(self._env_kwargs)),
        }

    def _observation(self, raw: dict[str, Any]) -> Observation:
        out = {}
        for key, size in self.task.obs:
            value = np.array(raw["object-state" if key == "object" else key], dtype=np.float64)
            if value.shape != (size,):
                raise RuntimeError(f"robosuite gave {key} of shape {value.shape}; the task table says ({size},)")
            out[key] = value
        return out


def _make_kwargs(robots: tuple[str, ...], action_repr: str, control_freq: int) -> dict[str, Any]:
    suite = _robosuite()
    controllers = [suite.load_composite_controller_config(robot=robot) for robot in robots]
    for config in controllers:
        for part in config["body_parts"].values():
            if action_repr == "absolute":
                part.update(input_type="absolute", input_ref_frame="world")
    return {
        "robots": list(robots),
        "controller_configs": controllers[0] if len(controllers) == 1 else controllers,
        "control_freq": control_freq,
        "use_object_obs": True,
        "use_camera_obs": False,
        "reward_shaping": False,
        "lite_physics": True,
    }


def _robosuite() -> ModuleType | Any:
    """robosuite, imported so that it changes nothing around it.

    It advises on optional parts when imported and notes every controller file it reads: both are logged below errors,
    and only warnings are kept. It also sets MUJOCO_GL=egl, with which importing MuJoCo fails in a child process where
    there is no libEGL: that is undone.

    Raises:
        ImportError: not installed.
        RenderUnavailable: MUJOCO_GL names a library that MuJoCo cannot load.
    """
    if sys.modules.get("robosuite") is not None:
        return sys.modules["robosuite"]
    chosen = os.environ.get("MUJOCO_GL")
    try:
        require("mujoco", extra="sim")
    except Exception as error:
        if chosen is None or importlib.util.find_spec("mujoco") is None:
            raise
        raise RenderUnavailable(
            f"MuJoCo cannot be imported with MUJOCO_GL={chosen} ({error}): unset it, or install the library it names"
        ) from error
    logger = logging.getLogger("robosuite_logs")

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(errors_only)  # a level would not last: the import sets its own
    try:
        module = require("robosuite", extra="sim")
    finally:
        logger.removeFilter(errors_only)
        if chosen is None:
            os.environ.pop("MUJOCO_GL", None)
        else:
            os.environ["MUJOCO_GL"] = chosen
    logger.setLevel(logging.WARNING)
    return module
