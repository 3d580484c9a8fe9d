"""The environment that a policy is to act in, as plain data: sent to processes, kept with what comes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from diffpolicy_spec.data.obs_map import ObsMap
from diffpolicy_spec.envs.env_args import make_env_from_args
from diffpolicy_spec.envs.factory import make_env
from diffpolicy_spec.envs.observations import MappedObservations
from diffpolicy_spec.envs.tasks import RobosuiteTask, get_task

__all__ = ["EnvConfig"]


@dataclass(frozen=True)
class EnvConfig:
    """An environment of a task; hashable and picklable.

    Attributes:
        task: name in the task table.
        action_repr: one of the task's.
        names: what is observed; None: the task's own observation as it is.
        object_layout: of robosuite's "object", see `object_layout`; None: the environment's own.
        env_args: JSON of robomimic's env_args that the environment is made from, e.g. those of the policy's data;
            None: the task's own settings.

    Raises:
        ValueError: env_args of another task.
    """

    task: str
    action_repr: str
    names: ObsMap | None = None
    object_layout: str | None = None
    env_args: str | None = None

    def __post_init__(self) -> None:
        if self.env_args is not None:
            there, row = json.loads(self.env_args).get("env_name"), get_task(self.task)
            if not isinstance(row, RobosuiteTask) or row.robosuite_name != there:
                raise ValueError(f"env_args are of {there!r}, which is not task '{self.task}'")

    @property
    def changes(self) -> dict[str, Any] | None:
        """What differs from the task's own environment, as plain data; None: nothing."""
        found: dict[str, Any] = {}
        if self.names is not None:
            found["observed"] = self.names.sources()
            if self.names.images:
                found["images"] = {key: list(size) for key, size in self.names.sizes().items()}
        if self.object_layout is not None:
            found["object_layout"] = self.object_layout
        if self.env_args is not None:
            found["env_args"] = json.loads(self.env_args)
        return found or None

    def make(self, *, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """The environment.

        Args:
            render_mode: None or "rgb_array".

        Raises:
            ValueError, ImportError: see `make_env` and `make_env_from_args`.
        """
        wanted: dict[str, Any] = {"action_repr": self.action_repr, "render_mode": render_mode}
        if self.names is not None:
            wanted["obs"] = self.names.obs
            if self.names.images:
                wanted["images"] = self.names.sizes()
        layout = {} if self.object_layout is None else {"object_layout": self.object_layout}
        if self.env_args is None:
            env = make_env(self.task, **wanted, **layout)
        else:
            env = make_env_from_args({**json.loads(self.env_args), **layout}, cameras=(), **wanted)
        return env if self.names is None else MappedObservations(env, self.names)
