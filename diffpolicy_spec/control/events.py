"""What a control loop tells whoever listens. Plain data; times are seconds of `time.monotonic`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.protocols import PlanCost, PolicyInfo

__all__ = [
    "FAULTS", "INTERVENTIONS", "SOURCES", "ChunkArrived", "Fault", "Intervention", "LoopStarted", "LoopStopped",
    "Subscriber", "Tick",
]  # fmt: skip

SOURCES = ("chunk", "old_chunk", "hold", "zero", "stop", "nothing")
"""Where a command comes from: the newest chunk; the one before, while the newest is being made; the safety action.
"nothing": none was sent: before the first, or because sending failed."""

INTERVENTIONS = (
    "position_limit", "velocity_limit", "acceleration_limit", "jerk_limit", "nonfinite_action", "wrong_action",
    "nonfinite_observation", "wrong_observation", "stale_observation", "no_chunk", "unchecked_start", "watchdog",
    "emergency_stop", "stop",
)  # fmt: skip
"""What the safety layer steps in for."""

FAULTS = (
    "worker_died", "worker_failed", "server_unreachable", "server_error", "unauthorized", "connection_lost",
    "late_inference", "deadline_missed", "observation_lost", "observation_duplicate", "observation_reordered",
    "observation_late", "observation_invalid", "clock_jump", "policy_swapped", "policy_refused", "policy_mismatch",
    "invalid_chunk", "loop_overrun", "subscriber_failed", "robot_failed", "bad_message",
)  # fmt: skip
"""What goes wrong outside the safety layer; each is told when it begins and when it is over."""


@dataclass(frozen=True)
class LoopStarted:
    """The loop begins; nothing has been sent. info: of the policy, None where it is not known yet."""

    time: float
    control_hz: float
    info: PolicyInfo | None


@dataclass(frozen=True, eq=False)
class Tick:
    """A control period.

    Attributes:
        index: counts periods of the grid, those that were skipped included.
        time: when it should have begun; jitter_ms: how much later it did.
        action: (Da,) what was sent; None: nothing.
        source: one of SOURCES.
        chunk: id of the chunk the action is from, -1 for none; step: its place i in it (fractional if interpolated).
        observation_age_ms: of the observation that chunk was made from, at the time the action is for; NaN without.
        busy_ms: what the loop did in this period.
    """

    index: int
    time: float
    jitter_ms: float
    action: NDArray[np.float64] | None
    source: str
    chunk: int = -1
    step: float = float("nan")
    observation_age_ms: float = float("nan")
    busy_ms: float = 0.0


@dataclass(frozen=True, eq=False)
class ChunkArrived:
    """A chunk was taken into the queue, or dropped.

    Attributes:
        time: when; id: of its request.
        latency_ms: from the request to now.
        observation_age_ms: of its newest observation, now.
        cost: in the policy.
        exact: see `Plan.exact`.
        deadline_ms: what was asked for, None for none; deadline_missed: whether it came later, or only by finishing.
        stale: actions whose time had passed; usable: those left.
        frozen: actions it had to continue.
        actions: (P, Da).
        on_deadline: what is done with chunks that would be late, one of `config.ON_DEADLINE`.
    """

    time: float
    id: int
    latency_ms: float
    observation_age_ms: float
    cost: PlanCost
    exact: bool
    deadline_ms: float | None
    deadline_missed: bool
    stale: int
    usable: int
    frozen: int
    actions: NDArray[np.float64]
    on_deadline: str = "continue"


@dataclass(frozen=True)
class Intervention:
    """The safety layer stepped in. kind: one of INTERVENTIONS; axis: of the action, None for all of it; count: how
    often since it was told last, this time included."""

    time: float
    kind: str
    message: str
    axis: int | None = None
    count: int = 1


@dataclass(frozen=True)
class Fault:
    """Something went wrong, or is right again. kind: one of FAULTS; lasted_s: of one that is over."""

    time: float
    kind: str
    message: str
    recovered: bool = False
    lasted_s: float | None = None


@dataclass(frozen=True)
class LoopStopped:
    """The loop is over, its last command sent. reason: why."""

    time: float
    reason: str


class Subscriber:
    """Base of the listeners; every method may be left as it is.

    They are called in the loop, between two periods: what takes long belongs in a thread of its own. One that raises is
    told once and not called again.
    """

    def on_start(self, event: LoopStarted) -> None:
        """Before the first period."""

    def on_tick(self, event: Tick) -> None:
        """After each period's command."""

    def on_chunk(self, event: ChunkArrived) -> None:
        """When a chunk came."""

    def on_intervention(self, event: Intervention) -> None:
        """When the safety layer stepped in."""

    def on_fault(self, event: Fault) -> None:
        """When something went wrong, or is right again."""

    def on_stop(self, event: LoopStopped) -> None:
        """After the last command."""
