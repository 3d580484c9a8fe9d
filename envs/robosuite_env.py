"""robomimic's robosuite tasks as gymnasium environments: state and image observations, absolute or delta actions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.envs.base import Array, Observation, TaskEnv, checked_action
from diffpolicy_spec.envs.controllers import modern_controllers, with_action_repr
from diffpolicy_spec.envs.object_layout import OBJECT_LAYOUTS, old_object_layout
from diffpolicy_spec.envs.rendering import OffscreenRenderer
from diffpolicy_spec.envs.suite import load_robosuite
from diffpolicy_spec.envs.tasks import RobosuiteTask, UnknownTaskError, get_task

__all__ = ["RobosuiteEnv"]

# Far outside a table-top arm's reach: they describe the units; nothing is clipped to them.
_ABSOLUTE_LOW = (-2.0, -2.0, 0.0, -2 * np.pi, -2 * np.pi, -2 * np.pi, -1.0)
_ABSOLUTE_HIGH = (2.0, 2.0, 3.0, 2 * np.pi, 2 * np.pi, 2 * np.pi, 1.0)


class RobosuiteEnv(TaskEnv):
    """One task of the table on robosuite 1.5, driven through operational-space control of the gripper's pose.

    Observation: dict of float64 arrays, the task's keys in the task's order. robot0_eef_quat (xyzw) is the hand body's
    orientation, as in robomimic's datasets; actions command the grip site, which is turned by a fixed rotation
    against it (`eef_pose` gives the site's pose). "object" is robosuite 1.5's "object-state". For Lift it is cube_pos,
    cube_quat (xyzw) and gripper_to_cube_pos = cube_pos - eef_pos; for the others see `object_layout`, which tells
    what robosuite up to 1.4 had there. With `cameras`, "<camera>_image" follows for each: (H, W, 3) uint8, the right
    way up, as in robomimic's datasets; `images` does the same for images of several sizes. `obs` asks for others of
    the task's low-dimensional observations, e.g. robot0_joint_pos.

    Action, 7 numbers per arm: "absolute": position (m, world frame), axis-angle (rad, world frame), gripper (its sign:
    -1 opens, +1 closes); "delta": normalised to [-1, 1], +-5 cm and +-0.5 rad a step in the frame of each robot's own
    base, and the gripper. `env_kwargs` with other controller settings changes frames and ranges.

    Reward is 1.0 in states where the task is solved (robomimic's rule), else 0.0; the episode terminates there, or is
    truncated at the horizon. info["success"] tells whether it is solved now.

    The episode is a function of the seed given to reset: what ran before in this object or process makes no difference
    (the controller is rebuilt and MuJoCo's data cleared by every reset). The physical model is built once, from
    `model_seed`; robosuite draws the size of Lift's cube and of Transport's hammer with it.

    Args:
        task: name in the task table.
        action_repr: "absolute" or "delta".
        render_mode: None or "rgb_array".
        cameras: whose images are observed; robomimic's are `get_task(task).image_cameras`.
        image_size: of these images, pixels: one number or (height, width).
        obs: low-dimensional observations that are given, in this order; None: the task's `obs`.
        images: "<camera>_image" -> (height, width), besides those of `cameras`.
        terminate_on_success: False lets the episode run on to the horizon (recorders hold the last pose for a while).
        horizon: steps until truncation; default: the task's.
        model_seed: what the model's own randomness is drawn from.
        camera: what render() shows; default: the task's.
        render_size: (height, width) of frames, pixels.
        env_kwargs: arguments of robosuite.make that replace the task's; see `make_env_from_args`.
        object_layout: "1.5", or "1.4" for policies and data of robosuite up to 1.4; see `old_object_layout`.

    Raises:
        UnknownTaskError: no such task, or not one of robosuite's.
        ControllerError: `env_kwargs` names a controller that is not known.
        ValueError: another action_repr, render_mode or object_layout; there is no such observation or camera.
        ImportError: robosuite is not installed.
    """

    task: RobosuiteTask

    def __init__(
        self,
        task: str = "lift",
        *,
        action_repr: str = "absolute",
        render_mode: str | None = None,
        cameras: Sequence[str] = (),
        image_size: int | tuple[int, int] = 84,
        obs: Sequence[str] | None = None,
        images: Mapping[str, tuple[int, int]] | None = None,
        terminate_on_success: bool = True,
        horizon: int | None = None,
        model_seed: int = 0,
        camera: str | None = None,
        render_size: tuple[int, int] = (256, 256),
        env_kwargs: Mapping[str, Any] | None = None,
        object_layout: str = "1.5",
    ) -> None:
        row = get_task(task)
        if not isinstance(row, RobosuiteTask):
            raise UnknownTaskError(f"task '{task}' is not simulated by robosuite: use make_env")
        if isinstance(cameras, str):
            raise ValueError(f"cameras must be a list of names, got {cameras!r}")
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        images = {**{f"{name}_image": size for name in cameras}, **(images or {})}
        no_camera = [key for key in images if not key.endswith("_image")]
        if no_camera:
            raise ValueError(f"images are named <camera>_image, got {', '.join(no_camera)}")
        super().__init__(
            row, render_mode=render_mode, terminate_on_success=terminate_on_success, horizon=horizon, obs=obs,
            images=images,
        )  # fmt: skip
        if action_repr not in ("absolute", "delta"):
            raise ValueError(f"action_repr must be 'absolute' or 'delta', got {action_repr!r}")
        if object_layout not in OBJECT_LAYOUTS:
            raise ValueError(f"object_layout must be one of {', '.join(OBJECT_LAYOUTS)}, got {object_layout!r}")
        self.action_repr = action_repr
        self.cameras = tuple(key.removesuffix("_image") for key in self.images)
        self.object_layout = object_layout

        arms = len(self.task.robots)
        low, high = (_ABSOLUTE_LOW, _ABSOLUTE_HIGH) if action_repr == "absolute" else ((-1.0,) * 7, (1.0,) * 7)
        self.action_space = gym.spaces.Box(np.tile(low, arms), np.tile(high, arms), dtype=np.float64)
        self.observation_space = gym.spaces.Dict(self._boxes())
        self._env_kwargs = _make_kwargs(self.task, action_repr, env_kwargs or {})
        self.metadata = {**TaskEnv.metadata, "render_fps": self._env_kwargs["control_freq"]}
        self._env = load_robosuite().make(
            self.task.robosuite_name,
            **self._env_kwargs,
            use_object_obs=True,
            use_camera_obs=False,
            reward_shaping=False,
            seed=model_seed,
            ignore_done=True,
            hard_reset=False,
            has_renderer=False,
            has_offscreen_renderer=False,
            renderer="mujoco",  # with has_renderer=False: load no viewer at all
        )
        self._renderer: OffscreenRenderer | None = None
        if render_mode is not None or self.cameras:
            self._renderer = OffscreenRenderer(camera or self.task.camera, *render_size)
            there = self._env.sim.model.camera_names
            missing = [name for name in self.cameras if name not in there]
            if missing:
                raise ValueError(f"the model has no camera {', '.join(missing)}; it has {', '.join(there)}")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see gymnasium.

        Args:
            seed: of the episode.
            options: {"state": (1 + nq + nv,)} starts it in a stored state (`sim_state`, or `states` of a dataset made
                with the same model), as robomimic's `reset_to` does: the controller still remembers the pose that was
                drawn, so the same seed is needed for the same episode.

        Returns:
            (observation, info) with info = {"success": bool}.

        Raises:
            ValueError: the state does not fit the model.
            RenderUnavailable: images are observed and there is no offscreen OpenGL.
        """
        self._check_open()
        super().reset(seed=seed)
        # robosuite draws poses from env.rng, which its samplers share: set it in place, from our own generator.
        episode = np.random.default_rng(self.np_random.integers(2**63))
        self._env.rng.bit_generator.state = episode.bit_generator.state
        raw = self._env.reset()
        state = (options or {}).get("state")
        if state is not None:
            raw = self._restore(state)
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
        self._check_under_way()
        size = self.action_space.shape[0]
        array = checked_action(action, size, f"{self.action_repr} position, axis-angle and gripper of each arm")
        raw, _, _, _ = self._env.step(array)
        success = self.is_success()
        terminated, truncated = self._stepped(success)
        return self._observation(raw), float(success), terminated, truncated, {"success": success}

    def render(self) -> NDArray[np.uint8] | None:
        """The current frame, (H, W, 3) uint8; None without a render_mode. Has no influence on the simulation.

        Raises:
            RenderUnavailable: no offscreen OpenGL on this machine.
        """
        if self._renderer is None or self.render_mode is None:
            return None
        return self._renderer.frame(self._env.sim.model._model, self._env.sim.data._data)

    def close(self) -> None:
        """Free the renderer and the simulator; a second call does nothing."""
        if self._renderer is not None:
            self._renderer.close()
        if self._env is not None:
            self._env.close()
            self._env = None
        super().close()

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
        """What robomimic's tools and `make_env_from_args` rebuild the environment from.

        Plain data, the dataset attribute `env_args`. "object_layout" is only there where it is not the version's.
        """
        kwargs = {**self._env_kwargs, "use_object_obs": True, "use_camera_obs": False, "reward_shaping": False}
        if self.cameras:
            kwargs |= {"use_camera_obs": True, "camera_names": self.cameras, "camera_depths": False}
            for name, sizes in zip(("heights", "widths"), zip(*self.images.values(), strict=True), strict=True):
                kwargs[f"camera_{name}"] = sizes[0] if len(set(sizes)) == 1 else sizes
        layout = {} if self.object_layout == "1.5" else {"object_layout": self.object_layout}
        args = {
            "env_name": self.task.robosuite_name,
            "env_version": load_robosuite().__version__,
            "type": 1,  # robomimic's EnvType.ROBOSUITE_TYPE
            "env_kwargs": kwargs,
            **layout,
        }
        plain: dict[str, Any] = json.loads(json.dumps(args))
        return plain

    def _restore(self, state: Any) -> dict[str, Any]:
        array, size = np.asarray(state, dtype=np.float64), self.sim_state().shape
        if array.shape != size or not np.isfinite(array).all():
            raise ValueError(f"the state must be finite numbers of shape {size}: time, qpos, qvel; got {array.shape}")
        self._env.sim.set_state_from_flattened(array)
        self._env.sim.forward()
        raw: dict[str, Any] = self._env._get_observations(force_update=True)
        return raw

    def _observation(self, raw: dict[str, Any]) -> Observation:
        found = {}
        # The old layout of "object" is made with the gripper's pose, whether that is observed or not.
        for key, size in {**self.obs, **(dict(self.task.obs) if self.object_layout == "1.4" else {})}.items():
            value = np.array(raw["object-state" if key == "object" else key], dtype=np.float64)
            if value.shape != (size,):
                raise RuntimeError(f"robosuite gave {key} of shape {value.shape}; the task table says ({size},)")
            found[key] = value
        if self.object_layout == "1.4":
            found["object"] = old_object_layout(self.task.name, found)
        out: Observation = {key: found[key] for key in self.obs}
        if self._renderer is not None and self.observe_images:
            sim = self._env.sim
            for name, (key, size) in zip(self.cameras, self.images.items(), strict=True):
                out[key] = self._renderer.frame(sim.model._model, sim.data._data, name, size)
        return out


def _make_kwargs(task: RobosuiteTask, action_repr: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of robosuite.make that say what is simulated, plain data."""
    kwargs = {"robots": list(task.robots), "control_freq": task.control_freq, "lite_physics": True, **given}
    controllers = modern_controllers(kwargs.get("controller_configs"), kwargs["robots"])
    controllers = with_action_repr(controllers, action_repr)
    kwargs["controller_configs"] = controllers[0] if len(controllers) == 1 else controllers
    return kwargs
