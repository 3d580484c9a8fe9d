"""Can, by script: take the can from the left bin, over the walls into its compartment of the right bin, let it fall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.envs.experts.carry import CarryExpert, CarryStyle
from diffpolicy_spec.envs.experts.motion import smoothstep
from diffpolicy_spec.envs.experts.pick import CLOSE, Goal, Scene
from diffpolicy_spec.rotations import axis_angle_to_matrix

__all__ = ["CanExpert", "CanStyle"]

Array = NDArray[np.float64]

# robosuite's PickPlaceCan: the can's compartment is x 0.1 to 0.3, y 0.28 to 0.53 m; walls reach up to 0.90 m.
COMPARTMENT = np.array([[0.1, 0.28], [0.3, 0.53]])
PLACE = np.array([0.162, 0.352])  # nearer to the robot than its middle, where the arm would be stretched out
CLEAR = (0.90, 0.96)  # m, height of the can's centre from which it may begin to go sideways, and may go freely


@dataclass(frozen=True, kw_only=True)
class CanStyle(CarryStyle):
    """One episode's manner; see `CarryStyle`.

    Attributes:
        yaw: the direction the fingers close along, against where they were at first, rad: a can has no sides.
        place: (x, y) from PLACE, m.
    """

    yaw: float
    place: tuple[float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> CanStyle:
        """A manner at random."""
        return cls(
            speed=rng.uniform(0.18, 0.30),
            acceleration=rng.uniform(1.4, 2.4),
            turn=rng.uniform(0.9, 1.8),
            hover=rng.uniform(0.08, 0.11),
            funnel=rng.uniform(0.022, 0.035),
            arc=rng.normal(0, 0.025),
            hesitate_at=rng.uniform(0.05, 0.12),
            hesitate_over=rng.uniform(0.01, 0.02),
            hesitate_to=rng.uniform(0.4, 0.8) if rng.random() < 0.4 else 1.0,
            grasp_along=rng.uniform(-0.005, 0.005),
            grasp_height=rng.uniform(0.012, 0.026),
            close_within=rng.uniform(0.008, 0.014),
            noise=rng.uniform(0.002, 0.006),
            noise_time=rng.uniform(0.2, 0.5),
            tremble=rng.uniform(0.005, 0.02),
            yaw=rng.uniform(-0.35, 0.35),
            carry_speed=rng.uniform(0.24, 0.34),
            carry_height=rng.uniform(0.98, 1.03),
            place=(rng.uniform(-0.012, 0.012), rng.uniform(-0.015, 0.015)),
            release_height=rng.uniform(0.91, 0.935),
            **cls.knock(rng, 0.3),
        )


class CanExpert(CarryExpert):
    """One episode of Can.

    Args:
        rng: everything random comes from here.
        style: its manner; default: drawn.
    """

    style: CanStyle
    held_width = (0.036, 0.058)  # a can of 50 mm
    lost_beyond = 0.035
    opening = (0.060, 0.012)

    def __init__(self, rng: np.random.Generator, style: CanStyle | None = None) -> None:
        super().__init__(rng, CanStyle.draw(rng) if style is None else style)
        self._free: Array | None = None  # the direction of the fingers at a standing can

    def grasp_fingers(self, scene: Scene, fingers: Array) -> Array:
        """At a standing can the style's own direction; across the axis of one that lies."""
        if self._free is None:
            turned = axis_angle_to_matrix(np.array([0.0, 0.0, self.style.yaw])) @ scene.eef_matrix[:, 0]
            self._free = _horizontal(turned)
        axis = scene.matrix[:, 2]
        if abs(axis[2]) > 0.7:
            return self._free
        across = _horizontal(np.cross([0.0, 0.0, 1.0], axis))
        return across if across @ fingers >= 0 else -across

    def grasp_point(self, scene: Scene) -> Array:
        """Near the can's centre, a little above it where it stands."""
        if abs(scene.matrix[2, 2]) <= 0.7:
            return scene.position.copy()
        along = np.cross([0.0, 0.0, 1.0], self._fingers)
        return scene.position + self.style.grasp_along * along + [0.0, 0.0, self.style.grasp_height]

    def unready(self, scene: Scene) -> float:
        """Also 1 while the fingers are not open: it does not come down on the can."""
        return super().unready(scene) + min(max(0.070 - scene.width, 0.0) / 0.012, 1.0)

    def next_phase(self, scene: Scene) -> str:
        """Carry until it is over its place, release there; start again where the can is not in the end."""
        if self.phase == "carry":
            if self.lost(scene):
                return "reach"
            beside = float(np.linalg.norm(self._way(scene)))
            over = beside < 0.022 and scene.position[2] < self.style.release_height + 0.012
            return "release" if over else "carry"
        inside = np.all((scene.position[:2] > COMPARTMENT[0]) & (scene.position[:2] < COMPARTMENT[1]))
        away = scene.width > self.held_width[1] and np.linalg.norm(scene.position - scene.eef) > 0.05
        return "reach" if away and not inside else "release"

    def _way(self, scene: Scene) -> Array:
        """(2,): from the can to its place, horizontally."""
        return PLACE + self.style.place - scene.position[:2]

    def carry(self, scene: Scene) -> Goal:
        """Up, across where no wall is in the way, and down the nearer it comes."""
        style, way, height = self.style, self._way(scene), scene.position[2]
        beside = float(np.linalg.norm(way))
        margin = float(np.min([scene.position[:2] - COMPARTMENT[0], COMPARTMENT[1] - scene.position[:2]]))
        above, inside = smoothstep((height - CLEAR[0]) / (CLEAR[1] - CLEAR[0])), smoothstep((margin - 0.03) / 0.015)
        clear = max(above, inside)
        down = style.carry_height - style.release_height
        wanted = style.release_height + down * smoothstep((beside - 0.015) / 0.10)
        goal = scene.eef + np.array([*(clear * way), wanted - height])
        return Goal(goal, self._fingers, style.carry_speed * (0.4 + 0.6 * smoothstep(beside / 0.12)), CLOSE)


def _horizontal(vector: Array) -> Array:
    """The unit vector along a vector's horizontal part."""
    flat = np.array([vector[0], vector[1], 0.0])
    return flat / np.linalg.norm(flat)
