"""What a diffusion_policy config says of its task: what actions mean, and of which observations `obs` is joined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffpolicy_spec.checkpoints.diffusion_policy.interpolation import resolve
from diffpolicy_spec.checkpoints.errors import CheckpointError

__all__ = ["Task", "read_task", "split_obs"]

_ROBOMIMIC = ("lift", "can", "square", "transport", "tool_hang")
_SIZES = {
    "eef_pos": 3, "eef_quat": 4, "eef_vel_lin": 3, "eef_vel_ang": 3, "gripper_qpos": 2, "gripper_qvel": 2,
    "joint_pos": 7, "joint_pos_cos": 7, "joint_pos_sin": 7, "joint_vel": 7,
}  # fmt: skip
_PUSHT_KEYS = {"keypoint": 18, "agent_pos": 2}  # as PushTLowdimDataset joins them


@dataclass(frozen=True)
class Task:
    """A task of diffusion_policy's configs.

    Attributes:
        name: this package's task that its observations and actions fit; "" for none.
        upstream: its name there; "" if it has none.
        action_repr: one of ACTION_REPRS.
        obs_keys: what a low-dimensional observation is joined of; () where the config does not say.
        notes: what was assumed.
    """

    name: str
    upstream: str
    action_repr: str
    obs_keys: tuple[str, ...]
    notes: tuple[str, ...]


def read_task(config: Mapping[str, Any], action_dim: int) -> Task:
    """The task of a config; what is missing there, or cannot be resolved, counts as not said."""
    upstream = _text(config, "name")
    base = _text(config, "task_name") or upstream.split("_lowdim")[0].split("_image")[0]
    keys = _look(config, "obs_keys")
    keys = tuple(keys) if isinstance(keys, list) and all(isinstance(key, str) for key in keys) else ()
    if base in _ROBOMIMIC:
        action_repr, notes = _robomimic_actions(config, action_dim)
        return Task(base, upstream, action_repr, keys, notes)
    if base == "pusht" and action_dim == 2:
        return Task("pusht" if "image" in upstream else "pusht_keypoints", upstream, "raw", keys, ())
    told = f"its task '{upstream[:80]}' is none of this package's" if upstream else "its config names no task"
    return Task("", upstream, "raw", keys, (f"{told}: its actions are taken as what its environment takes",))


def split_obs(task: Task, obs_dim: int) -> dict[str, int]:
    """Observation key -> size, in the order in which `obs` is joined; {"obs": obs_dim} where that is not known.

    At most one key may be of unknown size: robomimic's "object", which has what the others leave.
    """
    if task.name == "pusht_keypoints" and obs_dim == sum(_PUSHT_KEYS.values()):
        return dict(_PUSHT_KEYS)
    sizes = {key: _SIZES.get(key.removeprefix("robot0_").removeprefix("robot1_")) for key in task.obs_keys}
    unknown = [key for key, size in sizes.items() if size is None]
    left = obs_dim - sum(size for size in sizes.values() if size is not None)
    if not sizes or len(sizes) != len(task.obs_keys) or len(unknown) > 1 or (left > 0) != bool(unknown) or left < 0:
        return {"obs": obs_dim}
    return {key: left if size is None else size for key, size in sizes.items()}


def _robomimic_actions(config: Mapping[str, Any], action_dim: int) -> tuple[str, tuple[str, ...]]:
    absolute = _look(config, "abs_action")
    if not isinstance(absolute, bool):
        absolute = _look(config, "dataset.abs_action")
    notes: tuple[str, ...] = ()
    if not isinstance(absolute, bool):
        absolute = action_dim % 10 == 0
        notes = (f"its config does not say whether actions are absolute; {action_dim} of them: taken as {absolute}",)
    rotation = _look(config, "dataset.rotation_rep") or "rotation_6d"
    if not absolute and action_dim % 7 == 0:
        return "delta", notes
    if absolute and rotation == "rotation_6d" and action_dim % 10 == 0:
        return "absolute_rot6d", notes
    if absolute and rotation == "axis_angle" and action_dim % 7 == 0:
        return "absolute", notes
    told = f"{action_dim} actions of rotation_rep '{str(rotation)[:40]}' are taken as what its environment takes"
    return "raw", (*notes, told)


def _look(config: Mapping[str, Any], key: str) -> Any:
    try:
        return resolve(config, f"task.{key}")
    except CheckpointError:
        return None


def _text(config: Mapping[str, Any], key: str) -> str:
    value = _look(config, key)
    return value if isinstance(value, str) else ""
