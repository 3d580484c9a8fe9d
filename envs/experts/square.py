"""Square, by script: take the nut at its handle, turn it to the square peg, put it over and let it slide down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.envs.experts.carry import CarryExpert, CarryStyle
from diffpolicy_spec.envs.experts.motion import smoothstep
from diffpolicy_spec.envs.experts.pick import CLOSE, Goal, Scene

__all__ = ["SquareExpert", "SquareStyle"]

Array = NDArray[np.float64]

# robosuite's NutAssemblySquare: a square peg of 32 mm at (0.23, 0.1) m, its top at 0.95 m; the hole is 45.5 mm wide.
PEG = np.array([0.23, 0.1])
PEG_TOP = 0.95
CLEAR = (0.955, 0.985)  # m, height of the nut from which it may begin to come over the peg, and may come freely
BESIDE = 0.11  # m, how near to the peg it comes below that


@dataclass(frozen=True, kw_only=True)
class SquareStyle(CarryStyle):
    """One episode's manner; see `CarryStyle`. The grasp is `grasp_along` the handle from its middle."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> SquareStyle:
        """A manner at random."""
        return cls(
            speed=rng.uniform(0.16, 0.28),
            acceleration=rng.uniform(1.4, 2.4),
            turn=rng.uniform(1.2, 2.0),
            hover=rng.uniform(0.05, 0.08),
            funnel=rng.uniform(0.03, 0.06),
            arc=rng.normal(0, 0.02),
            hesitate_at=rng.uniform(0.05, 0.12),
            hesitate_over=rng.uniform(0.01, 0.02),
            hesitate_to=rng.uniform(0.4, 0.8) if rng.random() < 0.4 else 1.0,
            grasp_along=rng.uniform(-0.004, 0.006),
            grasp_height=rng.uniform(0.0, 0.004),
            close_within=rng.uniform(0.005, 0.009),
            noise=rng.uniform(0.002, 0.005),
            noise_time=rng.uniform(0.2, 0.5),
            tremble=rng.uniform(0.005, 0.015),
            carry_speed=rng.uniform(0.20, 0.30),
            carry_height=rng.uniform(0.995, 1.025),
            release_height=rng.uniform(0.895, 0.915),
            **cls.knock(rng, 0.25),
        )


class SquareExpert(CarryExpert):
    """One episode of Square.

    Args:
        rng: everything random comes from here.
        style: its manner; default: drawn.
    """

    style: SquareStyle
    held_width = (0.024, 0.040)  # a handle of 32 mm
    lost_beyond = 0.025
    opening = (0.050, 0.015)

    def __init__(self, rng: np.random.Generator, style: SquareStyle | None = None) -> None:
        super().__init__(rng, SquareStyle.draw(rng) if style is None else style)
        self._release_height = self.style.release_height

    def grasp_fingers(self, scene: Scene, fingers: Array) -> Array:
        """Across the handle, whichever way round is nearer."""
        handle = scene.matrix[:, 0]
        across = np.array([-handle[1], handle[0], 0.0]) / max(float(np.linalg.norm(handle[:2])), 1e-6)
        return across if across @ fingers >= 0 else -across

    def grasp_point(self, scene: Scene) -> Array:
        """On the handle, which is bare from 44 to 79 mm from the nut's centre."""
        along = (0.061 + self.style.grasp_along) * scene.matrix[:, 0]
        return scene.position + along + [0.0, 0.0, self.style.grasp_height]

    def next_phase(self, scene: Scene) -> str:
        """Carry until it is far enough down the peg, let go; start again where it hangs or fell elsewhere."""
        inside = self._inside(scene)
        if self.phase == "carry":
            if inside and scene.position[2] < self._release_height + 0.006:
                return "release"
            return "reach" if self.lost(scene) else "carry"
        down = inside and scene.position[2] < 0.86
        let_go = scene.width > 0.07 and scene.eef[2] > self._grasp_height_at_release + 0.04
        if let_go and not down:
            self._release_height = max(self._release_height - 0.02, 0.85)  # hung: take it further down
            return "reach"
        return "release"

    @property
    def _grasp_height_at_release(self) -> float:
        return self._release_height + self.style.grasp_height

    def _inside(self, scene: Scene) -> bool:
        """The nut is around the peg, and lies flat enough to be so."""
        beside = float(np.abs(scene.position[:2] - PEG).max())
        return bool(beside < 0.012 and scene.position[2] < PEG_TOP - 0.004 and abs(scene.matrix[2, 2]) > 0.95)

    def carry(self, scene: Scene) -> Goal:
        """Up, across and turning; down only where it fits."""
        style, height = self.style, float(scene.position[2])
        way = PEG - scene.position[:2]
        beside = float(np.linalg.norm(way))
        turn = _turn_to_peg(scene.matrix[:, 0])
        misfit = max(beside - 0.003, 0.0) / 0.010 + max(abs(turn) - 0.03, 0.0) / 0.15
        inside = self._inside(scene)
        down = style.carry_height - self._release_height
        wanted = self._release_height - 0.005 + (0.0 if inside else down * smoothstep(misfit))
        clear = 1.0 if inside else smoothstep((height - CLEAR[0]) / (CLEAR[1] - CLEAR[0]))
        near = max(1 - BESIDE / max(beside, BESIDE), clear)
        spin = _about_z(turn)
        arm = scene.eef - scene.position
        # The grip site moves so that the nut gets there as the hand turns.
        goal = scene.position + np.array([*(near * way), wanted - height]) + spin @ arm
        speed = style.carry_speed * (0.35 + 0.65 * smoothstep((beside - 0.01) / 0.10))
        return Goal(goal, spin @ self._fingers, speed, CLOSE)


def _turn_to_peg(handle: Array) -> float:
    """Angle (rad) about the vertical to the nearest way in which a nut with this handle (3,) fits, of three.

    The fourth, with the handle away from the robot, is beyond the arm's reach.
    """
    yaw = float(np.arctan2(handle[1], handle[0]))
    turns = [(fits - yaw + np.pi) % (2 * np.pi) - np.pi for fits in (np.pi / 2, np.pi, -np.pi / 2)]
    return min(turns, key=abs)


def _about_z(angle: float) -> Array:
    """(3, 3): rotation about the vertical."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
