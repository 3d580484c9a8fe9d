"""What must hold of a stream of commands whatever went wrong, and a listener that keeps what the loop told."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from faults_robot import Sent

from diffpolicy_spec.control import SafetyConfig
from diffpolicy_spec.control.events import ChunkArrived, Fault, Intervention, LoopStopped, Subscriber, Tick

WATCHDOG_MS = 500.0
SLACK_S = 0.5
"""On top of the watchdog's time: what the scheduler of a loaded machine may keep a thread waiting."""

SAFETY = SafetyConfig(
    low=-1.0, high=1.0, velocity=1.0, acceleration=8.0, jerk=200.0, position_from="joints",
    max_observation_age_ms=500.0, watchdog_ms=WATCHDOG_MS, action="hold",
)  # fmt: skip
"""rad: of the robot of `faults_robot`."""


class Told(Subscriber):
    """Everything a loop told, by kind of event."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.ticks: list[Tick] = []
        self.chunks: list[ChunkArrived] = []
        self.interventions: list[Intervention] = []
        self.faults: list[Fault] = []
        self.stopped: list[LoopStopped] = []

    def on_tick(self, event: Tick) -> None:
        self.ticks.append(event)

    def on_chunk(self, event: ChunkArrived) -> None:
        self.chunks.append(event)

    def on_intervention(self, event: Intervention) -> None:
        with self._lock:  # the watchdog tells from its own thread
            self.interventions.append(event)

    def on_fault(self, event: Fault) -> None:
        with self._lock:
            self.faults.append(event)

    def on_stop(self, event: LoopStopped) -> None:
        self.stopped.append(event)

    def kinds(self) -> set[str]:
        """Of faults and interventions that were told."""
        return {f.kind for f in list(self.faults)} | {i.kind for i in list(self.interventions)}

    def began(self, kind: str) -> list[Fault]:
        return [f for f in list(self.faults) if f.kind == kind and not f.recovered]

    def over(self, kind: str) -> list[Fault]:
        return [f for f in list(self.faults) if f.kind == kind and f.recovered]

    @property
    def fresh(self) -> int:
        """Commands from a chunk so far."""
        return sum(t.source == "chunk" for t in list(self.ticks))


def check_stream(sent: Sequence[Sent], ticks: Sequence[Tick], hz: float, safety: SafetyConfig = SAFETY) -> None:
    """No gap beyond the watchdog's time, and every command within the limits.

    Rates are those of the numbers that are sent, a period apart, as the safety layer defines them. Where periods were
    left out the axes stood: after that they begin at rest.

    Args:
        sent: to the robot. ticks: of the loop, which know the periods of its commands.

    Raises:
        AssertionError: says which command.
    """
    assert len(sent) > 2, f"only {len(sent)} commands were sent"
    gaps = np.diff([s.at for s in sent])
    worst = int(gaps.argmax())
    longest = 1e-3 * safety.watchdog_ms + SLACK_S
    assert gaps[worst] <= longest, f"no command for {gaps[worst]:.3f} s after the {worst}th of {len(sent)}"
    actions = np.stack([s.action for s in sent])
    assert np.isfinite(actions).all(), "a command is not finite"
    assert safety.low <= actions.min(), actions.min()
    assert actions.max() <= safety.high, actions.max()
    apart = np.round(np.diff(_times(sent, ticks)) * hz)
    begins = [0, *(np.flatnonzero(apart > 1) + 1).tolist(), len(sent)]
    for begin, end in pairwise(begins):
        before = sent[begin].place
        if before is None:
            before = actions[begin - 1] if begin else np.zeros_like(actions[0])  # where the robot stands at first
        run = np.concatenate([[before] * 3, actions[begin:end]])
        v = np.diff(run, axis=0) * hz
        a = np.diff(v, axis=0) * hz
        j = np.diff(a, axis=0) * hz
        for name, found in (("velocity", v), ("acceleration", a), ("jerk", j)):
            limit = getattr(safety, name)
            if limit is not None:
                most = float(np.abs(found).max())
                i, axis = np.unravel_index(np.abs(found).argmax(), found.shape)
                where = f"command {begin + i - 2} of {begin} to {end}, axis {axis}"
                near = actions[max(begin + i - 6, 0) : begin + i + 1, axis]
                assert most <= limit * (1 + 1e-6) + 1e-6, f"{name} {most:.4g} > {limit}: {where}: ... {near}"


def _times(sent: Sequence[Sent], ticks: Sequence[Tick]) -> list[float]:
    """s, of each command's period: the loop's own, or when the watchdog sent it."""
    periods = iter([tick.time for tick in ticks if tick.action is not None])
    return [s.at if s.thread == "watchdog" else next(periods) for s in sent]
