"""Sizes that stand in a file from somewhere, checked before a network of that size is built."""

from __future__ import annotations

from numbers import Integral
from typing import Any

__all__ = ["MOST", "MOST_KEYS", "MOST_LAYERS", "MOST_STEPS", "check_size"]

MOST = 1 << 20
"""Numbers of a vector, channels of a layer, pixels of a side."""

MOST_STEPS = 4096
"""Of a plan: three minutes at 20 Hz."""

MOST_LAYERS = 256
"""Of a network, one after the other."""

MOST_KEYS = 1000
"""Observations."""


def check_size(name: str, value: Any, most: int = MOST, least: int = 1) -> int:
    """The number, if it is a whole one within bounds.

    Raises:
        ValueError: it is not; the message names it.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) <= most:
        told = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else f"{value.bit_length()} bits"
        raise ValueError(f"{name} must be a whole number from {least} to {most:,}, got {told[:60]}")
    return int(value)
