"""What a scripted expert is, and which task has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.envs.experts.can import CanExpert
from diffpolicy_spec.envs.experts.lift import LiftExpert
from diffpolicy_spec.envs.experts.square import SquareExpert

__all__ = ["EXPERTS", "Expert", "UnknownExpertError", "make_expert"]

Array = NDArray[np.float64]


class UnknownExpertError(ValueError):
    """A task that nobody has written an expert for."""


class Expert(Protocol):
    """A controller for one episode; whatever it does at random comes from the generator it was made with."""

    def act(self, obs: dict[str, Array], eef_matrix: Array) -> Array:
        """The next absolute action.

        Args:
            obs: the environment's observation.
            eef_matrix: (3, 3), orientation of the grip site in the world frame (`RobosuiteEnv.eef_pose`).

        Returns:
            (7,): position (m), axis-angle (rad), gripper in {-1, 1}.
        """
        ...


EXPERTS: dict[str, Callable[[np.random.Generator], Expert]] = {
    "lift": LiftExpert,
    "can": CanExpert,
    "square": SquareExpert,
}


def make_expert(task: str, rng: np.random.Generator) -> Expert:
    """The expert of a task, for one episode.

    Raises:
        UnknownExpertError: the task has none.
    """
    if task not in EXPERTS:
        known = ", ".join(sorted(EXPERTS)) or "no task"
        raise UnknownExpertError(f"no scripted expert for task {task!r}; there is one for {known}")
    return EXPERTS[task](rng)
