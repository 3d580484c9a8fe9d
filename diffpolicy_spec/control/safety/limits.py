"""What an action's axes are and how far and fast they may go, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.config import KINDS, SafetyConfig

__all__ = ["LIMITS", "Limits"]

LIMITS = ("position", "velocity", "acceleration", "jerk")
"""In the order of derivatives; an intervention's kind is the name and "_limit"."""

SLOWEST_STOP = 2000
"""Periods: without a velocity limit, a velocity is allowed if a stop from it takes no longer."""

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Limits:
    """Of Da axes, for commands h seconds apart.

    Attributes:
        kinds: (Da,) of KINDS.
        low, high: (Da,) of the position; -inf, inf: none. Of "free" axes of the command.
        velocity, acceleration, jerk: (Da,) of |.|, inf: none.
        told: (Da,) which number of the observation's `position_from` is the axis' position; -1: not told.
        period: h, s.
        names: (Da,) for messages.
    """

    kinds: tuple[str, ...]
    low: Array
    high: Array
    velocity: Array
    acceleration: Array
    jerk: Array
    told: NDArray[np.int64]
    period: float
    names: tuple[str, ...]

    @property
    def rated(self) -> NDArray[np.bool_]:
        """(Da,) the axes with a limit of a rate."""
        rates = np.isfinite(self.velocity) | np.isfinite(self.acceleration) | np.isfinite(self.jerk)
        return rates & (np.array(self.kinds) != "free")

    @classmethod
    def of(cls, config: SafetyConfig, action_dim: int, hz: float, action_repr: str = "raw") -> Limits:
        """Those of a configuration.

        `action_repr="delta"` says what the axes are where `kind` is left as it is: every seventh is a gripper's
        ("free"), the others are "delta".

        Raises:
            ValueError: numbers that are none, not one for each axis, or contradict each other; a position's limit on an
                axis that is commanded by its velocity or difference and whose position is not told; the safety action
                "zero" on an axis that may not be there.
        """
        kinds = _kinds(config, action_dim, action_repr)
        low = _numbers("low", config.low, action_dim, -np.inf)
        high = _numbers("high", config.high, action_dim, np.inf)
        rates = {name: _numbers(name, getattr(config, name), action_dim, np.inf) for name in LIMITS[1:]}
        names = tuple(str(name) for name in config.names) or tuple(f"axis {i}" for i in range(action_dim))
        if len(names) != action_dim:
            raise ValueError(f"names: {len(names)} given for {action_dim} axes")
        told = _told(config, kinds)
        for i, kind in enumerate(kinds):
            if not low[i] <= high[i]:
                raise ValueError(f"{names[i]}: low {low[i]:g} is above high {high[i]:g}")
            if kind in ("velocity", "delta") and told[i] < 0 and np.isfinite([low[i], high[i]]).any():
                raise ValueError(
                    f"{names[i]} is commanded by its {kind}, and low and high limit its position: say by position_from "
                    "which key of the observation has it, or give no low and high"
                )
            if config.action == "zero" and kind in ("position", "free") and not low[i] <= 0 <= high[i]:
                raise ValueError(
                    f"{names[i]}: the safety action zero commands {kind} 0, which is outside {low[i]:g} to "
                    f"{high[i]:g}: use action=hold or action=stop"
                )
        for name, values in rates.items():
            if not (values > 0).all():
                raise ValueError(f"{name} must be positive, got {values.tolist()}")
        return cls(kinds, low, high, told=told, period=1 / hz, names=names, **rates)


def _kinds(config: SafetyConfig, action_dim: int, action_repr: str) -> tuple[str, ...]:
    if not isinstance(config.kind, str):
        kinds = tuple(config.kind)
        if len(kinds) != action_dim:
            raise ValueError(f"kind: {len(kinds)} given for {action_dim} axes (one for all, or one each)")
        return kinds
    if config.kind == KINDS[0] and action_repr == "delta":
        return tuple("free" if i % 7 == 6 else "delta" for i in range(action_dim))
    return (config.kind,) * action_dim


def _numbers(name: str, given: float | Sequence[float | None] | None, size: int, unlimited: float) -> Array:
    if given is None or isinstance(given, (int, float)):
        given = [given] * size
    values = np.array([unlimited if one is None else float(one) for one in given])
    if values.shape != (size,):
        raise ValueError(f"{name}: {len(values)} numbers given for {size} axes (one for all, or one each)")
    if np.isnan(values).any():
        raise ValueError(f"{name} must be numbers or null, got {values.tolist()}")
    return values


def _told(config: SafetyConfig, kinds: tuple[str, ...]) -> NDArray[np.int64]:
    size = len(kinds)
    if config.position_from is None:
        if config.position_index is not None:
            raise ValueError("position_index needs position_from: the key of the observation it counts in")
        return np.full(size, -1)
    index = list(range(size)) if config.position_index is None else list(config.position_index)
    if len(index) != size:
        raise ValueError(f"position_index: {len(index)} given for {size} axes (null where the position is not told)")
    if any(i is not None and (int(i) != i or i < 0) for i in index):
        raise ValueError(f"position_index must count from 0 (null where the position is not told), got {index}")
    return np.array([-1 if i is None or kind == "free" else int(i) for i, kind in zip(index, kinds, strict=True)])
