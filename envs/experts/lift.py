"""Lift, by script: reach above the cube on an arc, turn to its sides, descend, close, raise; with a person's variety.

What it is about to do can be read from the state it is in (distance, height, finger opening): a policy that sees two
observations can imitate it. So there are no dead stops, only places where it is slower.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.envs.experts.motion import CommandedPose, OrnsteinUhlenbeck, clip_norm, smoothstep
from diffpolicy_spec.rotations import axis_angle_to_matrix, matrix_to_axis_angle, quat_xyzw_to_matrix

__all__ = ["LiftExpert", "LiftStyle"]

Array = NDArray[np.float64]

DT = 0.05  # s, the task's control period
HELD_WIDTH = (0.030, 0.052)  # m, finger opening around a cube of 40 to 44 mm
LEASH = 0.06  # m, how far the command may run ahead of the arm


@dataclass(frozen=True)
class LiftStyle:
    """One episode's manner. Lengths in m, speeds in m/s, times in s, angles in rad.

    Attributes:
        speed, acceleration: limits of the commanded motion while reaching.
        turn: limit of the commanded rotation, rad/s.
        hover: height above the grasp from which it descends.
        funnel: distance beside the grasp at which it is allowed to start coming down.
        arc: sideways bulge of the way there; the sign is the side.
        hesitate_at, hesitate_over, hesitate_to: distance from the grasp around which it slows down, half the width of
            that place, and the factor on its speed (1 = does not hesitate).
        grasp_along, grasp_height: where it takes the cube: along the fingers' plane and above the centre.
        close_within: distance from the grasp at which it starts to close.
        lift_speed, lift_height, lift_drift: raising the cube; the drift is sideways, x and y.
        noise, noise_time: standard deviation and memory of the wandering of its aim.
        tremble: standard deviation of the wandering of its orientation.
        bump_at, bump: distance from the grasp at which its aim is knocked off, and by how much (x, y, z); 0 = never.
    """

    speed: float
    acceleration: float
    turn: float
    hover: float
    funnel: float
    arc: float
    hesitate_at: float
    hesitate_over: float
    hesitate_to: float
    grasp_along: float
    grasp_height: float
    close_within: float
    lift_speed: float
    lift_height: float
    lift_drift: tuple[float, float]
    noise: float
    noise_time: float
    tremble: float
    bump_at: float
    bump: tuple[float, float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> LiftStyle:
        """A manner at random."""
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


class LiftExpert:
    """One episode of Lift.

    Args:
        rng: everything random comes from here.
        style: its manner; default: drawn.
    """

    def __init__(self, rng: np.random.Generator, style: LiftStyle | None = None) -> None:
        self.style = LiftStyle.draw(rng) if style is None else style
        self.phase = "reach"  # then "close" and "lift"; back to "reach" when the cube is lost
        self._aim_noise = OrnsteinUhlenbeck(3, self.style.noise, self.style.noise_time, DT, rng)
        self._turn_noise = OrnsteinUhlenbeck(3, self.style.tremble, self.style.noise_time, DT, rng)
        self._bumped = False
        self._command: CommandedPose | None = None
        self._fingers = np.zeros(3)  # direction the fingers close along, horizontal unit vector
        self._start_distance = 1.0
        self._bulge = np.zeros(2)
        self._grasp = np.zeros(3)
        self._width = np.inf

    def act(self, obs: dict[str, Array], eef_matrix: Array) -> Array:
        """The next absolute action; see `Expert.act`."""
        eef, cube = obs["robot0_eef_pos"], obs["object"][:3]
        if self._command is None:
            self._command = CommandedPose(eef, eef_matrix, DT)
            self._fingers = eef_matrix[:, 0]
            way = (cube - eef)[:2]
            self._start_distance = max(float(np.linalg.norm(way)), 0.03)
            # Above 0.59 of the distance the bulge would have a resting point of its own, short of the cube.
            limit = 0.4 * self._start_distance
            side = np.array([-way[1], way[0]]) / self._start_distance
            self._bulge = float(np.clip(self.style.arc, -limit, limit)) * side
        width = float(obs["robot0_gripper_qpos"][0] - obs["robot0_gripper_qpos"][1])
        self._fingers = _nearest_side(quat_xyzw_to_matrix(obs["object"][3:7]), self._fingers)
        self._change_phase(eef, cube, eef_matrix, width)
        self._width = width

        goal, speed = {"reach": self._reach, "close": self._close, "lift": self._lift}[self.phase](eef, cube)
        goal_matrix = _pointing_down(self._fingers)
        away = smoothstep(float(np.linalg.norm(eef - self._grasp)) / 0.08) if self.phase == "reach" else 0.0
        steadiness = 0.15 + 0.85 * away  # people steady themselves where it matters
        goal = goal + steadiness * self._aim_noise.step()
        goal_matrix = _turned(goal_matrix, steadiness * self._turn_noise.step())
        self._command.follow(
            goal,
            goal_matrix,
            speed=speed,
            acceleration=self.style.acceleration,
            turn=self.style.turn,
            turn_acceleration=8.0,
        )
        self._command.leash(eef, LEASH)
        gripper = -1.0 if self.phase == "reach" else 1.0
        return np.concatenate([self._command.position, matrix_to_axis_angle(self._command.matrix), [gripper]])

    def _change_phase(self, eef: Array, cube: Array, eef_matrix: Array, width: float) -> None:
        style = self.style
        if self.phase == "reach":
            along = np.cross([0.0, 0.0, 1.0], self._fingers)
            self._grasp = cube + style.grasp_along * along + [0.0, 0.0, style.grasp_height]
            error = eef - self._grasp
            aligned = abs(float(eef_matrix[:, 0] @ along)) < 0.12
            beside = float(np.linalg.norm(error[:2]))
            if aligned and beside < 0.010 and error[2] < style.close_within and width > HELD_WIDTH[1]:
                self.phase = "close"
        elif self.phase == "close":
            if width < HELD_WIDTH[0]:
                self.phase = "reach"
            elif width < HELD_WIDTH[1] and abs(width - self._width) < 0.0006:
                self.phase = "lift"
        elif width < HELD_WIDTH[0] or np.linalg.norm(cube - eef) > 0.035:
            self.phase = "reach"

    def _reach(self, eef: Array, cube: Array) -> tuple[Array, float]:
        """Goal (3,) and speed on the way to the grasp: the further beside it, the higher above it."""
        style = self.style
        error = eef - self._grasp
        beside = float(np.linalg.norm(error[:2]))
        distance = float(np.linalg.norm(error))
        goal = self._grasp.copy()
        goal[2] += style.hover * smoothstep((beside - 0.008) / style.funnel + self._misalignment())
        u = min(beside / self._start_distance, 1.0)
        goal[:2] += 6.75 * u * u * (1 - u) * self._bulge
        if not self._bumped and style.bump_at > 0 and distance < style.bump_at:
            self._bumped = True
            self._aim_noise.value = self._aim_noise.value + style.bump
        slow = 1 - (1 - style.hesitate_to) * float(
            np.exp(-(((distance - style.hesitate_at) / style.hesitate_over) ** 2))
        )
        near = 0.4 + 0.6 * smoothstep(distance / 0.06)
        return goal, style.speed * slow * near

    def _misalignment(self) -> float:
        """0 where the commanded fingers face the cube's sides, 1 from 0.46 rad off: it turns before it descends."""
        assert self._command is not None
        off = float(np.arccos(np.clip(self._command.matrix[:, 0] @ self._fingers, -1, 1)))
        return max(off - 0.06, 0.0) / 0.4

    def _close(self, eef: Array, cube: Array) -> tuple[Array, float]:
        return self._grasp, 0.5 * self.style.speed

    def _lift(self, eef: Array, cube: Array) -> tuple[Array, float]:
        return self._grasp + np.array([*self.style.lift_drift, self.style.lift_height]), self.style.lift_speed


def _nearest_side(cube: Array, fingers: Array) -> Array:
    """The horizontal direction of the cube's four side normals that is nearest to the direction `fingers` (3,)."""
    # Whichever face is up, the two most horizontal axes are the sides.
    axes = sorted(cube.T, key=lambda axis: abs(axis[2]))[:2]
    sides = [sign * np.array([axis[0], axis[1], 0.0]) for axis in axes for sign in (1, -1)]
    best = max(sides, key=lambda side: float(side @ fingers))
    return best / np.linalg.norm(best)


def _pointing_down(fingers: Array) -> Array:
    """(3, 3): x along the fingers, z straight down."""
    z = np.array([0.0, 0.0, -1.0])
    return np.stack([fingers, np.cross(z, fingers), z], axis=1)


def _turned(matrix: Array, rotation: Array) -> Array:
    return axis_angle_to_matrix(clip_norm(rotation, 0.1)) @ matrix
