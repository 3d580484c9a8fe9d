"""Environments from a robomimic dataset's `env_args`: what it was recorded in, on today's robosuite."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from diffpolicy_spec.envs.controllers import action_repr_of, modern_controllers
from diffpolicy_spec.envs.factory import make_env
from diffpolicy_spec.envs.object_layout import OBJECT_LAYOUTS
from diffpolicy_spec.envs.suite import load_robosuite
from diffpolicy_spec.envs.tasks import TASKS, RobosuiteTask
from diffpolicy_spec.optional import require

__all__ = [
    "EnvArgsError",
    "make_env_from_args",
    "make_env_from_dataset",
    "modern_env_args",
    "read_env_args",
    "recorded_action_repr",
]

# What RobosuiteEnv decides itself: viewers, rewards, ends of episodes, observations, the seed.
_DECIDED = {
    *("camera_depths", "camera_heights", "camera_names", "camera_segmentations", "camera_widths", "has_renderer"),
    *("has_offscreen_renderer", "hard_reset", "horizon", "ignore_done", "render_camera", "render_collision_mesh"),
    *("render_gpu_device_id", "render_visual_mesh", "renderer", "renderer_config", "reward_scale", "reward_shaping"),
    *("seed", "use_camera_obs", "use_object_obs"),
}


class EnvArgsError(ValueError):
    """A dataset's env_args from which no environment can be made; the message says what is wrong with them."""


def make_env_from_dataset(path: str | Path, **kwargs: Any) -> gym.Env[Any, Any]:
    """The environment that a robomimic hdf5 was recorded in; arguments and errors as `make_env_from_args`.

    Raises:
        FileNotFoundError: no such file.
        EnvArgsError: not a robomimic hdf5, or without env_args.
    """
    return make_env_from_args(read_env_args(path), **kwargs)


def make_env_from_args(
    env_args: Mapping[str, Any],
    *,
    action_repr: str | None = None,
    cameras: Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    **kwargs: Any,
) -> gym.Env[Any, Any]:
    """The environment that env_args describe, on the robosuite that is installed.

    Controllers of robosuite up to 1.4 are given their names of today, with commands in the world frame as they had
    them. Datasets of that age also have another layout of "object" (Lift: the sign of gripper_to_cube_pos; the others:
    the order): where env_version is below 1.5 the environment observes that layout, see `old_object_layout`.

    Args:
        env_args: {"env_name", "type", "env_version", "env_kwargs"}, see `read_env_args`.
        action_repr: None: what the dataset's actions are, "absolute" or "delta"; else what is wanted instead, e.g.
            "absolute_rot6d", which takes the same controller gains and commands poses in the world frame.
        cameras: whose images are observed; None: those of the dataset.
        image_size: of these images, pixels; None: the dataset's, each camera's own, or 84.
        **kwargs: further arguments of `make_env`; `images` adds to the cameras' images.

    Raises:
        EnvArgsError: not robosuite, an unknown task, or arguments that robosuite does not take.
        ControllerError: an unknown controller.
    """
    args = modern_env_args(env_args)
    given = args["env_kwargs"]
    if action_repr is None:
        action_repr = recorded_action_repr(args)
    names = given.get("camera_names") or ()
    names = (names,) if isinstance(names, str) else tuple(names)
    if cameras is None:
        cameras = names if given.get("use_camera_obs") else ()
    if image_size is None:
        sizes = _recorded_sizes(given, names, cameras)
        images = {f"{camera}_image": size for camera, size in sizes.items()}
    else:
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        images = {f"{camera}_image": size for camera in cameras}
    env_kwargs = {name: value for name, value in given.items() if name not in _DECIDED}
    try:
        return make_env(
            _task(args["env_name"]).name,
            action_repr=action_repr,
            images={**images, **(kwargs.pop("images", None) or {})},
            env_kwargs=env_kwargs,
            object_layout=args["object_layout"],
            **kwargs,
        )
    except AssertionError as error:  # how robosuite checks its arguments
        raise EnvArgsError(f"robosuite refuses env_kwargs {', '.join(sorted(env_kwargs))}: {error}") from error


