"""What a control loop does in one period, and what it knows from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.config import ControlConfig, SafetyConfig
from diffpolicy_spec.control.events import Subscriber
from diffpolicy_spec.control.faults import FaultBook
from diffpolicy_spec.control.protocols import Observation, Planner, PolicyInfo, Robot
from diffpolicy_spec.control.publisher import Publisher
from diffpolicy_spec.control.queue import Wanted
from diffpolicy_spec.control.safety import Safety, Watchdog
from diffpolicy_spec.control.sensing import Sensing
from diffpolicy_spec.control.supply import Supply

__all__ = ["Driver", "Sent"]

_SHAPES = ("obs_dims", "image_shapes", "n_obs_steps", "horizon", "first", "action_dim", "action_repr")


@dataclass(frozen=True, eq=False)
class Sent:
    """What was sent in a period; see `events.Tick`."""

    action: NDArray[np.float64] | None = None
    source: str = "nothing"
    chunk: int = -1
    step: float = float("nan")
    observation_age_ms: float = float("nan")


class Driver:
    """Robot, planner and safety layer, brought together period by period.

    Everything here runs in the loop's thread, `emergency_stop` excepted.

    Args:
        watched: whether a watchdog runs beside it.

    Attributes:
        resetting: whether it comes to rest in order to forget: no other order is to be given meanwhile.
    """

    def __init__(
        self,
        robot: Robot,
        planner: Planner,
        config: ControlConfig,
        safety: SafetyConfig,
        subscribers: Sequence[Subscriber],
        clock: Callable[[], float],
        watched: bool = True,
    ) -> None:
        self._robot, self._planner, self._config, self._limits, self._clock = robot, planner, config, safety, clock
        self._watched = watched
        self.publisher = Publisher(subscribers, self._subscriber_failed)
        self.faults = FaultBook(self.publisher.put)
        self._sensing = Sensing(robot, config, self.faults, clock, self._guard)
        self._period, self._lead = 1 / config.control_hz, 1e-3 * config.lead_ms
        self.info: PolicyInfo | None = None
        self._safety: Safety | None = None
        self._watchdog: Watchdog | None = None
        self._supply = Supply(planner, config, self.faults, self.publisher.put)
        self._emergency: str | None = None
        self._stopping = self._paused = self._mismatched = self.resetting = False
        self._known: frozenset[str] = frozenset()
        self._due = 0.0

    @property
    def state(self) -> str:
        """See `ControlLoop.state`."""
        if self._safety is None or self._safety.state == "ready":
            return "stopped" if self._emergency is not None else "paused" if self._paused else "waiting"
        return "stopped" if self._safety.state == "stopped" else "paused" if self._paused else "running"

    @property
    def at_rest(self) -> bool:
        """Whether the last command has brought the robot to rest, or nothing was ever sent."""
        return self._safety is None or self._safety.at_rest

    @property
    def longest_stop(self) -> float:
        """s that coming to rest takes at most."""
        return 0.0 if self._safety is None else self._safety.longest_stop

    # Orders.

    def pause(self) -> None:
        """See `ControlLoop`."""
        self._paused = True
        self._supply.reset(self._clock())

    def resume(self) -> None:
        """See `ControlLoop`."""
        self._supply.reset(self._clock())
        if self._emergency is not None:
            return  # wins over everything but a reset
        self._paused = False
        self._resume_safety()

    def _resume_safety(self) -> None:
        if self._safety is not None:
            with self._commanding(), suppress(RuntimeError):  # an emergency stop that another thread has just set
                self._safety.resume()

    def reset(self) -> None:
        """See `ControlLoop`: the commands that follow bring the robot to rest, then all is forgotten."""
        self.resetting = True
        self._supply.reset(self._clock())

    def _forget(self) -> None:
        self.resetting = False
        self._emergency = None
        self._sensing.reset()
        if self._safety is not None:
            with self._commanding():
                self._safety.reset()

    def emergency_stop(self, reason: str) -> None:
        """See `ControlLoop.emergency_stop`; from any thread or signal handler."""
        self._emergency = reason
        if self._safety is not None:
            self._safety.emergency_stop(reason)

    def come_to_rest(self, reason: str) -> None:
        """No more chunks; the commands that follow bring the robot to rest."""
        self._stopping = True
        if self._safety is not None:
            self._safety.stop(reason)

    # A period.

    def period(self, due: float) -> Sent:
        """Read, ask, take, send: the command of the period that begins at `due`."""
        self._due = due
        self._meet(self._planner.info, due)
        self._sensing.read()
        now = self._clock()
        time = due + self._lead
        wanted = self._want(self._safety, now, time)
        sent = Sent() if self._safety is None else self._command(self._safety, wanted, due, time)
        if self.resetting and self.at_rest:
            self._forget()
        self.faults.look(now)
        return sent

    def _meet(self, info: PolicyInfo | None, now: float) -> None:
        """The policy is known: from now on there are observations to keep, actions to guard, chunks to ask for."""
        if info is None or (info is self.info and not self._mismatched):
            return
        if self.info is not None:
            self._meet_another(info, self.info, now)
            return
        safety = Safety(self._limits, info.action_dim, self._config.control_hz, action_repr=info.action_repr)
        self._sensing.know(info)
        self._supply.know(info)
        self.info, self._safety = info, safety
        self._known = frozenset([*info.obs_dims, *info.image_shapes, *filter(None, [self._limits.position_from])])
        self._watch()
        if self._emergency is not None:  # looked at last: another thread may be setting it
            safety.emergency_stop(self._emergency)

    def _meet_another(self, info: PolicyInfo, known: PolicyInfo, now: float) -> None:
        """Another policy in the place of the known one: of use if all it needs and gives is the same."""
        differs = [name for name in _SHAPES if getattr(info, name) != getattr(known, name)]
        self._mismatched = bool(differs)
        if not differs:
            self.info = info
            self.faults.over("policy_mismatch", now)
        elif "policy_mismatch" not in self.faults.active:
            what = ", ".join(f"{name} is {getattr(info, name)}, was {getattr(known, name)}" for name in differs)
            message = f"the planner has another policy, no chunks are asked for: {what}"
            self.faults.happened("policy_mismatch", message, now, lasting=True)

    def _want(self, safety: Safety | None, now: float, time: float) -> Wanted | None:
        moving = (
            not self._mismatched
            and safety is not None
            and safety.state != "stopped"
            and not (self._paused or self._stopping or self.resetting)
        )
        if moving:
            self._supply.ask(self._sensing.newest, self._sensing.stack, now)
        self._supply.receive(now, time)
        return self._supply.wanted(time) if moving else None

    def _command(self, safety: Safety, wanted: Wanted | None, due: float, time: float) -> Sent:
        with self._commanding():
            if self.resetting:
                command = safety.rest(due)
            else:
                action = None if wanted is None else wanted.action
                command = safety.command(action, due, missing=not self._paused)
            sent = command.action is not None and self._send(command.action, time)
            if command.action is not None and not sent:
                safety.unsent()
            if self._watchdog is not None:  # also where the period's command was the watchdog's already
                self._watchdog.fed(due)
        for intervention in command.interventions:
            self.publisher.put(intervention)
        if not sent:
            return Sent()
        if command.source != "wanted" or wanted is None:
            return Sent(command.action, command.source)
        source = "old_chunk" if self._supply.waiting else "chunk"
        return Sent(command.action, source, wanted.chunk, wanted.step, 1e3 * (time - wanted.time))

    def _send(self, action: NDArray[np.float64], time: float) -> bool:
        try:
            self._send_now(action, time)
        except Exception as error:
            self.faults.happened("robot_failed", f"send: {type(error).__name__}: {error}", self._clock())
            return False
        return True

    def _send_now(self, action: NDArray[np.float64], time: float) -> None:
        self._robot.send(action, self._sensing.clock_map.to_robot(time))

    def brake(self, due: float) -> None:
        """The command of coming to rest, and nothing else."""
        if self._safety is not None:
            self._command(self._safety, None, due, due + self._lead)

    def following(self, count: int, dt: float | None = None) -> NDArray[np.float64] | None:
        """See `ControlLoop.following`."""
        if self._safety is None:
            return None
        first = self._due + self._period
        wanted = self._supply.following(first + self._lead, count, dt or self._period)
        return None if wanted is None else self._safety.preview(wanted, first, dt)

    # What goes wrong.

    def overrun(self, skipped: int, busy: float, now: float) -> None:
        """Periods were skipped."""
        self._sensing.excuse()
        message = f"{skipped} skipped: of a period's {1e3 * self._period:.1f} ms, the loop took {1e3 * busy:.1f} itself"
        self.faults.happened("loop_overrun", message, now, times=skipped)

    def _guard(self, observation: Observation, read: float) -> bool:
        if self._safety is None:
            return False
        # What the policy does not know does not matter.
        values = {key: value for key, value in observation.values.items() if key in self._known}
        with self._commanding():
            told = self._safety.see(Observation(observation.time, values), read)
        for intervention in told:
            self.publisher.put(intervention)
        return self._safety.usable

    def _subscriber_failed(self, subscriber: Subscriber, error: Exception) -> None:
        message = f"{type(subscriber).__name__} is not told any more: {type(error).__name__}: {error}"
        self.faults.happened("subscriber_failed", message, self._clock())

    # The watchdog, the beginning and the end.

    def _watch(self) -> None:
        if self._watched and self._safety is not None:
            lead = self._lead
            self._watchdog = Watchdog(
                self._safety, lambda action, now: self._send_now(action, now + lead), self.publisher.put
            )
            self._watchdog.start()

    def _commanding(self) -> AbstractContextManager[object]:
        """Of those who command, one at a time."""
        return nullcontext() if self._watchdog is None else self._watchdog.lock

    def begin(self) -> None:
        """Before the first period of a run."""
        self._stopping = False
        self._supply.reset(self._clock())
        self._sensing.reset()
        if self.resetting:
            self._forget()
        if self._emergency is None:  # the run before ended with a stop
            self._resume_safety()
        self._watch()

    def end(self) -> None:
        """After the last command of a run."""
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None
        stop = getattr(self._robot, "stop", None)
        if stop is not None:
            try:
                stop()
            except Exception as error:
                self.faults.happened("robot_failed", f"stop: {type(error).__name__}: {error}", self._clock())
