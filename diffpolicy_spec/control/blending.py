"""One action from several chunks that have one for the same time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Candidate", "blend", "crossfade", "ensemble"]


@dataclass(frozen=True, eq=False)
class Candidate:
    """What one chunk wants. action: (Da,); age: s, for how long the chunk has been blended in."""

    action: NDArray[np.float64]
    age: float


def crossfade(candidates: Sequence[Candidate], fade: float) -> NDArray[np.float64]:
    """(Da,): each chunk takes over from those before it, linearly within `fade` s.

    a_0 = c_0, a_k = a_{k-1} + min(age_k / fade, 1) (c_k - a_{k-1}), the oldest first.
    """
    action = candidates[0].action
    for one in candidates[1:]:
        weight = min(max(one.age / fade, 0.0), 1.0)
        action = one.action if weight == 1 else action + weight * (one.action - action)
    return action


def ensemble(candidates: Sequence[Candidate], decay: float) -> NDArray[np.float64]:
    """(Da,): sum_i w_i c_i / sum_i w_i with w_i = exp(-decay i), i = 0 the oldest (ACT: Zhao et al. 2023)."""
    weights = [math.exp(-decay * i) for i in range(len(candidates))]
    total = sum(weights)
    action = np.zeros_like(candidates[0].action, dtype=np.float64)
    for weight, one in zip(weights, candidates, strict=True):
        action += weight / total * one.action
    return action


def blend(candidates: Sequence[Candidate], how: str, *, fade: float, decay: float) -> NDArray[np.float64]:
    """(Da,) of one or more candidates, the oldest chunk's first; how: see `ControlConfig.blend`."""
    if how == "newest" or len(candidates) == 1:
        return candidates[-1].action
    return crossfade(candidates, fade) if how == "crossfade" else ensemble(candidates, decay)
