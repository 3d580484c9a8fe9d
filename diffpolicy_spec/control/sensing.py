"""Reading a robot: its observations in time, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffpolicy_spec.control.clock_map import FUTURE, JUMP, ClockMap
from diffpolicy_spec.control.config import ControlConfig
from diffpolicy_spec.control.events import FAULTS
from diffpolicy_spec.control.faults import FaultBook
from diffpolicy_spec.control.history import DUPLICATE, NEW, History, Stack, misfit
from diffpolicy_spec.control.protocols import Failure, Observation, PolicyInfo, Robot

__all__ = ["Sensing"]

_LEAST_LATE = 0.02
_MOST = 64  # readings of a period


class Sensing:
    """What a robot has told, by its time.

    Args:
        guard: what the safety layer thinks of an observation newer than all before, and s on the loop's clock when it
            was read; whether it may be used.
    """

    def __init__(
        self,
        robot: Robot,
        config: ControlConfig,
        faults: FaultBook,
        clock: Callable[[], float],
        guard: Callable[[Observation, float], bool],
    ) -> None:
        self._robot, self._config, self._faults, self._clock, self._guard = robot, config, faults, clock, guard
        self.clock_map = ClockMap(1e-3 * config.max_clock_jump_ms)
        self._info: PolicyInfo | None = None
        self._history: History | None = None
        self._late = max(config.dt + 1 / config.control_hz, _LEAST_LATE)

    def know(self, info: PolicyInfo) -> None:
        """Keep observations for this policy from now on."""
        self._info = info
        self._history = History(info, self._config.dt, self._config.history_tolerance)

    def reset(self) -> None:
        """Forget all observations."""
        if self._history is not None:
            self._history.clear()

    def excuse(self) -> None:
        """The loop was held up and has not read: what it missed was not lost."""
        if self._history is not None:
            self._history.excuse()

    @property
    def newest(self) -> float | None:
        """s on the loop's clock, of the newest usable observation."""
        newest = None if self._history is None else self._history.newest
        return None if newest is None else self.clock_map.to_loop(newest)

    def stack(self) -> Stack | None:
        """The policy's history, its time on the loop's clock."""
        found = None if self._history is None else self._history.stack()
        return None if found is None else Stack(found.obs, self.clock_map.to_loop(found.time), found.lost)

    def read(self) -> None:
        """Take what the robot has."""
        robot_now = None
        try:
            before = self._clock()
            tells = _method(self._robot, "now")
            if tells is not None:
                robot_now = float(tells())
            after = self._clock()
            every = _method(self._robot, "readings")
            observations = [self._robot.read()] if every is None else list(every())[-_MOST:]
            complains = _method(self._robot, "failures")
            failures: Sequence[Failure] = () if complains is None else complains()
            for failure in failures:
                self._failed(failure, self._clock())
        except Exception as error:
            self._faults.happened("robot_failed", f"read: {_said(error)}", self._clock())
            return
        now = self._clock()
        if robot_now is not None and math.isfinite(robot_now) and self.clock_map.synchronise(robot_now, before, after):
            self._jumped(now)
        for observation in observations:
            if observation is not None:
                try:
                    self._take(observation, now)
                except Exception as error:  # anything may be in it
                    self._invalid(f"an observation cannot be read: {_said(error)}", now)

    def _failed(self, failure: Failure, now: float) -> None:
        if failure.recovered:
            self._faults.over(failure.kind, now, failure.message, whose="robot")
        else:
            kind = failure.kind if failure.kind in FAULTS else "robot_failed"
            self._faults.happened(kind, failure.message, now, lasting=kind == "connection_lost", whose="robot")

    def _take(self, observation: Observation, now: float) -> None:
        stamp = _stamp(observation)
        if stamp is None:
            self._invalid("an observation without a time", now)
            return
        kind = self.clock_map.see(stamp, now)
        if kind == FUTURE:
            ahead = self.clock_map.to_loop(stamp) - now
            self._invalid(f"read {ahead:.3f} s after it was received, by its stamp", now)
            return
        if kind == JUMP:
            self._jumped(now)
        if self._info is None or self._history is None:
            return
        if not isinstance(observation.values, Mapping):
            self._invalid(f"values must be a mapping of key to array, got {type(observation.values).__name__}", now)
            return
        newer = self._history.newest is None or stamp > self._history.newest
        if newer and not self._guard(observation, min(self.clock_map.to_loop(stamp), now)):
            return
        wrong = misfit(observation.values, self._info)
        if wrong:
            self._invalid(wrong, now)
            return
        self._keep(stamp, observation, now)

    def _keep(self, stamp: float, observation: Observation, now: float) -> None:
        assert self._history is not None
        found = self._history.add(stamp, observation.values)
        if found == DUPLICATE:
            self._faults.happened("observation_duplicate", "an observation came twice", now)
        elif found != NEW:
            self._faults.happened("observation_reordered", "an observation came after a newer one", now)
        else:
            missing = self._history.missing
            if missing:
                self._faults.happened("observation_lost", f"{missing} observations did not come", now, times=missing)
            late = now - self.clock_map.to_loop(stamp)
            if late > self._late:
                self._faults.happened("observation_late", f"an observation came {1e3 * late:.0f} ms late", now)

    def _jumped(self, now: float) -> None:
        self.reset()
        self._faults.happened("clock_jump", "the robot's clock has jumped: history and offset begin anew", now)

    def _invalid(self, what: str, now: float) -> None:
        self._faults.happened("observation_invalid", what, now)


def _method(robot: Robot, name: str) -> Callable[[], Any] | None:
    """What a robot may have; an attribute of that name that cannot be called is something of its own."""
    found = getattr(robot, name, None)
    return found if callable(found) else None


def _stamp(observation: Any) -> float | None:
    try:
        stamp = float(observation.time)
    except (AttributeError, TypeError, ValueError):
        return None
    return stamp if math.isfinite(stamp) else None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
