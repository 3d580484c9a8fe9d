"""What the experts share: reach above an object on an arc, turn, descend, close; then the task's own phases.

What an expert is about to do can be read from the state it is in (distances, heights, finger opening): a policy that
sees two observations can imitate it. So there are no dead stops, only places where it is slower.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.envs.experts.motion import CommandedPose, OrnsteinUhlenbeck, clip_norm, smoothstep
from diffpolicy_spec.rotations import axis_angle_to_matrix, matrix_to_axis_angle

__all__ = ["CLOSE", "DT", "LEASH", "OPEN", "Goal", "PickExpert", "PickStyle", "Scene", "pointing_down"]

Array = NDArray[np.float64]

DT = 0.05  # s, the tasks' control period
LEASH = 0.06  # m, how far the command may run ahead of the arm
OPEN, CLOSE = -1.0, 1.0  # the gripper's action
STEADY = 0.15  # share of the wandering that is left where precision matters


@dataclass(frozen=True, kw_only=True)
class PickStyle:
    """One episode's manner of reaching. Lengths in m, speeds in m/s, times in s, angles in rad.

    Attributes:
        speed, acceleration: limits of the commanded motion while reaching.
        turn: limit of the commanded rotation, rad/s.
        hover: height above the grasp from which it descends.
        funnel: distance beside the grasp at which it is allowed to start coming down.
        arc: sideways bulge of the way there; the sign is the side.
        hesitate_at, hesitate_over, hesitate_to: distance from the grasp around which it slows down, half the width of
            that place, and the factor on its speed (1 = does not hesitate).
        grasp_along, grasp_height: where it takes the object: along the fingers' plane and above the centre.
        close_within: distance from the grasp at which it starts to close.
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
    noise: float
    noise_time: float
    tremble: float
    bump_at: float
    bump: tuple[float, float, float]

    @staticmethod
    def knock(rng: np.random.Generator, share: float) -> dict[str, Any]:
        """`bump_at` and `bump`: in a share of the episodes 2 to 4.5 cm sideways and up to 2 cm upwards."""
        bumped = rng.random() < share
        angle, size, rise = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.045), rng.uniform(0.0, 0.02)
        at = rng.uniform(0.04, 0.12)
        if not bumped:
            return {"bump_at": 0.0, "bump": (0.0, 0.0, 0.0)}
        return {"bump_at": at, "bump": (size * np.cos(angle), size * np.sin(angle), rise)}


@dataclass(frozen=True)
class Scene:
    """What an expert sees at one step.

    Attributes:
        eef, eef_matrix: (3,) m and (3, 3), the grip site.
        position, matrix: (3,) m and (3, 3), the object's body.
        width: finger opening, m.
    """

    eef: Array
    eef_matrix: Array
    position: Array
    matrix: Array
    width: float


@dataclass(frozen=True)
class Goal:
    """Where the commanded pose is drawn to.

    Attributes:
        position: (3,) m.
        fingers: (3,), horizontal unit vector that the fingers should close along; the hand points straight down.
        speed: limit on the way there, m/s.
        gripper: OPEN or CLOSE.
        wander: share of the noise of its aim, 0 to 1.
    """

    position: Array
    fingers: Array
    speed: float
    gripper: float
    wander: float = STEADY


