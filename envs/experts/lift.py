"""Lift, by script: reach above the cube, turn to its sides, descend, close, raise; with a person's variety."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.envs.experts.pick import CLOSE, Goal, PickExpert, PickStyle, Scene
from diffpolicy_spec.rotations import quat_xyzw_to_matrix

__all__ = ["LiftExpert", "LiftStyle"]

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LiftStyle(PickStyle):
    """One episode's manner; see `PickStyle`.

    Attributes:
        lift_speed, lift_height, lift_drift: raising the cube (m/s, m); the drift is sideways, x and y, in m.
    """

    lift_speed: float
    lift_height: float
    lift_drift: tuple[float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> LiftStyle:
        """A manner at random."""
        # The order of the draws is what data/lift.hdf5 was made with: another one gives other demonstrations.
        bumped = rng.random() < 0.35
        angle, size, rise = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.045), rng.uniform(0.0, 0.02)
        return cls(
            speed=rng.uniform(0.13, 0.27),
            acceleration=rng.uniform(1.2, 2.4),
            turn=rng.uniform(0.9, 1.8),
            hover=rng.uniform(0.035, 0.085),
            funnel=rng.uniform(0.05, 0.09),
            arc=rng.normal(0, 0.035),
            hesitate_at=rng.uniform(0.04, 0.12),
            hesitate_over=rng.uniform(0.01, 0.02),
            hesitate_to=rng.uniform(0.3, 0.7) if rng.random() < 0.5 else 1.0,
            grasp_along=rng.uniform(-0.006, 0.006),
            grasp_height=rng.uniform(-0.003, 0.008),
            close_within=rng.uniform(0.006, 0.012),
            lift_speed=rng.uniform(0.12, 0.26),
            lift_height=rng.uniform(0.08, 0.13),
            lift_drift=(rng.normal(0, 0.012), rng.normal(0, 0.012)),
            noise=rng.uniform(0.002, 0.007),
            noise_time=rng.uniform(0.2, 0.5),
            tremble=rng.uniform(0.005, 0.025),
            bump_at=rng.uniform(0.04, 0.12) if bumped else 0.0,
            bump=(size * np.cos(angle), size * np.sin(angle), rise) if bumped else (0.0, 0.0, 0.0),
        )


class LiftExpert(PickExpert):
    """One episode of Lift.

    Args:
        rng: everything random comes from here.
        style: its manner; default: drawn.
    """

    style: LiftStyle
    held_width = (0.030, 0.052)  # a cube of 40 to 44 mm
    lost_beyond = 0.035
    after_close = "lift"

    def __init__(self, rng: np.random.Generator, style: LiftStyle | None = None) -> None:
        super().__init__(rng, LiftStyle.draw(rng) if style is None else style)

    @property
    def phases(self) -> dict[str, Callable[[Scene], Goal]]:
        """See `PickExpert`."""
        return {**super().phases, "lift": self._lift}

    def object_pose(self, obs: dict[str, Array]) -> tuple[Array, Array]:
        """The cube; see `PickExpert`."""
        return obs["object"][:3], quat_xyzw_to_matrix(obs["object"][3:7])

    def grasp_fingers(self, scene: Scene, fingers: Array) -> Array:
        """The nearest of the cube's four side normals."""
        # Whichever face is up, the two most horizontal axes are the sides.
        axes = sorted(scene.matrix.T, key=lambda axis: abs(axis[2]))[:2]
        sides = [sign * np.array([axis[0], axis[1], 0.0]) for axis in axes for sign in (1, -1)]
        best = max(sides, key=lambda side: float(side @ fingers))
        return best / np.linalg.norm(best)

    def grasp_point(self, scene: Scene) -> Array:
        """Near the cube's centre."""
        along = np.cross([0.0, 0.0, 1.0], self._fingers)
        return scene.position + self.style.grasp_along * along + [0.0, 0.0, self.style.grasp_height]

    def next_phase(self, scene: Scene) -> str:
        """Raise it until it is lost."""
        return "reach" if self.lost(scene) else "lift"

    def lost(self, scene: Scene) -> bool:
        """The fingers are shut, or the cube is away."""
        apart = float(np.linalg.norm(scene.position - scene.eef))
        return scene.width < self.held_width[0] or apart > self.lost_beyond

    def _lift(self, scene: Scene) -> Goal:
        raised = self._grasp + np.array([*self.style.lift_drift, self.style.lift_height])
        return Goal(raised, self._fingers, self.style.lift_speed, CLOSE)