def modern_env_args(env_args: Mapping[str, Any]) -> dict[str, Any]:
    """env_args of any age in the form that robosuite 1.5 takes, here and in robomimic's own EnvRobosuite.

    Returns:
        The same keys and "object_layout" ("1.4" or "1.5").

    Raises:
        EnvArgsError, ControllerError: see `make_env_from_args`.
    """
    if not isinstance(env_args, Mapping) or not isinstance(env_args.get("env_kwargs"), Mapping):
        raise EnvArgsError("env_args must be a mapping of env_name, type, env_version and env_kwargs (a mapping)")
    if env_args.get("type") != 1:
        raise EnvArgsError(f"env_args have type {env_args.get('type')!r}; only robosuite environments (1) can be made")
    task = _task(env_args.get("env_name"))
    old = _is_old(env_args)
    kwargs = dict(env_args["env_kwargs"])
    for name in ("env_name", "env_lang"):  # robomimic's own notes
        kwargs.pop(name, None)
    if "mount_types" in kwargs:  # 1.4's name
        kwargs["base_types"] = kwargs.pop("mount_types")
    robots = kwargs.get("robots", list(task.robots))
    robots = [robots] if isinstance(robots, str) else list(robots)
    if len(robots) != len(task.robots):
        raise EnvArgsError(f"env_args have {len(robots)} robots; {task.robosuite_name} needs {len(task.robots)}")
    unknown = sorted(set(kwargs) - _accepted(task.robosuite_name))
    if unknown:
        version = load_robosuite().__version__
        raise EnvArgsError(f"robosuite {version} takes no {', '.join(unknown)} for {task.robosuite_name}: remove them")
    if old:
        kwargs.setdefault("lite_physics", False)  # robosuite 1.5's own advice for data of 1.4
    controllers = modern_controllers(kwargs.get("controller_configs"), robots)
    kwargs |= {"robots": robots, "controller_configs": controllers[0] if len(controllers) == 1 else controllers}
    layout = env_args.get("object_layout", "1.4" if old else "1.5")
    if layout not in OBJECT_LAYOUTS:
        raise EnvArgsError(f"object_layout must be one of {', '.join(OBJECT_LAYOUTS)}, got {layout!r}")
    return {**env_args, "env_name": task.robosuite_name, "env_kwargs": kwargs, "object_layout": layout}


def recorded_action_repr(env_args: Mapping[str, Any]) -> str:
    """What actions mean to the environment that env_args describe: "absolute" or "delta".

    Raises:
        EnvArgsError, ControllerError: see `make_env_from_args`.
    """
    controllers = modern_env_args(env_args)["env_kwargs"]["controller_configs"]
    return action_repr_of(controllers if isinstance(controllers, list) else [controllers])


def read_env_args(path: str | Path) -> dict[str, Any]:
    """The attribute `env_args` of a robomimic hdf5.

    Raises:
        FileNotFoundError: no such file.
        EnvArgsError: not a robomimic hdf5, or without env_args.
        ImportError: h5py is not installed.
    """
    h5py = require("h5py", extra="sim", needed_by="reading a robomimic dataset")
    if not Path(path).is_file():
        raise FileNotFoundError(f"dataset {path} does not exist")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise EnvArgsError(f"{path} is not a readable hdf5 file: {error}") from error
    with file:
        if "data" not in file:
            raise EnvArgsError(f"{path} has no group 'data': not a robomimic dataset")
        text = file["data"].attrs.get("env_args")
    if text is None:
        raise EnvArgsError(
            f"{path} has no env_args (an attribute of 'data'), so it does not say what it was recorded in: "
            "use make_env with a task's name"
        )
    try:
        args: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise EnvArgsError(f"{path}: env_args are not JSON: {error}") from error
    return args


def _task(env_name: Any) -> RobosuiteTask:
    rows = {task.robosuite_name: task for task in TASKS.values() if isinstance(task, RobosuiteTask)}
    if env_name not in rows:
        raise EnvArgsError(f"env_name {env_name!r} is none of the tasks here: {', '.join(rows)}")
    return rows[env_name]


def _is_old(env_args: Mapping[str, Any]) -> bool:
    """Whether it was recorded with robosuite up to 1.4."""
    version = env_args.get("env_version")
    if version is None:  # robomimic up to 0.2 did not write it; only old controllers are flat
        controllers = env_args["env_kwargs"].get("controller_configs")
        first = controllers[0] if isinstance(controllers, list | tuple) and controllers else controllers
        return not (isinstance(first, Mapping) and "body_parts" in first)
    try:
        major, minor = (int(part) for part in str(version).split(".")[:2])
    except ValueError as error:
        raise EnvArgsError(f"env_version {version!r} is not a version of robosuite") from error
    return (major, minor) < (1, 5)


def _accepted(env_name: str) -> set[str]:
    """Arguments of robosuite.make for this environment, those of its base classes included."""
    classes = load_robosuite().environments.base.REGISTERED_ENVS[env_name].__mro__
    return {name for cls in classes if "__init__" in vars(cls) for name in inspect.signature(cls.__init__).parameters}


def _recorded_sizes(
    given: Mapping[str, Any], names: Sequence[str], cameras: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """(height, width) of each camera's images, from env_kwargs that have one size for all, or a list for `names`."""
    found: dict[str, list[int]] = {camera: [] for camera in cameras}
    for key in ("camera_heights", "camera_widths"):
        value: Any = 84 if given.get(key) is None else given[key]
        each = dict(zip(names, value, strict=False)) if isinstance(value, list | tuple) else None
        if each is not None and len(value) != len(names):
            raise EnvArgsError(f"env_args have {len(value)} {key} for {len(names)} cameras: give image_size")
        for camera in cameras:
            if each is not None and camera not in each:
                raise EnvArgsError(f"{key} does not say the size of camera {camera}'s images: give image_size")
            found[camera].append(int(value if each is None else each[camera]))
    return {camera: (height, width) for camera, (height, width) in found.items()}
