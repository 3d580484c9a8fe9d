"""What a policy observes, in the terms of a task's environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffpolicy_spec.data.obs_map import ObsMap, Offer, map_onto
from diffpolicy_spec.envs.tasks import Task
from diffpolicy_spec.policies.config import PolicyConfig

__all__ = ["map_observations"]


def map_observations(policy: PolicyConfig, task: Task, given: Mapping[str, Any]) -> ObsMap | None:
    """What of a task's environment a policy observes; None: its own observation as it is, or a part of it.

    The rules are those of `data.obs_map.map_onto`; diffusion_policy's single "obs" is all of the task's own.
    Robosuite's models have more cameras than those of the task table: "<camera>_image" may name any.

    Args:
        policy: what it observes.
        task: what the environment has.
        given: the policy's name -> the environment's keys that are joined for it, or one key.

    Raises:
        ValueError: observations that the task does not have, or of other sizes; the message lists both sides.
    """
    own = dict(task.obs)
    offer = Offer(
        where=f"task '{task.name}'",
        vectors=dict(task.obs + task.further),
        joined=tuple(own),
        images=task.images,
        any_camera=task.extra == "sim",
        aliases=dict(task.aliases),
        described=_described(task),
        otherwise="give a policy of this task",
    )
    names = map_onto(offer, policy.obs_dims, policy.image_shapes, given)
    for name, _, _ in names.images:
        channels = policy.image_shapes[name][0]
        if channels != 3:
            raise ValueError(f"the policy's image '{name}' has {channels} channels; environments give RGB, 3 of them")
    as_it_is = not names.images and all(keys == (name,) and name in own for name, keys in names.vectors)
    return None if as_it_is else names


def _described(task: Task) -> str:
    own = ", ".join(f"{key} ({size})" for key, size in task.obs)
    further = ", ".join(f"{key} ({size})" for key, size in task.further)
    images = f"; images {', '.join(task.images)} of any size" if task.images else "; no images"
    return own + (f"; on demand {further}" if further else "") + images
