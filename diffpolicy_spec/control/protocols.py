"""What a control loop is made of: a robot, a planner, and what passes between them. No torch here.

All times are seconds. A robot's are of its own clock; the loop's are of `time.monotonic`, one clock for all processes
of a machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Failure", "Observation", "Plan", "PlanCost", "PlanRequest", "Planner", "PolicyInfo", "Robot"]


@dataclass(frozen=True, eq=False)
class Observation:
    """One reading of a robot's sensors.

    Attributes:
        time: s, when they were read, on the robot's clock; its origin does not matter, and that it jumps is noticed.
        values: key -> (d,) numbers in their own units; camera -> (C, H, W), uint8 or float in [0, 1].
    """

    time: float
    values: Mapping[str, NDArray[Any]]


@runtime_checkable
class Robot(Protocol):
    """Any robot: two methods, neither of which waits for anything.

    A robot may also have `now()`, s on its clock; without it the loop learns the offset of the clocks from the
    readings, and takes the smallest delay it has seen for none. `readings()`: all readings since the last call, oldest
    first, in the place of `read`: a loop whose periods are as long as the sensors' finds two in one period and none in
    the next. `failures()`: what failed since the last call, a sequence of Failure, to be told as faults
    ("connection_lost" lasts until one says it is over). And `stop()`, called once when it is to stop for good, and
    `close()`.
    """

    def read(self) -> Observation | None:
        """The newest reading; None where there is none that was not returned before."""

    def send(self, action: NDArray[np.float64], time: float) -> None:
        """Command an action (Da,), to be executed at `time`, s on the robot's clock."""


@dataclass(frozen=True)
class PolicyInfo:
    """What a loop has to know of a policy.

    Attributes:
        obs_dims: key -> d; image_shapes: camera -> (C, H, W).
        n_obs_steps: To; n_action_steps: Ta; horizon: T; action_dim: Da.
        first: index in the plan of the action that belongs to the newest observation: P = T - first actions are usable.
        action_repr: what an action means, see `hold_action`.
        policy: name and fingerprint of the weights.
        sampler: how chunks are drawn, in words.
    """

    obs_dims: Mapping[str, int]
    image_shapes: Mapping[str, tuple[int, int, int]]
    n_obs_steps: int
    n_action_steps: int
    horizon: int
    action_dim: int
    first: int
    action_repr: str = "raw"
    policy: str = ""
    sampler: str = ""


@dataclass(frozen=True, eq=False)
class PlanRequest:
    """A chunk is asked for.

    Attributes:
        id: counts up.
        obs: key -> (To, d), camera -> (To, C, H, W), oldest first.
        time: s on the loop's clock, of the newest observation: action 0 of the chunk belongs there.
        deadline: s on the loop's clock, when the chunk has to be there: past it the chain is finished by a few DDIM
            steps, and the chunk is not exact. None: however long it takes.
        committed: (n, Da) actions from `time` on that will be executed whatever comes: the chunk continues them
            (real-time chunking). None: the chunk is free.
        seed: of the chunk's noise; None: any.
        finish_steps: by how many, at most; None: as the planner was told. A server has a number of its own.
    """

    id: int
    obs: Mapping[str, NDArray[Any]]
    time: float
    deadline: float | None = None
    committed: NDArray[np.float64] | None = None
    seed: int | None = None
    finish_steps: int | None = None


@dataclass(frozen=True)
class PlanCost:
    """What a chunk cost; NaN and -1 where it is not known.

    Attributes:
        latency_ms: from the request's arrival at the policy until the chunk was there.
        calls: sequential network calls; evaluations: rows; accepted, rejected: drafted steps.
    """

    latency_ms: float = float("nan")
    calls: int = -1
    evaluations: int = -1
    accepted: int = -1
    rejected: int = -1


@dataclass(frozen=True, eq=False)
class Plan:
    """A chunk.

    Attributes:
        id: of the request.
        actions: (P, Da), in the action's own units; action i belongs at the request's time + i dt.
        exact: whether it is a draw from the policy's own distribution; False: finished by DDIM to keep a deadline.
        cost: what it cost.
        policy: name and fingerprint of the weights that made it.
    """

    id: int
    actions: NDArray[np.float64]
    exact: bool = True
    cost: PlanCost = field(default_factory=PlanCost)
    policy: str = ""


@dataclass(frozen=True)
class Failure:
    """Something a planner has to say that is not a chunk.

    Attributes:
        kind: one of `events.FAULTS`.
        message: what happened, and what the planner does about it.
        id: of the request that is lost by it; None: of none.
        recovered: whether this says that the fault `kind` is over.
    """

    kind: str
    message: str
    id: int | None = None
    recovered: bool = False


class Planner(Protocol):
    """Where chunks are made: a worker process, a server, another thread. No method waits, `close` excepted.

    A planner mends itself: a worker that died is started anew, a server that went is looked for again. What it lost
    meanwhile it reports as a `Failure` with the request's id, every request being answered once.
    """

    def start(self) -> None:
        """Begin to make everything ready, warm-up included."""

    @property
    def info(self) -> PolicyInfo | None:
        """Of the policy; None until it is ready for the first time."""

    @property
    def ready(self) -> bool:
        """Whether a request would be worked on now."""

    def submit(self, request: PlanRequest) -> None:
        """Ask for a chunk; it, or a Failure, comes by `poll`."""

    def poll(self) -> Sequence[Plan | Failure]:
        """What has come since."""

    def close(self) -> None:
        """Let go of everything; within 2 s."""
