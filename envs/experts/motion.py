"""Smooth motion of a commanded pose: limited speed and acceleration, and noise that is correlated in time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.rotations import axis_angle_to_matrix, matrix_to_axis_angle

__all__ = ["CommandedPose", "OrnsteinUhlenbeck", "clip_norm", "smoothstep"]

Array = NDArray[np.float64]


def clip_norm(vector: Array, limit: float) -> Array:
    """The vector (n,), shortened to the length `limit` where it is longer."""
    length = float(np.linalg.norm(vector))
    return vector if length <= limit else vector * (limit / length)


def smoothstep(x: float) -> float:
    """3 u^2 - 2 u^3 of u = x clipped to [0, 1]: from 0 to 1 without a kink."""
    u = min(max(x, 0.0), 1.0)
    return u * u * (3 - 2 * u)


class CommandedPose:
    """A pose that follows a goal: v <- v + clip(clip(gain (goal - x), speed) - v, acceleration dt); x <- x + v dt.

    Args:
        position: (3,) m. matrix: (3, 3). Where it starts, at rest.
        dt: seconds between two updates.
        gain: 1/s, how fast it closes in once it is near.
    """

    def __init__(self, position: Array, matrix: Array, dt: float, gain: float = 6.0) -> None:
        self.position, self.matrix = position.copy(), matrix.copy()
        self.velocity, self.spin = np.zeros(3), np.zeros(3)
        self.dt, self.gain = dt, gain

    def follow(
        self,
        position: Array,
        matrix: Array,
        *,
        speed: float,
        acceleration: float,
        turn: float,
        turn_acceleration: float,
    ) -> None:
        """One update towards a goal.

        Args:
            position: (3,) m. matrix: (3, 3).
            speed, acceleration: limits, m/s and m/s^2.
            turn, turn_acceleration: limits, rad/s and rad/s^2.
        """
        wanted = clip_norm(self.gain * (position - self.position), speed)
        self.velocity = self.velocity + clip_norm(wanted - self.velocity, acceleration * self.dt)
        self.position = self.position + self.velocity * self.dt
        wanted = clip_norm(self.gain * matrix_to_axis_angle(matrix @ self.matrix.T), turn)
        self.spin = self.spin + clip_norm(wanted - self.spin, turn_acceleration * self.dt)
        self.matrix = axis_angle_to_matrix(self.spin * self.dt) @ self.matrix

    def leash(self, position: Array, length: float) -> None:
        """Stay within `length` metres of a position (3,): a command far ahead of the arm is a jerk to come."""
        self.position = position + clip_norm(self.position - position, length)


class OrnsteinUhlenbeck:
    """n <- n exp(-dt/tau) + std sqrt(1 - exp(-2 dt/tau)) w, w ~ N(0, I): deviation std, forgotten in about tau s."""

    def __init__(self, size: int, std: float, tau: float, dt: float, rng: np.random.Generator) -> None:
        self.keep = float(np.exp(-dt / tau))
        self.kick_std = std * float(np.sqrt(1 - self.keep**2))
        self.rng = rng
        self.value = rng.normal(0, std, size)

    def step(self) -> Array:
        """The next value, (n,)."""
        self.value = self.keep * self.value + self.rng.normal(0, self.kick_std, self.value.shape)
        return self.value
