"""Chunks placed in time, and the action that is wanted at a time.

Action i of a chunk belongs at its observation's time + i dt (Chi et al., "Diffusion Policy", on the real robot). It is
wanted from half a step before that until half a step after, or, interpolated, in proportion. What is past when the
chunk comes is stale and never executed, nor is anything beyond its last action.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.blending import Candidate, blend
from diffpolicy_spec.control.config import ControlConfig

__all__ = ["Chunk", "ChunkQueue", "Wanted", "action_at", "invalid_actions"]

_NEAR = 1e-6
"""Policy steps: times equal but for rounding are one time, and what is just between two steps does not flicker."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """A chunk in time.

    Attributes:
        id: of its request.
        time: s on the loop's clock, of its observation: action 0 belongs there.
        actions: (P, Da).
        since: s, the last command's time before this chunk was there: from then on it is blended in.
    """

    id: int
    time: float
    actions: NDArray[np.float64]
    since: float = -math.inf

    def place(self, time: float, dt: float) -> float:
        """Which action belongs at `time`, as a number that may lie between two or outside."""
        return (time - self.time) / dt


@dataclass(frozen=True, eq=False)
class Wanted:
    """What the chunks want at a time.

    Attributes:
        action: (Da,); chunk: id of the newest chunk in it; step: its place there.
        time: s on the loop's clock, of that chunk's observation.
    """

    action: NDArray[np.float64]
    chunk: int
    step: float
    time: float


def invalid_actions(actions: object, action_dim: int, usable: int) -> str | None:
    """Why a chunk cannot be used; None: it can.

    Args:
        usable: P, how many actions it should have.
    """
    if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "iuf":
        return "its actions are not an array of numbers"
    if actions.shape != (usable, action_dim):
        return f"its actions have shape {actions.shape}, not {(usable, action_dim)}"
    bad = int(np.count_nonzero(~np.isfinite(actions)))
    return f"{bad} of its {actions.size} numbers are not finite" if bad else None


def action_at(
    actions: NDArray[np.float64], place: float, interpolation: str
) -> tuple[NDArray[np.float64], float] | None:
    """The action of a chunk at a place, and the place it was taken from; None outside of it.

    Args:
        actions: (P, Da); place: see `Chunk.place`; interpolation: see `ControlConfig.interpolation`.
    """
    last = len(actions) - 1
    nearest = math.floor(place + 0.5 + _NEAR)
    if not 0 <= nearest <= last:
        return None
    if interpolation == "nearest":
        return actions[nearest], float(nearest)
    place = min(max(place, 0.0), float(last))
    i = min(int(place), last - 1) if last else 0
    part = place - i
    return (actions[i] if part == 0 else (1 - part) * actions[i] + part * actions[i + 1]), place


class ChunkQueue:
    """The chunks that still have actions for a time to come.

    Args:
        config: interpolation, blending, dt.
        most: chunks kept at most.
    """

    def __init__(self, config: ControlConfig, most: int = 64) -> None:
        self._config, self._most = config, most
        self._chunks: list[Chunk] = []  # by observation time, the newest last

    def clear(self) -> None:
        """Forget all chunks."""
        self._chunks.clear()

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def chunks(self) -> Sequence[Chunk]:
        """By observation time, the newest last."""
        return tuple(self._chunks)

    def put(self, chunk: Chunk, time: float, period: float) -> int:
        """Take a chunk in; returns how many of its actions are stale, all of them where it is dropped.

        A chunk of an older observation than one that is here is dropped, and so is one with nothing left.

        Args:
            time: s on the loop's clock, what the next command is for; period: s, from the one before it.
        """
        count = len(chunk.actions)
        if self._chunks and chunk.time <= self._chunks[-1].time:
            return count
        stale = min(max(math.floor(chunk.place(time, self._config.dt) + 0.5 + _NEAR), 0), count)
        if stale < count:
            self._chunks.append(replace(chunk, since=time - period))
            del self._chunks[: -self._most]
        return stale

    def wanted(self, time: float) -> Wanted | None:
        """What is wanted at `time`, s on the loop's clock; None: no chunk has an action for it."""
        config = self._config
        candidates: list[Candidate] = []
        fade = config.blend_steps * config.dt
        for chunk in reversed(self._chunks):
            found = action_at(chunk.actions, chunk.place(time, config.dt), config.interpolation)
            if found is None:
                continue
            age = time - chunk.since
            if not candidates:
                newest, step = chunk, found[1]
            candidates.append(Candidate(found[0], age))
            if config.blend == "newest" or (config.blend == "crossfade" and age >= fade):
                break  # what is older has no weight
        if not candidates:
            return None
        action = blend(candidates[::-1], config.blend, fade=fade, decay=config.ensemble_decay)
        return Wanted(action, newest.id, step, newest.time)

    def forget_before(self, time: float) -> None:
        """Drop the chunks whose last action's time is past."""
        dt = self._config.dt
        self._chunks = [c for c in self._chunks if c.place(time, dt) < len(c.actions) - 0.5 - _NEAR]

    def following(self, time: float, count: int, step: float) -> NDArray[np.float64] | None:
        """(n, Da), n <= count: what is wanted at time, time + step, ... as far as there is something; None: nothing."""
        rows = []
        for i in range(count):
            found = self.wanted(time + i * step)
            if found is None:
                break
            rows.append(found.action)
        return np.stack(rows) if rows else None
