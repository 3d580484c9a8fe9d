"""Environments by task name and by gymnasium id."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym

from diffpolicy_spec.envs.actions import Rot6dActions
from diffpolicy_spec.envs.robosuite_env import RobosuiteEnv
from diffpolicy_spec.envs.tasks import TASKS, Task, get_task

__all__ = ["build", "build_robosuite", "make_env", "register_all"]


def make_env(
    task: str, *, action_repr: str | None = None, render_mode: str | None = None, **kwargs: Any
) -> gym.Env[Any, Any]:
    """The environment of a task.

    Args:
        task: name in the task table, e.g. "lift".
        action_repr: one of the task's `action_reprs`, None for the first: on robosuite "absolute_rot6d" (10-D),
            "absolute" (7-D) or "delta" (7-D in [-1, 1]); a policy's config says which one it was trained for.
        render_mode: None or "rgb_array".
        **kwargs: further arguments of the environment, e.g. of `RobosuiteEnv`.

    Raises:
        UnknownTaskError: no such task; the message lists those there are.
        ValueError: another action_repr or render_mode.
        ImportError: the simulator is not installed; the message names the extra.
    """
    # gymnasium's passive checker compares every step with the spaces; the tests run its full one instead.
    return gym.make(
        get_task(task).env_id, disable_env_checker=True, action_repr=action_repr, render_mode=render_mode, **kwargs
    )


def build(*, task: str, action_repr: str | None = None, **kwargs: Any) -> gym.Env[Any, Any]:
    """What gymnasium calls for the ids that `register_all` registers."""
    row = get_task(task)
    action_repr = row.action_reprs[0] if action_repr is None else action_repr
    if action_repr not in row.action_reprs:
        known = ", ".join(row.action_reprs)
        raise ValueError(f"action_repr of task '{task}' must be one of {known}, got {action_repr!r}")
    module, _, function = row.build.partition(":")
    return getattr(importlib.import_module(module), function)(row, action_repr=action_repr, **kwargs)


def build_robosuite(task: Task, *, action_repr: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """A robosuite task's environment, with 10-D actions where asked for."""
    if action_repr == "absolute_rot6d":
        return Rot6dActions(RobosuiteEnv(task.name, action_repr="absolute", **kwargs))
    return RobosuiteEnv(task.name, action_repr=action_repr, **kwargs)


def register_all() -> None:
    """Register every task of the table with gymnasium; a second call does nothing."""
    for task in TASKS.values():
        if task.env_id not in gym.registry:
            # The environment truncates at its own horizon: no TimeLimit on top.
            gym.register(task.env_id, entry_point="diffpolicy_spec.envs.factory:build", kwargs={"task": task.name})
