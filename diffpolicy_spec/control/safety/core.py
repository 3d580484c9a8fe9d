"""What stands between what is wanted of a robot and what it is sent."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.config import SafetyConfig
from diffpolicy_spec.control.events import Intervention
from diffpolicy_spec.control.protocols import Observation
from diffpolicy_spec.control.safety.filter import LimitFilter, Motion
from diffpolicy_spec.control.safety.guards import action_fault, observation_fault, position_fault
from diffpolicy_spec.control.safety.limits import LIMITS, Limits
from diffpolicy_spec.control.safety.telling import Teller

__all__ = ["Command", "Safety"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Command:
    """What is to be sent.

    Attributes:
        action: (Da,); None: nothing.
        source: "wanted" (within the limits), or one of `events.SOURCES`: "hold", "zero", "stop", "nothing".
        interventions: what is to be published of what the safety layer did.
    """

    action: Array | None
    source: str
    interventions: tuple[Intervention, ...] = ()


class Safety:
    """Guards, limits, safety action and stops of one robot. Not a thread's own: who commands holds `Watchdog.lock`.

    Commands belong to a grid of 1 / hz seconds. `now` is the time of the period, s on the loop's clock; it is rounded
    to whole periods since the last command. A second command for the same period is none ("nothing": the one before it
    is in force). After periods without a command the robot is taken to have stood (velocity commands: to have gone on),
    and starts anew from there; after more than twice `watchdog_ms`, or `resume`, from the position it tells.
    A command that could not be sent is none: `unsent`.

    Args:
        config: see there.
        action_dim: Da.
        hz: commands a second.
        action_repr: of the policy; "delta" says what the axes are where `config.kind` is left as it is.

    Attributes:
        usable: whether the observation seen last is one: finite numbers, the position among them where one is named.

    Raises:
        ValueError: see `Limits.of`.
    """

    def __init__(self, config: SafetyConfig, action_dim: int, hz: float, *, action_repr: str = "raw") -> None:
        self.config = config
        self.action_dim = action_dim
        self.limits = Limits.of(config, action_dim, hz, action_repr)
        self.usable = False
        self._filter = LimitFilter(self.limits)
        self._previews: dict[float, LimitFilter] = {}
        self._told = np.flatnonzero(self.limits.told >= 0)
        self._teller = Teller()
        self._motion: Motion | None = None
        self._last: float | None = None
        self._before: tuple[Motion | None, float | None] = None, None
        self._stopping: str | None = None
        self._halted: str | None = None
        self._emergency: str | None = None
        self._seen: Array | None = None
        self._stamp: float | None = None
        self._fresh: float | None = None
        # What velocity and delta commands moved since: a told position is older than the last of them.
        self._moves: deque[tuple[float, Array]] = deque(maxlen=max(2, round(2 * hz)))

    # --- what it says -------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """ "ready": nothing sent yet; "running"; "stopped": until `resume`."""
        if self._emergency is not None or self._stopping is not None:
            return "stopped"
        return "ready" if self._motion is None else "running"

    @property
    def reason(self) -> str | None:
        """Why it is stopped."""
        return self._emergency if self._emergency is not None else self._stopping

    @property
    def at_rest(self) -> bool:
        """Whether the last command has brought all axes to rest; a stopped robot that is may be told to stop."""
        return self._motion is None or self._motion.stands()

    @property
    def longest_stop(self) -> float:
        """s that coming to rest takes at most."""
        return self._filter.longest_stop

    @property
    def counts(self) -> Counter[tuple[str, int | None]]:
        """(kind, axis or None) -> how often it stepped in, told or not."""
        return Counter(self._teller.counts)

    # --- what it is told ----------------------------------------------------------------------------------------------

    def see(self, observation: Observation, received: float) -> list[Intervention]:
        """Look at an observation; `usable` says whether it may be used. What is returned is to be published.

        Args:
            observation: of the robot.
            received: s on the loop's clock, when it was made as far as that is known, else when it came.
        """
        self.usable = False
        fault = observation_fault(observation.values)
        if fault is not None:
            return self._teller.tell("nonfinite_observation", received, f"an observation was dropped: {fault}")
        key = self.config.position_from
        if key is not None:
            fault = position_fault(observation.values, key, self.limits.told)
            if fault is not None:
                return self._teller.tell("wrong_observation", received, f"an observation was dropped: {fault}")
            if observation.time != self._stamp:
                self._place(np.asarray(observation.values[key], dtype=np.float64), received)
        if observation.time != self._stamp:  # the same reading again is no sign of life
            self._fresh = received if self._fresh is None else max(self._fresh, received)
            self._stamp = observation.time
        self.usable = True
        return []

    def emergency_stop(self, reason: str) -> None:
        """Come to rest within the limits and stay there; wins over everything. From any thread or signal handler.

        `reset`, then `resume` is needed to go on.
        """
        self._emergency = reason

    def stop(self, reason: str) -> None:
        """Come to rest within the limits and stay there until `resume`."""
        self._stopping = reason

    def resume(self) -> None:
        """Go on after a stop, from the position the robot tells if it stands and still tells.

        Raises:
            RuntimeError: after an emergency stop without `reset`.
        """
        if self._emergency is not None:
            raise RuntimeError(f"an emergency stop is in force ({self._emergency}): reset first, then resume")
        if self._stopping is not None and self._motion is not None and self._motion.stands():
            # It stands there since the last readings, or is moved by hand; older ones are from before it stood.
            oldest = (self._last or 0.0) - 1e-3 * self.config.max_observation_age_ms
            if self._fresh is not None and self._fresh >= oldest:
                self._motion = self._anew(self._motion)
        self._stopping = self._halted = None

    def reset(self) -> None:
        """The robot was put elsewhere, at rest: forget where it was. An emergency stop becomes a stop."""
        if self._emergency is not None:
            self._stopping, self._emergency = f"emergency stop: {self._emergency}", None
        self._motion = self._last = self._seen = self._stamp = self._fresh = None
        self._before = None, None
        self._moves.clear()

    # --- what it answers ----------------------------------------------------------------------------------------------

    def command(self, wanted: Array | None, now: float, *, missing: bool = True) -> Command:
        """What is sent for this period; wanted: (Da,), None where no chunk has an action for now. Never raises for what
        is wanted. missing: whether None is an intervention, and not what was asked for."""
        told: list[Intervention] = []
        motion = self._due(now)
        if motion is None and self._last is not None:
            return Command(None, "nothing")
        if self.state == "stopped":
            return self._halt(motion, now, told)
        fault = None
        if wanted is not None:
            fault = action_fault(wanted, self.action_dim)
            if fault is not None:
                told += self._teller.tell(fault[0], now, fault[1])
        if motion is None and (wanted is None or fault is not None):
            return Command(None, "nothing", tuple(told))
        if wanted is None and missing:
            told += self._teller.tell("no_chunk", now, f"no action for now: {self.config.action}")
        stale = self._stale(now)
        if stale is not None:
            told += self._teller.tell("stale_observation", now, stale)
        if wanted is None or fault is not None or stale is not None:
            return self._fallback(motion, now, told)
        wanted = np.asarray(wanted, dtype=np.float64)
        if motion is None:
            motion, why = self._begin(wanted, now)
            told += why
            if motion is None:
                return Command(None, "nothing", tuple(told))
        after, action = self._filter.step(motion, wanted)
        broken = np.flatnonzero(after.cause >= 0)
        for axis in broken.tolist():
            kind = f"{LIMITS[after.cause[axis]]}_limit"
            told += self._teller.tell(kind, now, partial(self._clamped, axis, wanted, action), axis)
        if len(broken) and self.config.on_limit == "stop":
            self._stopping = f"{self.limits.names[broken[0]]} ran into its {LIMITS[after.cause[broken[0]]]} limit"
            return self._halt(motion, now, told)
        return self._sent(after, action, now, "wanted", told)

    def fallback(self, now: float, kind: str, message: str) -> Command:
        """The safety action, for whoever finds that nobody commands."""
        motion = self._due(now)
        if motion is None:
            return Command(None, "nothing")
        told = self._teller.tell(kind, now, message)
        return self._fallback(motion, now, told)

    def rest(self, now: float) -> Command:
        """Of coming to rest, for whoever asks for that: no intervention, and nothing is latched."""
        motion = self._due(now)
        return self._settle(motion, now, "stop" if self.state == "stopped" else "hold", [])

    def unsent(self) -> None:
        """The last command could not be sent: the robot has done nothing of it."""
        self._motion, self._last = self._before
        if self._moves:
            self._moves.pop()

    def preview(self, wanted: Array, now: float, dt: float | None = None) -> Array:
        """(n, Da): what would be commanded if (n, Da) were wanted one after another; changes nothing, never raises for
        what is wanted. Limits hold; rows that are no actions, and a stop, are the braking. Empty before the first
        command, where there is nothing to begin with.

        Args:
            wanted: rows `dt` seconds apart; None: 1 / hz.
            now: of the first.
        """
        limit = self._filter
        if dt is not None and dt != self.limits.period:
            if dt not in self._previews:
                self._previews = {dt: LimitFilter(replace(self.limits, period=dt))}
            limit = self._previews[dt]
        motion = self._due(now, again=True)
        rows = []
        for row in np.asarray(wanted, dtype=np.float64):
            fine = self.state != "stopped" and action_fault(row, self.action_dim) is None
            if motion is None:
                if not fine or (len(self._told) and self._seen is None):
                    break
                motion = self._start(row)
            motion, action = limit.step(motion, row) if fine else limit.brake(motion)
            rows.append(action)
        return np.array(rows).reshape(-1, self.action_dim)

    # --- how ----------------------------------------------------------------------------------------------------------

    def _due(self, now: float, again: bool = False) -> Motion | None:
        """The motion a command at `now` continues; None before the first, or where it is too early for another."""
        if self._motion is None or self._last is None:
            return None
        periods = round((now - self._last) / self.limits.period)
        if periods < 1 and not again:
            return None
        if periods <= 1:
            return self._motion
        motion = self._filter.interrupted(self._motion, periods - 1)
        long = 2 * max(1e-3 * self.config.watchdog_ms, self.limits.period)
        # A reading from before the last command does not say where that has brought it.
        told = self._fresh is not None and self._fresh > self._last
        return self._anew(motion) if told and now - self._last > long else motion

    def _anew(self, motion: Motion) -> Motion:
        """Standing where the robot says it is, as far as it tells."""
        position = motion.position.copy()
        if self._seen is not None:
            position[self._told] = self._seen[self._told]
        return Motion.at_rest(position)

    def _start(self, wanted: Array) -> Motion:
        limits = self.limits
        place = np.where(self._filter.places, np.clip(wanted, limits.low, limits.high), 0.0)
        return self._anew(Motion.at_rest(place))

    def _begin(self, wanted: Array, now: float) -> tuple[Motion | None, list[Intervention]]:
        """Where the robot stands before the first command."""
        if len(self._told) and self._seen is None:
            text = f"nothing is sent before an observation tells where the robot is ({self.config.position_from})"
            return None, self._teller.tell("wrong_observation", now, text)
        motion, limits = self._start(wanted), self.limits
        told: list[Intervention] = []
        blind = np.flatnonzero(limits.rated & self._filter.places & (limits.told < 0))
        if len(blind):
            names = ", ".join(limits.names[i] for i in blind)
            told += self._teller.tell("unchecked_start", now, f"first command of {names} held against no position")
        p = motion.position
        for i in np.flatnonzero(self._filter.kept & ~self._filter.free & ((p < limits.low) | (p > limits.high))):
            text = f"{limits.names[i]} stands at {p[i]:g}, outside {limits.low[i]:g} to {limits.high[i]:g}: only back"
            told += self._teller.tell("position_limit", now, text, int(i))
        return motion, told

    def _place(self, numbers: Array, received: float) -> None:
        seen = np.zeros(self.action_dim)
        seen[self._told] = numbers[self.limits.told[self._told]]
        self._seen = seen
        rates = self._told[~self._filter.places[self._told]]
        if self._motion is not None and len(rates):
            half = self.limits.period / 2
            since = sum((move for time, move in self._moves if time > received - half), np.zeros(self.action_dim))
            position = self._motion.position.copy()
            position[rates] = (seen + since)[rates]
            self._motion = replace(self._motion, position=position)

    def _stale(self, now: float) -> str | None:
        if self._fresh is None:
            return None
        age = 1e3 * (now - self._fresh)
        limit = self.config.max_observation_age_ms
        return None if age <= limit else f"the newest observation is {age:.0f} ms old, more than {limit:g}"

    def _fallback(self, motion: Motion | None, now: float, told: list[Intervention]) -> Command:
        if self.config.action == "stop" and self.state != "stopped":
            self._stopping = told[-1].message if told else "the safety action is stop"
        if self.state == "stopped":
            return self._halt(motion, now, told)
        if motion is not None and self.config.action == "zero":
            after, action = self._filter.step(motion, np.zeros(self.action_dim))
            return self._sent(after, action, now, "zero", told)
        return self._settle(motion, now, "hold", told)

    def _halt(self, motion: Motion | None, now: float, told: list[Intervention]) -> Command:
        """A stop is one intervention, however long it lasts."""
        kind = "stop" if self._emergency is None else "emergency_stop"
        if self._halted != kind:
            self._halted = kind
            told += self._teller.tell(kind, now, str(self.reason))
        return self._settle(motion, now, "stop", told)

    def _settle(self, motion: Motion | None, now: float, source: str, told: list[Intervention]) -> Command:
        if motion is None:
            return Command(None, "nothing", tuple(told))
        after, action = self._filter.brake(motion)
        return self._sent(after, action, now, source, told)

    def _sent(self, motion: Motion, action: Array, now: float, source: str, told: list[Intervention]) -> Command:
        self._before = self._motion, self._last
        self._motion, self._last = motion, now
        if len(self._told):
            self._moves.append((now, self.limits.period * motion.velocity))
        return Command(action, source, tuple(told))

    def _clamped(self, axis: int, wanted: Array, action: Array) -> str:
        return f"{self.limits.names[axis]}: {wanted[axis]:g} was wanted, {action[axis]:g} sent"
