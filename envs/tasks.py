"""The tasks that environments, recorders and evaluation know by name: one row each."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TASKS", "Task", "UnknownTaskError", "get_task"]


class UnknownTaskError(ValueError):
    """A task name that is not in the table."""


@dataclass(frozen=True)
class Task:
    """A robomimic task on robosuite, with robomimic's low-dimensional observation.

    Attributes:
        name: how commands and configs name it.
        env_id: gymnasium id.
        robosuite_name: name given to robosuite.make.
        robots: one robosuite robot per arm.
        horizon: steps of an episode, as in diffusion_policy's evaluation.
        obs: observation keys and their lengths, in diffusion_policy's order. "object" is robosuite's "object-state".
        camera: the camera that render() shows.
        control_freq: actions a second, Hz.
    """

    name: str
    env_id: str
    robosuite_name: str
    robots: tuple[str, ...]
    horizon: int
    obs: tuple[tuple[str, int], ...]
    camera: str = "agentview"
    control_freq: int = 20


_ONE_ARM = (("robot0_eef_pos", 3), ("robot0_eef_quat", 4), ("robot0_gripper_qpos", 2))

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        # object: cube_pos (3), cube_quat xyzw (4), gripper_to_cube_pos (3)
        Task("lift", "diffpolicy_spec/Lift-v0", "Lift", ("Panda",), 400, (("object", 10), *_ONE_ARM)),
    )
}


def get_task(name: str) -> Task:
    """The row of a task.

    Raises:
        UnknownTaskError: no such task; the message lists those there are.
    """
    try:
        return TASKS[name]
    except (KeyError, TypeError):
        raise UnknownTaskError(f"unknown task {name!r}; known tasks: {', '.join(sorted(TASKS))}") from None
