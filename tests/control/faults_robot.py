"""A robot of position axes that remembers what it was told and when, and what goes wrong with its readings."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from diffpolicy_spec.control import Observation

AXES = 4
KEYS = {"joints": AXES, "goal": 2}


@dataclass(frozen=True, eq=False)
class Sent:
    """A command.

    Attributes:
        at: `time.monotonic`, when it came; time: what it is for, on the robot's clock.
        thread: name of the sender's.
        place: where the robot stands, if that is not what was commanded before.
    """

    at: float
    time: float
    action: np.ndarray
    thread: str
    place: np.ndarray | None = None


class NumericRobot:
    """Axes that go where they are told at once, read at a rate of its own.

    Attributes:
        sent: every command there was; stops: how often it was told to stop.
    """

    def __init__(self, hz: float = 50.0, clock_offset: float = 0.0) -> None:
        self.clock_offset = clock_offset
        self.sent: list[Sent] = []
        self.stops = 0
        self._hz, self._read_at = hz, -np.inf
        self._joints = np.zeros(AXES)
        self._lock = threading.Lock()  # the watchdog sends from its own thread

    def clock(self) -> float:
        return time.monotonic() + self.clock_offset

    def read(self) -> Observation | None:
        now = self.clock()
        stamp = np.floor(now * self._hz) / self._hz
        if stamp == self._read_at:
            return None
        self._read_at = stamp
        goal = np.array([np.sin(0.3 * now), np.cos(0.3 * now)])
        return Observation(stamp, {"joints": self._joints.copy(), "goal": goal})

    def send(self, action: np.ndarray, time: float, place: np.ndarray | None = None) -> None:
        at = _monotonic()
        with self._lock:
            self.sent.append(Sent(at, time, np.array(action), threading.current_thread().name, place))
            self._joints = np.array(action)

    def stop(self) -> None:
        self.stops += 1


_monotonic = time.monotonic


@dataclass
class Readings:
    """What goes wrong with the readings of a robot: shares of them, and what is done to all while it is set.

    Attributes:
        lose, duplicate, reorder, delay: shares in [0, 1]; delay_s: how late the delayed ones are.
        nan: every value is NaN; rename: key -> the name it has instead; drop: keys that are missing.
        change: what is done to the values of a reading otherwise.
        hang_s: how long the next `read` takes; freeze: no reading comes.
        fail: `read` raises it.
    """

    lose: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    delay_s: float = 0.2
    nan: bool = False
    rename: Mapping[str, str] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    hang_s: float = 0.0
    freeze: bool = False
    fail: Exception | None = None


class FaultyRobot:
    """A robot whose readings go as `wrong` says, which may be changed at any time; commands pass as they are.

    Attributes:
        done: how many readings were lost, duplicated, reordered, delayed.
    """

    def __init__(self, robot: NumericRobot, wrong: Readings | None = None, seed: int = 0) -> None:
        self.robot, self.wrong = robot, wrong or Readings()
        self.done = {"lose": 0, "duplicate": 0, "reorder": 0, "delay": 0}
        self._rng = np.random.default_rng(seed)
        self._ready: deque[Observation] = deque()
        self._later: list[tuple[float, Observation]] = []
        self._held: Observation | None = None

    def read(self) -> Observation | None:
        wrong = self.wrong
        if wrong.hang_s:
            hang, wrong.hang_s = wrong.hang_s, 0.0
            time.sleep(hang)
        if wrong.fail is not None:
            raise wrong.fail
        found = self.robot.read()
        now = _monotonic()
        self._ready.extend(o for due, o in self._later if due <= now)
        self._later = [(due, o) for due, o in self._later if due > now]
        if found is not None:
            self._pass(found, now)
        if wrong.freeze:
            self._ready.clear()
        return self._ready.popleft() if self._ready else None

    def send(self, action: np.ndarray, time: float) -> None:
        self.robot.send(action, time)

    def stop(self) -> None:
        self.robot.stop()

    def _happens(self, what: str) -> bool:
        share = getattr(self.wrong, what)
        happens = bool(share) and self._rng.random() < share
        self.done[what] += happens
        return happens

    def _pass(self, found: Observation, now: float) -> None:
        if self._happens("lose"):
            return
        found = self._changed(found)
        if self._happens("delay"):
            self._later.append((now + self.wrong.delay_s, found))
            return
        if self._held is None and self._happens("reorder"):
            self._held = found  # the one after it comes first
            return
        self._ready.append(found)
        if self._held is not None:
            self._ready.append(self._held)
            self._held = None
        if self._happens("duplicate"):
            self._ready.append(found)

    def _changed(self, found: Observation) -> Observation:
        wrong = self.wrong
        values = {wrong.rename.get(k, k): v for k, v in found.values.items() if k not in wrong.drop}
        if wrong.nan:
            values = {k: np.full_like(v, np.nan) for k, v in values.items()}
        if wrong.change is not None:
            values = wrong.change(values)
        return Observation(found.time, values)
