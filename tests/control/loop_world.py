"""A world for tests of the control loop whose time passes only when the loop sleeps."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable

import numpy as np

from diffpolicy_spec.control import (
    ControlConfig,
    ControlLoop,
    Failure,
    Observation,
    Plan,
    PolicyInfo,
    SafetyConfig,
    Subscriber,
    requests,
)

HZ, P, TA = 20.0, 15, 8
DT = 1 / HZ
INFO = PolicyInfo({"pos": 2}, {}, 2, TA, 16, 2, 1)
FREE = SafetyConfig(kind="free")


class World:
    """Time, and what happens at which."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._later: list[tuple[float, Callable[[], None]]] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while self._later and min(self._later, key=lambda one: one[0])[0] <= end:
            one = min(self._later, key=lambda one: one[0])
            self._later.remove(one)
            self.now = max(self.now, one[0])
            one[1]()
        self.now = end

    def at(self, time: float, do: Callable[[], None]) -> None:
        self._later.append((time, do))


class FakeRobot:
    """Tells its time and its last command; its clock is `offset` ahead. `values(now)` are its readings."""

    def __init__(self, world: World, offset: float = 0.0) -> None:
        self.world, self.offset = world, offset
        self.sent: list[tuple[float, float, np.ndarray]] = []  # when, for which time on its clock, what
        self.stopped = self.closed = 0
        self.values = lambda now: {"pos": np.array([now, 0.0])}

    def read(self) -> Observation | None:
        return Observation(self.world.now + self.offset, self.values(self.world.now))

    def send(self, action: np.ndarray, time: float) -> None:
        self.sent.append((self.world.now, time, np.array(action)))

    def stop(self) -> None:
        self.stopped += 1

    def close(self) -> None:
        self.closed += 1

    @property
    def actions(self) -> np.ndarray:
        return np.array([action for _, _, action in self.sent])

    @property
    def times(self) -> np.ndarray:
        return np.array([when for when, _, _ in self.sent])


class FakePlanner:
    """Chunks whose actions are (number of the chunk, the time they belong at), `latency` s after they are asked for."""

    def __init__(
        self, world: World, latency: float | Callable[[int], float | None] = 0.0, ready_at: float = 0.0
    ) -> None:
        self.world, self.ready_at = world, ready_at
        self.latency = latency if callable(latency) else lambda number: latency
        self.requests: list = []
        self.answers: deque = deque()
        self.started = self.closed = 0
        self.make = lambda request: Plan(request.id, self.actions(request))

    def actions(self, request) -> np.ndarray:
        times = request.time + np.arange(P) / HZ
        return np.stack([np.full(P, float(request.id)), times], axis=1)

    def start(self) -> None:
        self.started += 1

    @property
    def ready(self) -> bool:
        return self.world.now >= self.ready_at

    @property
    def info(self) -> PolicyInfo | None:
        return INFO if self.ready else None

    def submit(self, request) -> None:
        self.requests.append(request)
        latency = self.latency(len(self.requests) - 1)
        if latency is None:
            return
        if latency == 0:
            self.answers.append(self.make(request))
        else:
            self.world.at(self.world.now + latency, lambda: self.answers.append(self.make(request)))

    def fail(self, *args, **kwargs) -> None:
        self.answers.append(Failure(*args, **kwargs))

    def poll(self) -> list:
        found = list(self.answers)
        self.answers.clear()
        return found

    def close(self) -> None:
        self.closed += 1


class Listener(Subscriber):
    """Remembers everything."""

    def __init__(self) -> None:
        self.started, self.ticks, self.chunks, self.interventions, self.faults, self.stopped = [], [], [], [], [], []

    def on_start(self, event):
        self.started.append(event)

    def on_tick(self, event):
        self.ticks.append(event)

    def on_chunk(self, event):
        self.chunks.append(event)

    def on_intervention(self, event):
        self.interventions.append(event)

    def on_fault(self, event):
        self.faults.append(event)

    def on_stop(self, event):
        self.stopped.append(event)

    def kinds(self, recovered=False):
        return [fault.kind for fault in self.faults if fault.recovered == recovered]

    def sources(self):
        return [tick.source for tick in self.ticks]


class Setting:
    """World, robot, planner, listener and the loop between them."""

    def __init__(self, latency=0.0, *, ready_at=0.0, offset=0.0, safety=FREE, **config) -> None:
        requests.numbers = itertools.count()  # chunks of each setting count from 0
        self.world = World()
        self.robot = FakeRobot(self.world, offset)
        self.planner = FakePlanner(self.world, latency, ready_at)
        self.listener = Listener()
        self.loop = ControlLoop(
            self.robot, self.planner, ControlConfig(**{"control_hz": HZ, **config}), safety, [self.listener],
            clock=self.world.clock, sleep=self.world.sleep,
        )  # fmt: skip

    def run(self, seconds: float) -> Setting:
        self.loop.run(seconds, signals=False)
        return self
