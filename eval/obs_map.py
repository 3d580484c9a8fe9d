"""Which of an environment's observations a policy's observations are, where the names are not the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffpolicy_spec.envs.observations import ObsMap
from diffpolicy_spec.envs.tasks import Task
from diffpolicy_spec.policies.config import PolicyConfig

__all__ = ["map_observations", "obs_map_of"]

_HOW = "say which are which with obs_map={NAME: [KEY, ...], CAMERA: KEY}, or give a policy of this task"


def obs_map_of(given: Any, task: str, tasks: Sequence[str]) -> Mapping[str, Any]:
    """The part of the setting `obs_map` that is about a task: all of it, or its own where it names the run's tasks.

    Raises:
        ValueError: no mapping.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"obs_map must map the policy's observations to the environment's, got {given!r}")
    if given and set(given) <= set(tasks) and all(isinstance(one, Mapping) for one in given.values()):
        given = given.get(task, {})
    return {str(name): keys for name, keys in given.items()}


def map_observations(policy: PolicyConfig, task: Task, given: Mapping[str, Any]) -> ObsMap | None:
    """What of a task's environment a policy observes; None: its own observation as it is, or a part of it.

    A low-dimensional observation is, in this order: what `given` says; the environment's of this name; the one that
    LeRobot calls so; if it is the policy's only one, all of the task's, joined, where their lengths add up
    (diffusion_policy's "obs"). An image is: what `given` says; the environment's of this name; the one that LeRobot
    calls so; the only one, where both have one. Robosuite's models have more cameras than those of the task table:
    "<camera>_image" may name any.

    Args:
        policy: what it observes.
        task: what the environment has.
        given: the policy's name -> the environment's keys that are joined for it, or one key.

    Raises:
        ValueError: observations that the task does not have, or of other sizes; the message lists both sides.
    """
    strangers = [name for name in given if name not in policy.obs_keys]
    if strangers:
        raise ValueError(
            f"obs_map names {', '.join(strangers)}, which the policy does not observe; it observes {_wanted(policy)}"
        )
    aliases, sizes = dict(task.aliases), dict(task.obs + task.further)
    vectors: dict[str, tuple[str, ...]] = {}
    wrong: list[str] = []
    for name, size in policy.obs_dims.items():
        keys = _keys(name, given[name]) if name in given else _guess(name, policy, task, aliases)
        if name in given:
            found = sum(task.size_of(key) for key in keys)
            if found != size:
                told = " + ".join(f"{key} ({sizes[key]})" for key in keys)
                raise ValueError(f"obs_map: '{name}' has {size} dimensions, {told} make {found}")
        if sum(sizes.get(key, 0) for key in keys) != size:
            wrong.append(f"{name} ({size})")
        vectors[name] = keys
    images: dict[str, str] = {}
    for name, shape in policy.image_shapes.items():
        key = _image(name, given, policy, task, aliases)
        if key is None:
            wrong.append(f"{name} {shape}")
        elif shape[0] != 3:
            raise ValueError(f"the policy's image '{name}' has {shape[0]} channels; environments give RGB, 3 of them")
        else:
            images[name] = key
    if wrong:
        raise ValueError(f"the policy observes {', '.join(wrong)}; task '{task.name}' gives {_there(task)}: {_HOW}")
    own = {key for key, _ in task.obs}
    if not images and all(keys == (name,) and name in own for name, keys in vectors.items()):
        return None
    return ObsMap(
        tuple(vectors.items()), tuple((name, key, policy.image_shapes[name][1:]) for name, key in images.items())
    )


def _keys(name: str, given: Any) -> tuple[str, ...]:
    keys = [given] if isinstance(given, str) else given
    if not isinstance(keys, Sequence) or not keys or not all(isinstance(key, str) for key in keys):
        raise ValueError(f"obs_map: '{name}' must be a key or a list of keys of the environment, got {given!r}")
    return tuple(keys)


def _guess(name: str, policy: PolicyConfig, task: Task, aliases: Mapping[str, str]) -> tuple[str, ...]:
    sizes, size = dict(task.obs + task.further), policy.obs_dims[name]
    if name in sizes or name in aliases:
        return (name if name in sizes else aliases[name],)
    if len(policy.obs_dims) == 1 and sum(length for _, length in task.obs) == size:
        return tuple(key for key, _ in task.obs)
    return ()


def _image(
    name: str, given: Mapping[str, Any], policy: PolicyConfig, task: Task, aliases: Mapping[str, str]
) -> str | None:
    if name in given:
        keys = _keys(name, given[name])
        if len(keys) > 1:
            raise ValueError(f"obs_map: '{name}' is one image, got {list(keys)}")
        return keys[0]
    if name in task.images or (task.extra == "sim" and name.endswith("_image")):
        return name
    if aliases.get(name) in task.images:
        return aliases[name]
    return task.images[0] if len(task.images) == len(policy.image_shapes) == 1 else None


def _wanted(policy: PolicyConfig) -> str:
    return ", ".join([f"{name} ({size})" for name, size in policy.obs_dims.items()]
                     + [f"{name} {shape}" for name, shape in policy.image_shapes.items()])  # fmt: skip


def _there(task: Task) -> str:
    own = ", ".join(f"{key} ({size})" for key, size in task.obs)
    further = ", ".join(f"{key} ({size})" for key, size in task.further)
    images = f"; images {', '.join(task.images)} of any size" if task.images else "; no images"
    return own + (f"; on demand {further}" if further else "") + images
