"""A command at least so often, whoever hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.events import Intervention
from diffpolicy_spec.control.safety.core import Safety
from diffpolicy_spec.control.safety.telling import Teller

__all__ = ["Watchdog"]


class Watchdog:
    """Sends the safety action where the loop has sent nothing for `watchdog_ms`, each period until the loop is back.

    A thread of its own, which sleeps until it would have to act. It cannot help where `send` itself does not return, or
    where something holds Python's global lock: the first it tells, for the second the robot needs a watchdog itself.

    The loop commands under `lock`, and says so, also where there was nothing to send:

        with watchdog.lock:
            command = safety.command(wanted, now)
            if command.action is not None:
                robot.send(command.action, ...)
            watchdog.fed(now)

    Args:
        safety: whose `fallback` is sent.
        send: an action (Da,) and its time, s on the loop's clock.
        tell: takes what it did, in its thread, at most once a second.
        clock: the loop's, running in real time.

    Attributes:
        sent: commands it has sent.
    """

    def __init__(
        self,
        safety: Safety,
        send: Callable[[NDArray[np.float64], float], object],
        tell: Callable[[Intervention], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lock = threading.Lock()
        self.sent = 0
        self._safety, self._send, self._tell, self._clock = safety, send, tell, clock
        self._period = safety.limits.period
        self._patience = max(1e-3 * safety.config.watchdog_ms, self._period)
        self._fed: float | None = None
        self._mine = float("-inf")
        self._stuck = Teller()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch; nothing is sent before the first `fed`."""
        self._thread.start()

    def fed(self, now: float) -> None:
        """The loop is there at `now`, s on its clock, and has commanded what there was."""
        first = self._fed is None
        self._fed = now
        if first:
            with self._wake:
                self._wake.notify()

    def rest(self) -> None:
        """The loop commands no more, on purpose: nothing is sent until it is fed again."""
        self._fed = None

    def close(self) -> None:
        """End the thread; one that hangs in `send` is left behind."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def __enter__(self) -> Watchdog:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _due(self) -> float | None:
        """When it has to act; None: not before it is fed."""
        fed = self._fed
        if fed is None:
            return None
        return max(fed + self._patience, self._mine + self._period)

    def _run(self) -> None:
        while True:
            with self._wake:
                if self._closed:
                    return
                due, now = self._due(), self._clock()
                if due is None or now < due:
                    self._wake.wait(None if due is None else due - now)
                    continue
            self._act()

    def _act(self) -> None:
        # The lock is free unless the loop is within send (or just came back).
        if not self.lock.acquire(timeout=self._patience):
            now = self._mine = self._clock()
            text = "nothing can be sent: a command of the loop has not returned from the robot's send"
            self._publish(self._stuck.tell("watchdog", now, text))
            return
        try:
            due, now = self._due(), self._clock()
            if due is None or now < due:
                return
            silent = 1e3 * (now - (self._fed or now))
            command = self._safety.fallback(now, "watchdog", f"the loop has sent nothing for {silent:.0f} ms")
            self._mine = now
            if command.action is not None:
                try:
                    self._send(command.action, now)
                except Exception:
                    self._safety.unsent()
                    raise
                self.sent += 1
        except Exception as error:
            self._mine = self._clock()
            text = f"the safety action could not be sent: {type(error).__name__}: {error}"
            self._publish(self._stuck.tell("watchdog", self._mine, text))
            return
        finally:
            self.lock.release()
        self._publish(list(command.interventions))

    def _publish(self, told: list[Intervention]) -> None:
        for one in told:
            self._tell(one)
