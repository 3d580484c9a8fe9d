"""Commands within the limits, whatever is wanted.

With h the control period and p_n the positions that the commands name (of "velocity" and "delta" axes: add up to):

    v_n = (p_n - p_{n-1}) / h    |v_n| <= V
    a_n = (v_n - v_{n-1}) / h    |a_n| <= A
    j_n = (a_n - a_{n-1}) / h    |j_n| <= J,    low <= p_n <= high.

A command is allowed only if a stop from it (braking.py) stays within all limits. Then the stop's own next period
always is an allowed command, so there always is one: that is what a search falls back to, and what "hold" and "stop"
send. Where the wanted command is not allowed, the allowed one nearest to it is searched between the two.

The nearest one is not enough of a rule where acceleration is limited: racing towards a target it would pass it, turn
and pass it again, for ever. So an axis that could not follow *catches up*: its command also must leave it able to stop,
relative to the wanted motion (which goes on at its last velocity), without passing it. Once it is there it follows
again, and commands that are allowed are sent as they are, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.safety.braking import brake, periods, reach, stop
from diffpolicy_spec.control.safety.limits import SLOWEST_STOP, Limits

__all__ = ["LimitFilter", "Motion"]

POINTS, ROUNDS = 15, 3  # of a search: 1 / 16^3 of the interval
ROUNDING = 1e-10

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Motion:
    """Where the commands have brought the axes.

    Attributes:
        position, velocity, acceleration: (Da,) p_n, v_n, a_n above. Of "free" axes position is the command. Of axes
            whose position is neither commanded nor told it is 0.
        wanted: (Da,) the last wanted command, as position or velocity; NaN: none.
        following: (Da,) whether that one was sent.
        cause: (Da,) index in LIMITS of what an axis that is not following ran into, -1: nothing.
    """

    position: Array
    velocity: Array
    acceleration: Array
    wanted: Array
    following: Mask
    cause: NDArray[np.int64]

    @classmethod
    def at_rest(cls, position: Array) -> Motion:
        """Standing at a position (Da,)."""
        zeros = np.zeros_like(position)
        size = len(position)
        return cls(position.copy(), zeros, zeros, np.full(size, np.nan), np.ones(size, bool), np.full(size, -1))

    def stands(self) -> bool:
        """Whether all axes are at rest, to rounding."""
        return bool((np.abs(self.velocity) <= 1e-9).all())


class LimitFilter:
    """From a motion and a wanted command to the next motion; keeps nothing.

    Args:
        limits: of the axes.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        kinds = np.array(limits.kinds)
        self.h = h = limits.period
        self.places = (kinds == "position") | (kinds == "free")
        self.free = kinds == "free"
        self.deltas = kinds == "delta"
        self.kept = self.places | (limits.told >= 0)
        self._rated = np.flatnonzero(limits.rated)
        self._rates = _Rates.within(limits, self._rated)
        self._unit = np.where(self.deltas, h, 1.0)

    @property
    def longest_stop(self) -> float:
        """s that coming to rest takes at most, from any motion within the limits."""
        return self._rates.longest_stop if len(self._rated) else self.h

    def step(self, motion: Motion, wanted: Array) -> tuple[Motion, Array]:
        """The next motion, and the command (Da,) that makes it; wanted: (Da,), finite."""
        limits, h = self.limits, self.h
        p = motion.position
        # An axis that stands outside may only come back.
        low, high = np.minimum(limits.low, p), np.maximum(limits.high, p)
        low[self.free], high[self.free] = limits.low[self.free], limits.high[self.free]
        goal = np.where(self.places, np.clip(wanted, limits.low, limits.high), wanted / self._unit)
        v = np.where(self.places, (goal - p) / h, goal)
        asked = v
        v = np.where(self.places, v, np.clip(v, (low - p) / h, (high - p) / h))
        cause = np.where(self.places & (goal != wanted) | (v != asked), 0, -1)
        rated = self._rated
        if len(rated):
            before = np.where(motion.following, -1, motion.cause)[rated]
            v[rated], why = self._rates.next(
                _Axes(
                    p[rated], motion.velocity[rated], motion.acceleration[rated], low[rated], high[rated],
                    self.places[rated], motion.following[rated], motion.wanted[rated], goal[rated], asked[rated],
                )
            )  # fmt: skip
            # What brought it behind, where what is wanted now would be in order if it were not.
            why = np.where((why < 0) & (v[rated] != asked[rated]), before, why)
            cause[rated] = np.where(cause[rated] == 0, 0, why)
        followed = (v == asked) & (cause < 0)
        moved = np.where(followed & self.places, wanted, np.clip(p + h * v, low, high))
        now = self._moved(motion, moved, v)
        now = replace(now, wanted=goal, following=followed, cause=np.where(followed, -1, cause))
        return now, self.command(now, np.where(followed, wanted, np.nan))

    def brake(self, motion: Motion) -> tuple[Motion, Array]:
        """The next motion of coming to rest, and its command; free axes stay as they are."""
        v = np.zeros_like(motion.velocity)
        rated, rates = self._rated, self._rates
        if len(rated):
            before = motion.velocity[rated]
            v[rated] = before + self.h * brake(before, motion.acceleration[rated], rates.q, rates.acceleration, self.h)
        low, high = np.minimum(self.limits.low, motion.position), np.maximum(self.limits.high, motion.position)
        now = self._moved(motion, np.clip(motion.position + self.h * v, low, high), v)
        nothing = np.full_like(v, np.nan)
        now = replace(now, wanted=nothing, following=np.zeros(len(v), bool), cause=np.full(len(v), -1))
        return now, self.command(now, nothing)

    def interrupted(self, motion: Motion, periods: int) -> Motion:
        """After periods without a command: what is commanded as a velocity went on, everything else stood."""
        on = ~self.places & ~self.deltas
        velocity = np.where(on, motion.velocity, 0.0)
        position = motion.position + np.where(self.kept & on, periods * self.h * velocity, 0.0)
        return replace(motion, position=position, velocity=velocity, acceleration=np.zeros_like(velocity))

    def command(self, motion: Motion, exactly: Array) -> Array:
        """(Da,) the command that made a motion; exactly: what it is known to be, NaN elsewhere."""
        action = np.where(self.places, motion.position, motion.velocity * self._unit)
        return np.where(np.isnan(exactly), action, exactly)

    def _moved(self, motion: Motion, position: Array, velocity: Array) -> Motion:
        # Rates of positions are those of the numbers that are sent, rounding included.
        v = np.where(self.places, (position - motion.position) / self.h, velocity)
        v[self.free] = 0
        a = (v - motion.velocity) / self.h
        return replace(motion, position=np.where(self.kept, position, 0.0), velocity=v, acceleration=a)


