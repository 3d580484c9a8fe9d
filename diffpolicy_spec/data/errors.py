"""What the readers raise."""

from __future__ import annotations

__all__ = ["DataError"]


class DataError(ValueError):
    """A dataset that cannot be used as asked: missing keys or episodes, wrong dimensions, values not finite."""
