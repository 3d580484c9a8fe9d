"""Simulated tasks as gymnasium environments. Importing this registers the ids, e.g. "diffpolicy_spec/Lift-v0"."""

from diffpolicy_spec.optional import require

require("gymnasium", extra="sim")

from diffpolicy_spec.envs.actions import Rot6dActions  # noqa: E402
from diffpolicy_spec.envs.factory import make_env, register_all  # noqa: E402
from diffpolicy_spec.envs.rendering import RenderUnavailable  # noqa: E402
from diffpolicy_spec.envs.robosuite_env import ActionError, RobosuiteEnv  # noqa: E402
from diffpolicy_spec.envs.tasks import TASKS, Task, UnknownTaskError, get_task  # noqa: E402

__all__ = [
    "TASKS",
    "ActionError",
    "RenderUnavailable",
    "RobosuiteEnv",
    "Rot6dActions",
    "Task",
    "UnknownTaskError",
    "get_task",
    "make_env",
]

register_all()
