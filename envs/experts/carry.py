"""After the grasp: carry the object to its place, open, rise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.envs.experts.motion import smoothstep
from diffpolicy_spec.envs.experts.pick import OPEN, Goal, PickExpert, PickStyle, Scene
from diffpolicy_spec.rotations import quat_xyzw_to_matrix

__all__ = ["CarryExpert", "CarryStyle"]

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CarryStyle(PickStyle):
    """One episode's manner; see `PickStyle`.

    Attributes:
        carry_speed, carry_height: of the way to the place; height of the object, m.
        release_height: height of the object at which it is let go, m.
    """

    carry_speed: float
    carry_height: float
    release_height: float


class CarryExpert(PickExpert):
    """Base of experts that put an object of robosuite's single-object tasks somewhere.

    Attributes:
        opening: finger opening at which the hand begins to rise, and how much further until it rises fully, m.
    """

    after_close = "carry"
    leash = 0.07
    opening: tuple[float, float]

    @property
    def phases(self) -> dict[str, Callable[[Scene], Goal]]:
        """See `PickExpert`."""
        return {**super().phases, "carry": self.carry, "release": self._release}

    @abstractmethod
    def carry(self, scene: Scene) -> Goal:
        """Where to go with the object in the hand."""

    def object_pose(self, obs: dict[str, Array]) -> tuple[Array, Array]:
        """The object; see `PickExpert`."""
        # robosuite 1.5's order: pose seen from the gripper (7; not filled in at reset), then the pose in the world.
        return obs["object"][7:10], quat_xyzw_to_matrix(obs["object"][10:14])

    def _release(self, scene: Scene) -> Goal:
        """Open where it is, and rise as the fingers open."""
        begins, further = self.opening
        rise = 0.12 * smoothstep((scene.width - begins) / further)
        return Goal(scene.eef + np.array([0.0, 0.0, rise]), self._fingers, 0.15, OPEN)
