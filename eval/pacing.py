"""Whether the world waits for the policy, and what is executed where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from diffpolicy_spec.control import MEANWHILE, Slice, hold_action, next_actions, steps_waited
from diffpolicy_spec.eval.cells import Cell
from diffpolicy_spec.eval.episode import Episode

__all__ = ["LOCKSTEP", "Pace", "pace_of"]


@dataclass(frozen=True)
class Pace:
    """How time passes in an evaluation.

    Attributes:
        control_hz: control steps a second of a world that goes on; None for one that waits.
        latency_ms: what each chunk is said to take, ms; None for what was measured.
        meanwhile: what the robot does until a chunk is there, see `control.MEANWHILE`.
        action_repr: what an action means, see `control.hold_action`.
        zero_holds: whether an action of zeros holds the robot.

    Raises:
        ValueError: a rate, a latency or a `meanwhile` that cannot be.
    """

    control_hz: float | None = None
    latency_ms: float | None = None
    meanwhile: str = "continue"
    action_repr: str = "raw"
    zero_holds: bool = False

    def __post_init__(self) -> None:
        if self.control_hz is not None:
            steps_waited(0.0 if self.latency_ms is None else self.latency_ms, self.control_hz)
        if self.meanwhile not in MEANWHILE:
            raise ValueError(f"meanwhile must be one of {', '.join(MEANWHILE)}, got {self.meanwhile!r}")

    def due(self, episode: Episode, chunk: np.ndarray, n_action_steps: int, latency_ms: float) -> Slice:
        """What is executed until the next observation is taken.

        Args:
            episode: as it was when the chunk was asked for.
            chunk: (P, Da), all actions of the plan from the newest observation on.
            n_action_steps: Ta.
            latency_ms: measured, of this chunk.
        """
        if self.control_hz is None or episode.chunk is None:  # the first chunk of an episode is awaited
            return next_actions(chunk, n_action_steps)
        latency_ms = latency_ms if self.latency_ms is None else self.latency_ms
        return next_actions(
            chunk,
            n_action_steps,
            waited=steps_waited(latency_ms, self.control_hz),
            before=episode.chunk,
            since=episode.since,
            last=episode.last,
            hold=partial(hold_action, action_repr=self.action_repr, zero_holds=self.zero_holds),
            meanwhile=self.meanwhile,
        )


LOCKSTEP = Pace()
"""The world waits."""


def pace_of(cell: Cell, *, zero_holds: bool = False) -> Pace:
    """The pace of a cell."""
    if cell.mode == "lockstep":
        return LOCKSTEP
    latency = None if cell.latency == "measured" else float(cell.latency or 0.0)
    return Pace(cell.control_hz, latency, cell.meanwhile or "continue", cell.action_repr, zero_holds)
