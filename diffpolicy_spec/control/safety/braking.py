"""Coming to rest with limited acceleration and jerk, in discrete time.

Commands are h seconds apart. With positions p_n: v_n = (p_n - p_{n-1}) / h, a_n = (v_n - v_{n-1}) / h, |a_n| <= A,
|a_n - a_{n-1}| <= q = J h. All functions take arrays of any shape that broadcast, and are exact: no simulation in time,
no iteration.

*Releasing* an acceleration a means bringing it to 0 as fast as the jerk allows; the velocity changes meanwhile by

    R(a) = sign(a) h sum_{k=1}^{m} (|a| - k q),    m = ceil(|a| / q) - 1.

The fastest stop pushes the acceleration against the motion until releasing it would just end at v = 0, then releases.
As G(a) = h a + R(a) is increasing, that is one feedback: a' = the solution of G(a') = -v, clipped to what jerk and
acceleration allow. Rest is reached after finitely many periods, and a stop's continuation is a stop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Stop", "brake", "periods", "reach", "released", "stop"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Stop:
    """How far a stop goes: of the positions relative to where it begins, and of the velocities; the beginning counts.

    Attributes:
        highest, lowest: of the position, units; fastest, slowest: of the velocity, units / s.
        periods: until all are at rest.
    """

    highest: Array
    lowest: Array
    fastest: Array
    slowest: Array
    periods: int


def released(a: Array, q: Array, h: float) -> Array:
    """R(a): the velocity that releasing an acceleration adds."""
    size = np.abs(a)
    m = np.maximum(np.ceil(size / q) - 1, 0)
    return np.sign(a) * h * (m * size - q * m * (m + 1) / 2)


def _release_from(v: Array, q: Array, h: float) -> Array:
    """The a with G(a) = -v: y = |v| / (h q) is n x - n (n - 1) / 2 where x = |a| / q and n = ceil(x)."""
    y = np.abs(v) / (h * q)
    n = np.maximum(np.ceil((np.sqrt(1 + 8 * y) - 1) / 2), 1)
    return -np.sign(v) * q * (y + n * (n - 1) / 2) / n


def periods(w: Array, a: Array, q: Array, limit: Array, h: float) -> Array:
    """At least as many as a stop takes that would end at |velocity| w if a were released."""
    return np.ceil(np.abs(a) / q) + 2 * np.ceil(np.sqrt(w / (h * q))) + np.ceil(w / (h * limit)) + 3


def reach(v: Array, a: Array, q: Array, limit: Array, h: float) -> tuple[Array, Array]:
    """Bounds of a stop: how far it goes at most to either side, and its largest |velocity|."""
    w = v + released(a, q, h)
    fast = np.maximum(np.abs(v), np.abs(w))
    return h * fast * periods(np.abs(w), a, q, limit, h), fast


def brake(v: Array, a: Array, q: Array, limit: Array, h: float) -> Array:
    """The acceleration of a stop's next period."""
    return np.clip(_release_from(v, q, h), np.maximum(a - q, -limit), np.minimum(a + q, limit))


def stop(v: Array, a: Array, q: Array, limit: Array, h: float) -> Stop:
    """The whole stop from velocities v and accelerations a, (..., Da)."""
    w = v + released(a, q, h)
    # Upside down where releasing ends at a negative velocity: below, the acceleration is pushed down.
    s = np.where(w < 0, -1.0, 1.0)
    v, a, w = s * v, s * a, np.abs(w)
    steps = int(periods(w, a, q, limit, h).max(initial=1.0))
    i = np.arange(1, steps + 1).reshape(-1, *[1] * v.ndim)
    pushed = np.maximum(a - i * q, -limit)
    velocity = v + h * np.cumsum(pushed, axis=0)
    # How many periods the acceleration is pushed: as long as releasing it afterwards does not end below 0.
    n = (velocity + released(pushed, q, h) >= 0).sum(axis=0)
    at = np.where(n > 0, np.take_along_axis(velocity, np.maximum(n - 1, 0)[None], axis=0)[0], v)
    last = _release_from(at, q, h)
    release = np.sign(last) * np.maximum(np.abs(last) - (i - n - 1) * q, 0)
    velocity = v + h * np.cumsum(np.where(i <= n, pushed, release), axis=0)
    position = h * np.cumsum(velocity, axis=0)
    high, low = np.maximum(position.max(axis=0), 0), np.minimum(position.min(axis=0), 0)
    fast, slow = np.maximum(velocity.max(axis=0), v), np.minimum(velocity.min(axis=0), v)
    up = s > 0
    return Stop(
        np.where(up, high, -low), np.where(up, low, -high), np.where(up, fast, -slow), np.where(up, slow, -fast), steps
    )
