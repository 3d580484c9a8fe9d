"""Chunks on a grid of control steps: what is executed while one is being made, and what of it is too late.

Action i of a chunk belongs to the i-th control step after the observation it was made from (Chi et al., "Diffusion
Policy", section on the real robot: actions carry timestamps, those in the past are dropped). A chunk that took w steps
has lost its first w actions. Meanwhile the robot goes on with what the chunk before it had planned for these steps, or
it holds. Without delay (w = 0) this is diffusion_policy's receding horizon.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MEANWHILE", "Slice", "hold_action", "next_actions", "steps_waited"]

MEANWHILE = ("continue", "hold")
"""What a robot may do until its next chunk is there: go on with the chunk it has, or hold."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Slice:
    """What is executed from one observation that a chunk is made from to the next.

    Attributes:
        actions: (N, Da): `waited` actions from before the chunk was there, then the chunk's own.
        waited: control steps that passed until the chunk was there.
        stale: actions of the chunk whose time had passed by then.
        held: of the steps waited, those without an action of the chunk before.
    """

    actions: Array
    waited: int
    stale: int
    held: int

    @property
    def deadline_missed(self) -> bool:
        """Whether the chunk came after the actions before it were used up."""
        return self.held > 0


def steps_waited(latency_ms: float, control_hz: float) -> int:
    """Control steps that begin before a chunk is there: ceil(latency * rate).

    Raises:
        ValueError: a latency that is negative or not finite, or a rate that is not positive.
    """
    if not (math.isfinite(latency_ms) and latency_ms >= 0):
        raise ValueError(f"a latency must be zero or positive milliseconds, got {latency_ms}")
    if not (math.isfinite(control_hz) and control_hz > 0):
        raise ValueError(f"control_hz must be positive, got {control_hz}")
    # Rounded first: 50 ms at 20 Hz is one step, whatever 1e-3 * 50 * 20 is in binary.
    return math.ceil(round(1e-3 * latency_ms * control_hz, 9))


def hold_action(last: Array, action_repr: str, *, zero_holds: bool = False) -> Array:
    """The action that keeps a robot where it is.

    Args:
        last: (Da,) what was executed last.
        action_repr: "delta" holds by moving nowhere, the grippers as they are; any other repeats its last target.
        zero_holds: whether zeros hold, as with velocities ("raw").
    """
    if action_repr == "delta":
        held = np.zeros_like(last)
        held[6::7] = last[6::7]
        return held
    return np.zeros_like(last) if zero_holds else last.copy()


def next_actions(
    chunk: Array,
    n_action_steps: int,
    *,
    waited: int = 0,
    before: Array | None = None,
    since: int = 0,
    last: Array | None = None,
    hold: Callable[[Array], Array] = np.copy,
    meanwhile: str = "continue",
) -> Slice:
    """What is executed until the next observation is taken to make a chunk from.

    max(Ta, w + 1) steps: the next observation is Ta steps after this one, but not before one action of this chunk was
    executed; where all of them are too late that is its last one.

    Args:
        chunk: (P, Da), all actions it plans from its observation on.
        n_action_steps: Ta, how many of them are executed where nothing is late.
        waited: w, steps from its observation until it was there.
        before: (P', Da), the chunk before it, from that one's observation on; None for the first of an episode.
        since: steps between these two observations.
        last: (Da,), what was executed last.
        hold: from the action executed last to the one that keeps the robot where it is, see `hold_action`.
        meanwhile: one of MEANWHILE.

    Raises:
        ValueError: another `meanwhile`, a first chunk that the robot waits for, or numbers that do not fit.
    """
    if meanwhile not in MEANWHILE:
        raise ValueError(f"meanwhile must be one of {', '.join(MEANWHILE)}, got {meanwhile!r}")
    if waited < 0 or not 1 <= n_action_steps <= len(chunk):
        raise ValueError(f"{waited} steps waited, {n_action_steps} of {len(chunk)} actions to execute: cannot be")
    fresh = chunk[waited : max(n_action_steps, waited + 1)]
    if len(fresh) == 0:
        fresh = chunk[-1:]
    if waited == 0:
        return Slice(fresh, 0, 0, 0)
    if before is None or last is None:
        raise ValueError("before the first chunk of an episode there is nothing to do: the world must wait for it")
    going_on = before[since : since + waited] if meanwhile == "continue" else before[:0]
    held = waited - len(going_on)
    still = hold(going_on[-1] if len(going_on) else last)
    actions = np.concatenate([going_on, np.tile(still, (held, 1)), fresh])
    return Slice(actions, waited, min(waited, len(chunk)), held)
