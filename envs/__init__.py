"""Simulated tasks as gymnasium environments. Importing this registers the ids, e.g. "diffpolicy_spec/Lift-v0"."""

from diffpolicy_spec.optional import require

require("gymnasium", extra="sim")

from diffpolicy_spec.envs.actions import Rot6dActions  # noqa: E402
from diffpolicy_spec.envs.base import ActionError  # noqa: E402
from diffpolicy_spec.envs.controllers import ControllerError  # noqa: E402
from diffpolicy_spec.envs.env_args import EnvArgsError, make_env_from_args, make_env_from_dataset  # noqa: E402
from diffpolicy_spec.envs.factory import make_env, register_all  # noqa: E402
from diffpolicy_spec.envs.rendering import RenderUnavailable  # noqa: E402
from diffpolicy_spec.envs.robosuite_env import RobosuiteEnv  # noqa: E402
from diffpolicy_spec.envs.tasks import TASKS, Task, UnknownTaskError, get_task  # noqa: E402

__all__ = [
    "TASKS",
    "ActionError",
    "ControllerError",
    "EnvArgsError",
    "RenderUnavailable",
    "RobosuiteEnv",
    "Rot6dActions",
    "Task",
    "UnknownTaskError",
    "get_task",
    "make_env",
    "make_env_from_args",
    "make_env_from_dataset",
]

register_all()
