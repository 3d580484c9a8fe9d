"""What is no action and no observation. Each function says what is wrong with it, or None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGEST", "action_fault", "observation_fault", "position_fault"]

LARGEST = 1e12
"""No action means a number beyond it; differences of such would be no numbers any more."""


def action_fault(action: Any, action_dim: int) -> tuple[str, str] | None:
    """Kind of the intervention and message, for what should be an action (Da,)."""
    try:
        numbers = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError):
        return "wrong_action", f"not numbers: {type(action).__name__}"
    if numbers.shape != (action_dim,):
        return "wrong_action", f"an action of shape {numbers.shape}, expected ({action_dim},)"
    if not (np.abs(numbers) <= LARGEST).all():
        bad = np.flatnonzero(~(np.abs(numbers) <= LARGEST))
        return "nonfinite_action", f"axes {bad.tolist()} of the action are {numbers[bad].tolist()}"
    return None


def observation_fault(values: Mapping[str, NDArray[Any]]) -> str | None:
    """Which keys have NaN or infinity, or no numbers at all."""
    for key, value in values.items():
        array = np.asarray(value)
        if array.dtype.kind in "ub":
            continue
        if array.dtype.kind not in "if":
            return f"{key} is not numbers (dtype {array.dtype})"
        finite = np.isfinite(array)
        if not finite.all():
            return f"{key}: {int((~finite).sum())} of {array.size} numbers are NaN or infinite"
    return None


def position_fault(values: Mapping[str, NDArray[Any]], key: str, told: NDArray[np.int64]) -> str | None:
    """Why `position_from` does not tell the axes' position."""
    if key not in values:
        return f"the observation has no {key!r} (position_from), only {', '.join(map(repr, values)) or 'nothing'}"
    shape, needed = np.shape(values[key]), int(told.max()) + 1
    if len(shape) != 1 or shape[0] < needed:
        return f"{key!r} (position_from) has shape {shape}, at least ({needed},) is needed"
    far = np.abs(np.asarray(values[key], np.float64)[told[told >= 0]]).max(initial=0.0)
    if far > LARGEST:
        return f"{key!r} (position_from) has {far:g}: that is no position"
    return None
