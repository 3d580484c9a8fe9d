"""What a policy raises when what it is given cannot be used."""

from __future__ import annotations

__all__ = ["ConditioningError", "NormalizationError", "ObservationError"]


class ObservationError(ValueError):
    """Observations with missing or unknown keys, wrong shapes, or values that are not finite."""


class ConditioningError(ValueError):
    """What is asked for needs a condition, and the policy's observations are known coordinates of its plans instead."""


class NormalizationError(ValueError):
    """Normalisation statistics are missing, or data they cannot be computed from."""