@dataclass(frozen=True, eq=False)
class _Axes:
    """What the search looks at, of n axes: (n,) each."""

    p: Array
    v: Array
    a: Array
    low: Array
    high: Array
    places: Mask
    following: Mask
    before: Array
    goal: Array
    asked: Array

    def of(self, which: NDArray[np.int64]) -> _Axes:
        return _Axes(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class _Rates:
    """Rate limits of n axes, all of them finite but `velocity`'s and `acceleration`'s where a stop needs none."""

    velocity: Array
    acceleration: Array
    q: Array
    h: float

    @classmethod
    def within(cls, limits: Limits, rated: NDArray[np.int64]) -> _Rates:
        h = limits.period
        velocity, acceleration = limits.velocity[rated], limits.acceleration[rated]
        with np.errstate(invalid="ignore"):
            # What is not limited may change at once: from one end to the other and back.
            some = np.where(np.isfinite(limits.jerk[rated]), np.inf, 4 * velocity / h)
            acceleration = np.where(np.isfinite(acceleration), acceleration, some)
            q = np.where(np.isfinite(limits.jerk[rated]), limits.jerk[rated] * h, 2 * acceleration)
        n = SLOWEST_STOP / 4
        slow = np.minimum(n * h * acceleration, n**2 / 2 * h * q)
        return cls(np.minimum(velocity, slow), acceleration, q, h)

    def of(self, which: NDArray[np.int64]) -> _Rates:
        return _Rates(self.velocity[which], self.acceleration[which], self.q[which], self.h)

    @property
    def longest_stop(self) -> float:
        """s; from a velocity within its limit, with an acceleration that can be released within it."""
        v, q, h = self.velocity, self.q, self.h
        a = np.minimum(self.acceleration, 2 * np.sqrt(v * q / h) + q)
        return h * float(periods(v, a, q, self.acceleration, h).max())

    def next(self, axes: _Axes) -> tuple[Array, NDArray[np.int64]]:
        """(n,) the velocity of the next period, and (n,) what the wanted one ran into, index in LIMITS or -1."""
        h, more = self.h, 1 + ROUNDING
        down = np.maximum(axes.a - self.q * more, -self.acceleration * more)
        up = np.minimum(axes.a + self.q * more, self.acceleration * more)
        slowest = np.maximum(axes.v + h * down, -self.velocity * more)
        fastest = np.minimum(axes.v + h * up, self.velocity * more)
        nearest = np.clip(axes.asked, slowest, fastest)
        why = self._broken(axes, nearest)
        behind = np.flatnonzero((nearest != axes.asked) | ~axes.following)
        if len(behind):
            some, rates = axes.of(behind), self.of(behind)
            nearest[behind] = rates._caught_up(some, nearest[behind], slowest[behind], fastest[behind])
        held = np.flatnonzero(~self._stops_easily(axes, nearest))
        if len(held):
            held = held[~self.of(held)._stops(axes.of(held), nearest[held])]
        if len(held):
            some, rates = axes.of(held), self.of(held)
            safe = rates.braked(some.v, some.a)
            nearest[held] = _furthest(safe, nearest[held], lambda v: rates._stops(some, v))
            # Held back by a stop that would leave the position's limits, or else the velocity's.
            by = np.where(rates._leaves(some, axes.asked[held]), 0, 1)
            why[held] = np.where(why[held] < 0, by, why[held])
        return nearest, why

    def braked(self, v: Array, a: Array) -> Array:
        """(n,) the velocity of a stop's next period."""
        return v + self.h * brake(v, a, self.q, self.acceleration, self.h)

    def _broken(self, axes: _Axes, nearest: Array) -> NDArray[np.int64]:
        """Which limit the wanted velocity would break at once, index in LIMITS or -1."""
        more = 1 + 1e-9
        acceleration = np.abs(axes.asked - axes.v) / self.h
        late = np.abs(nearest - axes.asked) > 1e-9 * (1 + np.abs(axes.asked))
        broken = np.where(late, 3, -1)
        broken = np.where(acceleration > self.acceleration * more, 2, broken)
        return np.where(np.abs(axes.asked) > self.velocity * more, 1, broken)

    def _stops_easily(self, axes: _Axes, v: Array) -> Mask:
        """Enough for `_stops`, and cheaper: the fastest velocity of a stop, all the time it takes."""
        far, fast = reach(v, (v - axes.v) / self.h, self.q, self.acceleration, self.h)
        p = axes.p + self.h * v
        return (fast <= self.velocity) & (p + far <= axes.high) & (p - far >= axes.low)

    def _stops(self, axes: _Axes, v: Array) -> Mask:
        """Whether a stop after a period at v stays within the limits; v: (..., n)."""
        far = stop(v, (v - axes.v) / self.h, self.q, self.acceleration, self.h)
        p = axes.p + self.h * v
        slack = 4e-16 * (1 + np.abs(axes.p))
        fast = self.velocity * (1 + 2 * ROUNDING)
        within = (p + far.highest <= axes.high + slack) & (p + far.lowest >= axes.low - slack)
        return within & (far.fastest <= fast) & (far.slowest >= -fast)

    def _leaves(self, axes: _Axes, v: Array) -> Mask:
        """Whether it is the position's limits that a stop leaves."""
        v = np.clip(v, -self.velocity, self.velocity)
        a = np.clip((v - axes.v) / self.h, -self.acceleration, self.acceleration)
        far = stop(v, a, self.q, self.acceleration, self.h)
        p = axes.p + self.h * v
        return (p + far.highest > axes.high) | (p + far.lowest < axes.low)

    def _caught_up(self, axes: _Axes, nearest: Array, slowest: Array, fastest: Array) -> Array:
        """(n,) the velocities nearest to those wanted from which what is wanted is not passed."""
        # The wanted motion: of a velocity it is itself; of a position its last difference, where that is no jump.
        last = (axes.goal - axes.before) / self.h
        u = np.where(np.abs(last) <= self.velocity, last, 0.0)
        u = np.where(axes.places, u, np.clip(axes.goal, -self.velocity, self.velocity))
        match = np.clip(u + self.braked(axes.v - u, axes.a), slowest, fastest)
        good = axes.places & self._stays_short(axes, u, nearest)
        result = np.where(good, nearest, match)
        rest = np.flatnonzero(axes.places & ~good & (nearest != match))
        if len(rest):
            some, rates, motion = axes.of(rest), self.of(rest), u[rest]
            result[rest] = _furthest(match[rest], nearest[rest], lambda v: rates._stays_short(some, motion, v))
        return result

    def _stays_short(self, axes: _Axes, u: Array, v: Array) -> Mask:
        """Whether coming to rest relative to a velocity u, after a period at v, does not pass what is wanted."""
        far = stop(v - u, (v - axes.v) / self.h, self.q, self.acceleration, self.h)
        e = axes.p + self.h * v - axes.goal
        slack = 1e-12 * (1 + np.abs(axes.goal))
        return np.where(axes.asked >= u, e + far.highest <= slack, e + far.lowest >= -slack)


def _furthest(start: Array, end: Array, good: Callable[[Array], Mask]) -> Array:
    """(n,) the furthest point from start, which is taken as good, towards end that is good: by narrowing down.

    The good points need not be one interval: what is found is one that was looked at.
    """
    near, far = start, end
    share = np.arange(1, POINTS + 2)[:, None] / (POINTS + 1)
    for _ in range(ROUNDS):
        points = near + share * (far - near)
        ok = good(points)
        # The last good one; 0: none, near stays.
        index = np.where(ok, np.arange(1, POINTS + 2)[:, None], 0).max(axis=0)
        each = np.arange(len(near))
        nearer = np.where(index > 0, points[np.maximum(index - 1, 0), each], near)
        far = np.where(index > POINTS, nearer, points[np.minimum(index, POINTS), each])
        near = nearer
    return near