class PickExpert(ABC):
    """One episode of a task that begins with picking something up.

    Phases "reach" and "close" are here; then comes `after_close`, the first phase of the subclass.

    Args:
        rng: everything random comes from here.
        style: its manner.
    """

    held_width: tuple[float, float]  # m, finger opening around the object
    lost_beyond: float  # m from the grip site to the grasp on the object: it has slipped out
    after_close: str
    leash: float = LEASH

    def __init__(self, rng: np.random.Generator, style: PickStyle) -> None:
        self.style = style
        self.phase = "reach"  # back to it whenever the object is lost
        self._aim_noise = OrnsteinUhlenbeck(3, style.noise, style.noise_time, DT, rng)
        self._turn_noise = OrnsteinUhlenbeck(3, style.tremble, style.noise_time, DT, rng)
        self._bumped = False
        self._command: CommandedPose | None = None
        self._fingers = np.zeros(3)  # direction the fingers close along at the grasp, horizontal unit vector
        self._start_distance = 1.0
        self._bulge = np.zeros(2)
        self._grasp = np.zeros(3)
        self._last_width = np.inf

    @property
    def phases(self) -> dict[str, Callable[[Scene], Goal]]:
        """The goal in each phase; subclasses add theirs."""
        return {"reach": self._reach, "close": self._close}

    @abstractmethod
    def object_pose(self, obs: dict[str, Array]) -> tuple[Array, Array]:
        """Position (3,) and orientation (3, 3) of the object in an observation."""

    @abstractmethod
    def grasp_fingers(self, scene: Scene, fingers: Array) -> Array:
        """The way to take the object that is nearest to the direction `fingers` (3,): horizontal unit vector."""

    @abstractmethod
    def grasp_point(self, scene: Scene) -> Array:
        """Where the grip site should be at the grasp, (3,) m."""

    @abstractmethod
    def next_phase(self, scene: Scene) -> str:
        """The phase that follows from the scene, in phases other than "reach" and "close"."""

    def act(self, obs: dict[str, Array], eef_matrix: Array) -> Array:
        """The next absolute action; see `Expert.act`."""
        position, matrix = self.object_pose(obs)
        width = float(obs["robot0_gripper_qpos"][0] - obs["robot0_gripper_qpos"][1])
        scene = Scene(obs["robot0_eef_pos"], eef_matrix, position, matrix, width)
        if self._command is None:
            self._command = CommandedPose(scene.eef, eef_matrix, DT)
            self._fingers = eef_matrix[:, 0]
            self._bend(scene)
        self._fingers = self.grasp_fingers(scene, self._fingers)
        if self.phase == "reach":
            self._grasp = self.grasp_point(scene)
            if self._can_close(scene):
                self.phase = "close"
        elif self.phase == "close":
            if width < self.held_width[0]:
                self.phase = "reach"
            elif width < self.held_width[1] and abs(width - self._last_width) < 0.0006:
                self.phase = self.after_close
        else:
            self.phase = self.next_phase(scene)
        self._last_width = width

        goal = self.phases[self.phase](scene)
        position = goal.position + goal.wander * self._aim_noise.step()
        matrix = axis_angle_to_matrix(clip_norm(goal.wander * self._turn_noise.step(), 0.1))
        self._command.follow(
            position,
            matrix @ pointing_down(goal.fingers),
            speed=goal.speed,
            acceleration=self.style.acceleration,
            turn=self.style.turn,
            turn_acceleration=8.0,
        )
        self._command.leash(scene.eef, self.leash)
        return np.concatenate([self._command.position, matrix_to_axis_angle(self._command.matrix), [goal.gripper]])

    def _bend(self, scene: Scene) -> None:
        """The arc of the way to the object, from where the arm is."""
        way = (scene.position - scene.eef)[:2]
        self._start_distance = max(float(np.linalg.norm(way)), 0.03)
        # Above 0.59 of the distance the bulge would have a resting point of its own, short of the object.
        limit = 0.4 * self._start_distance
        side = np.array([-way[1], way[0]]) / self._start_distance
        self._bulge = float(np.clip(self.style.arc, -limit, limit)) * side

    def _can_close(self, scene: Scene) -> bool:
        along = np.cross([0.0, 0.0, 1.0], self._fingers)
        error = scene.eef - self._grasp
        aligned = abs(float(scene.eef_matrix[:, 0] @ along)) < 0.12
        there = float(np.linalg.norm(error[:2])) < 0.010 and error[2] < self.style.close_within
        return bool(aligned and there and scene.width > self.held_width[1])

    def _reach(self, scene: Scene) -> Goal:
        """On the way to the grasp: the further beside it, the higher above it."""
        style = self.style
        error = scene.eef - self._grasp
        beside = float(np.linalg.norm(error[:2]))
        distance = float(np.linalg.norm(error))
        goal = self._grasp.copy()
        goal[2] += style.hover * smoothstep((beside - 0.008) / style.funnel + self.unready(scene))
        u = min(beside / self._start_distance, 1.0)
        goal[:2] += 6.75 * u * u * (1 - u) * self._bulge
        if not self._bumped and style.bump_at > 0 and distance < style.bump_at:
            self._bumped = True
            self._aim_noise.value = self._aim_noise.value + style.bump
        slow = 1 - (1 - style.hesitate_to) * float(
            np.exp(-(((distance - style.hesitate_at) / style.hesitate_over) ** 2))
        )
        near = 0.4 + 0.6 * smoothstep(distance / 0.06)
        wander = STEADY + (1 - STEADY) * smoothstep(distance / 0.08)  # people steady themselves where it matters
        return Goal(goal, self._fingers, style.speed * slow * near, OPEN, wander)

    def unready(self, scene: Scene) -> float:
        """0 where the commanded fingers face the object, 1 from 0.46 rad off: it turns before it descends."""
        assert self._command is not None
        off = float(np.arccos(np.clip(self._command.matrix[:, 0] @ self._fingers, -1, 1)))
        return max(off - 0.06, 0.0) / 0.4

    def _close(self, scene: Scene) -> Goal:
        return Goal(self._grasp, self._fingers, 0.5 * self.style.speed, CLOSE)

    def lost(self, scene: Scene) -> bool:
        """The fingers are shut, or the object is no longer between them."""
        apart = float(np.linalg.norm(self.grasp_point(scene) - scene.eef))
        return scene.width < self.held_width[0] or apart > self.lost_beyond


def pointing_down(fingers: Array) -> Array:
    """(3, 3): x along the fingers, z straight down."""
    z = np.array([0.0, 0.0, -1.0])
    return np.stack([fingers, np.cross(z, fingers), z], axis=1)
