"""The environment that a policy acts in: what it observes, what its actions mean, and how its data were recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffpolicy_spec.data.obs_map import obs_map_of
from diffpolicy_spec.envs import RenderUnavailable
from diffpolicy_spec.envs.config import EnvConfig
from diffpolicy_spec.envs.env_args import EnvArgsError, read_env_args, recorded_action_repr
from diffpolicy_spec.envs.object_layout import OBJECT_LAYOUTS
from diffpolicy_spec.envs.tasks import RobosuiteTask, Task, get_task
from diffpolicy_spec.eval.obs_map import map_observations
from diffpolicy_spec.eval.workers import make_environment

__all__ = ["check_env", "env_config", "open_env"]


def env_config(policy: Any, task: str, tasks: Sequence[str], cfg: Mapping[str, Any], notices: list[str]) -> EnvConfig:
    """What environment of a task a policy needs.

    Args:
        policy: a `DiffusionPolicy`.
        tasks: of the run.
        cfg: plain data with the keys obs_map, action_repr, object_layout and env_args of configs/eval.yaml.
        notices: what was assumed is added, a line each.

    Raises:
        ValueError: the task cannot serve the policy, or a setting cannot be; the message says what to give.
        FileNotFoundError: env_args is no file.
    """
    row, config = get_task(task), policy.config
    env_args = _env_args(policy, row, cfg["env_args"], notices)
    action_repr = cfg["action_repr"] or config.action_repr
    if action_repr == "raw" and env_args is not None:  # what that environment takes
        with _explained(task):
            action_repr = recorded_action_repr(env_args)
    if action_repr == "delta" and isinstance(row, RobosuiteTask) and env_args is None and policy.origin:
        notices.append(
            f"'{task}': actions are differences in the frame of the robot's base, as robosuite 1.5 has them; "
            "env_args=DATASET.hdf5 runs the environment that the policy's data were recorded in"
        )
    if action_repr not in row.action_reprs:
        raise ValueError(
            f"the policy's actions are '{action_repr}', task '{task}' takes {' or '.join(row.action_reprs)}: "
            "say what they are with action_repr=..., or give a policy of this task"
        )
    names = map_observations(config, row, obs_map_of(cfg["obs_map"], task, tasks))
    layout = _layout(policy, row, cfg["object_layout"], env_args is not None, notices)
    return EnvConfig(task, action_repr, names, layout, None if env_args is None else json.dumps(env_args))


def _env_args(policy: Any, task: Task, wanted: Any, notices: list[str]) -> dict[str, Any] | None:
    """env_args of the file that `wanted` names; "auto": those that stand in the policy's checkpoint, for their task."""
    if wanted is None:
        return None
    if wanted != "auto":
        return read_env_args(Path(str(wanted)).expanduser())
    found = policy.origin.get("env_args")
    if not isinstance(found, Mapping):
        return None
    if not isinstance(task, RobosuiteTask) or task.robosuite_name != found.get("env_name"):
        notices.append(f"the policy's data are of {found.get('env_name')}; '{task.name}' is run with its own settings")
        return None
    notices.append(f"'{task.name}' is run as the policy's data were recorded (env_args=null: with the task's settings)")
    return dict(found)


def _layout(policy: Any, task: Task, wanted: Any, recorded: bool, notices: list[str]) -> str | None:
    """The layout of "object"; "auto": that of the data where `recorded`, robosuite 1.4's for diffusion_policy's."""
    wanted = str(wanted)
    if wanted not in ("auto", *OBJECT_LAYOUTS):
        raise ValueError(f"object_layout must be one of auto, {', '.join(OBJECT_LAYOUTS)}, got {wanted}")
    if not isinstance(task, RobosuiteTask):
        return None
    if wanted != "auto":
        return wanted
    if recorded or policy.origin.get("format") != "diffusion_policy" or not policy.config.obs_dims.keys() & _OBJECTS:
        return None
    notices.append(
        f"'object' of '{task.name}' is laid out as robosuite up to 1.4 had it, which diffusion_policy's data are of; "
        "object_layout=1.5 if the policy's are newer"
    )
    return "1.4"


_OBJECTS = {"object", "obs"}  # diffusion_policy's low-dimensional policies observe all in one, "obs"


def open_env(config: EnvConfig, video: bool) -> Any:
    """The environment, for frames as well where there is video.

    Raises:
        ValueError: env_args from which nothing can be made; what MUJOCO_GL names cannot be loaded.
        ImportError: the simulator is not installed; the message names the extra.
    """
    try:
        with _explained(config.task):
            return make_environment(config, video)
    except ImportError as error:
        if "pip install" in str(error):
            raise
        extra = get_task(config.task).extra
        raise ImportError(
            f"task '{config.task}' needs its simulator ({error}): pip install 'diffpolicy-spec[{extra}]'"
        ) from error
    except RenderUnavailable as error:  # MUJOCO_GL names a library that keeps MuJoCo itself from being imported
        raise ValueError(str(error)) from error


@contextmanager
def _explained(task: str) -> Iterator[None]:
    try:
        yield
    except EnvArgsError as error:
        raise ValueError(f"{error}; env_args=null runs '{task}' with its own settings") from error


def check_env(policy: Any, config: EnvConfig, env: Any, seed: int) -> None:
    """Find before the first episode that actions do not fit or images cannot be drawn.

    Raises:
        ValueError: see above.
    """
    if env.action_space.shape != (policy.config.action_dim,):
        raise ValueError(
            f"the policy's actions have {policy.config.action_dim} dimensions, task '{config.task}' takes "
            f"{env.action_space.shape[0]} ({config.action_repr}): give a policy of this task"
        )
    if not policy.config.image_shapes:
        return
    try:
        observation, _ = env.reset(seed=seed)
    except RenderUnavailable as error:
        raise ValueError(f"the policy observes images: {error}") from error
    for name, shape in policy.config.image_shapes.items():
        assert observation[name].shape == shape, (name, observation[name].shape)
