"""The control loop: one command in every period, whatever happens around it."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.config import ControlConfig, SafetyConfig
from diffpolicy_spec.control.driver import Driver
from diffpolicy_spec.control.events import LoopStarted, LoopStopped, Subscriber, Tick
from diffpolicy_spec.control.grid import Grid, sleep_until, undisturbed
from diffpolicy_spec.control.protocols import Planner, PolicyInfo, Robot
from diffpolicy_spec.control.signals import stop_on_signals

__all__ = ["ControlLoop"]

_LEAST_STOP = 5.0


class ControlLoop:
    """Drives a robot with a policy's chunks: reads, asks for chunks, sends one command a period.

    Each period: what other threads have asked for; the robot's reading; a request for a chunk if it is time to; chunks
    that have come; the action wanted at the command's time; the safety layer's command; the robot; subscribers.
    Nothing is sent before the planner is ready and the first chunk is there.

    `run` blocks; `start` does the same in a thread. All other methods may be called from any thread, `stop` and
    `emergency_stop` from signal handlers as well, and take effect within a period.

    Args:
        robot: read and commanded by this thread (and commanded by the watchdog's, if this one hangs).
        planner: makes the chunks; started by `run`.
        config, safety: see there.
        subscribers: told what happens.
        clock, sleep: other ones than real time are for tests; the watchdog knows real time only and is left out then.

    Raises:
        ValueError: settings that exclude each other.
    """

    def __init__(
        self,
        robot: Robot,
        planner: Planner,
        config: ControlConfig | None = None,
        safety: SafetyConfig | None = None,
        subscribers: Sequence[Subscriber] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.config, self.robot, self.planner = config or ControlConfig(), robot, planner
        safety = safety or SafetyConfig()
        if self.config.meanwhile == "hold" and safety.action == "stop":
            raise ValueError("meanwhile=hold takes the safety action while a chunk is made: with action=stop for good")
        self._clock, self._sleep = clock, sleep
        self._driver = Driver(robot, planner, self.config, safety, subscribers, clock, watched=clock is time.monotonic)
        self._orders: deque[Callable[[], None]] = deque()
        self._reason: str | None = None
        self._due = math.inf
        self._running = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    # What others may ask for.

    def stop(self, reason: str = "asked to") -> None:
        """Come to rest within the limits, tell the robot to stop, and end `run`."""
        if self._running.locked() and self._reason is None:
            self._reason = reason

    def emergency_stop(self, reason: str = "asked to") -> None:
        """Come to rest and stay, whatever else is asked for, until `reset` and then `resume`; `run` goes on."""
        # Now, and after all that was asked for before: a reset that is not obeyed yet must not end it.
        self._orders.append(partial(self._driver.emergency_stop, reason))
        self._driver.emergency_stop(reason)

    def pause(self) -> None:
        """No chunks: the safety action, until `resume`."""
        self._orders.append(self._driver.pause)

    def resume(self) -> None:
        """Go on after `pause`, or after the safety layer has stopped; with a chunk of what is observed then."""
        self._orders.append(self._driver.resume)

    def reset(self) -> None:
        """A new episode: come to rest if it moves, then forget chunks, observations and where the robot was. An
        emergency stop becomes a stop, which `resume` ends. What is asked for after it waits until then."""
        self._orders.append(self._driver.reset)

    def subscribe(self, subscriber: Subscriber) -> None:
        """One more listener, from the next event on."""
        self._driver.publisher.add(subscriber)

    # What others may know.

    @property
    def state(self) -> str:
        """ "idle" (not running), "waiting" (nothing was sent yet), "running", "paused", "stopping", or "stopped" (by
        the safety layer, an emergency stop included)."""
        if not self._running.locked():
            return "idle"
        return "stopping" if self._reason is not None else self._driver.state

    @property
    def info(self) -> PolicyInfo | None:
        """Of the policy; None until it is known."""
        return self._driver.info

    @property
    def faults(self) -> tuple[str, ...]:
        """The kinds of faults that are not over."""
        return self._driver.faults.active

    @property
    def fault_counts(self) -> Mapping[str, int]:
        """How often each kind of fault has happened."""
        return self._driver.faults.counts

    @property
    def behind(self) -> float:
        """s since the present period was to begin: more than a period where the loop hangs, in the robot's `read` say,
        and the watchdog commands; what that tells is published when the loop is back. 0: it does not run."""
        return max(0.0, self._clock() - self._due) if self._running.locked() else 0.0

    @property
    def longest_stop(self) -> float:
        """s: a run ends so long after `stop` at the latest, though nothing can be sent. Coming to rest within the
        limits is quicker."""
        return _LEAST_STOP + self._driver.longest_stop

    def following(self, count: int, dt: float | None = None) -> NDArray[np.float64] | None:
        """(n, Da), n <= count: what would be commanded from the next period on, within the limits; None: no chunk.

        For subscribers: called in the loop's thread.

        Args:
            dt: s, from one to the next; None: a period.
        """
        return self._driver.following(count, dt)

    # Running.

    def run(self, duration: float | None = None, *, signals: bool = True) -> None:
        """Run until `stop`, or for `duration` s; then come to rest.

        A stop of a run before is over with that run; an emergency stop is not.

        Args:
            duration: from now, so with the planner's warm-up.
            signals: in a process's main thread, SIGINT and SIGTERM stop the loop; the second is the emergency stop.

        Raises:
            RuntimeError: it is running.
            ValueError: the safety configuration does not fit the policy's actions. Nothing has been sent.
        """
        self._occupy()
        try:
            with stop_on_signals(self) if signals else nullcontext(), undisturbed(self.config.realtime):
                self._run(duration)
        finally:
            self._running.release()

    def start(self, duration: float | None = None) -> None:
        """`run` in a thread of its own.

        Raises:
            RuntimeError: it is running.
        """
        self._occupy()
        self._error = None

        def target() -> None:
            try:
                with undisturbed(self.config.realtime):
                    self._run(duration)
            except BaseException as error:
                self._error = error
            finally:
                self._running.release()

        self._thread = threading.Thread(target=target, name="control loop", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._running.release()
            raise

    def join(self, timeout: float | None = None) -> bool:
        """Wait for a started loop's end; whether it has ended. What it raised is raised here."""
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                return False
            error, self._error = self._error, None
            if error is not None:
                raise error
        return True

    def close(self) -> None:
        """Stop if it runs, and close planner and robot."""
        if self._running.locked():
            self.stop("closed")
            if self._running.acquire(timeout=self.longest_stop + 1):
                self._running.release()
        self.planner.close()
        close = getattr(self.robot, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> ControlLoop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _occupy(self) -> None:
        if not self._running.acquire(blocking=False):
            raise RuntimeError("this loop is running: a robot has one loop")
        self._reason = None

    def _run(self, duration: float | None) -> None:
        config, driver, clock = self.config, self._driver, self._clock
        self.planner.start()
        driver.begin()
        start = clock()
        driver.publisher.put(LoopStarted(start, config.control_hz, self.planner.info))
        driver.publisher.flush()
        grid, n, stopping_since = Grid(start, config.control_hz), 0, None
        try:
            while True:
                due = self._due = grid.time(n)
                sleep_until(due, clock, self._sleep)
                began = clock()
                while self._orders and not driver.resetting:
                    self._orders.popleft()()
                if duration is not None and due - start >= duration:
                    self.stop("its time is over")
                if self._reason is not None and stopping_since is None:
                    stopping_since = due
                    driver.come_to_rest(self._reason)
                sent = driver.period(due)
                busy = clock() - began
                driver.publisher.put(
                    Tick(
                        index=n, time=due, jitter_ms=1e3 * (began - due), action=sent.action, source=sent.source,
                        chunk=sent.chunk, step=sent.step, observation_age_ms=sent.observation_age_ms,
                        busy_ms=1e3 * busy,
                    )
                )  # fmt: skip
                driver.publisher.flush()
                if stopping_since is not None and (driver.at_rest or due - stopping_since > self.longest_stop):
                    break
                now = clock()
                following = grid.after(n, now)
                if following > n + 1:
                    driver.overrun(following - n - 1, busy, now)
                n = following
        except BaseException as error:
            self._reason = f"{type(error).__name__}: {error}"
            self._brake(grid, n)
            raise
        finally:
            self._due = math.inf
            driver.end()
            driver.publisher.put(LoopStopped(clock(), self._reason or "stopped"))
            driver.publisher.flush()

    def _brake(self, grid: Grid, n: int) -> None:
        """Something has ended the loop that should not have: still, the robot is brought to rest."""
        self._driver.come_to_rest(str(self._reason))
        until = self._clock() + self.longest_stop
        while not self._driver.at_rest and self._clock() < until:
            n = grid.after(n, self._clock())
            sleep_until(grid.time(n), self._clock, self._sleep)
            self._driver.brake(grid.time(n))
