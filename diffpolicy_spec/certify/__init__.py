"""Certification: a two-sample battery between the sequential sampler and another one, on the user's own policy."""

from __future__ import annotations

from .battery import Comparison, compare
from .power import Power, measure_false_alarms, measure_power
from .run import certify, reference_of
from .verdict import Verdict

__all__ = [
    "Comparison",
    "Power",
    "Verdict",
    "certify",
    "compare",
    "measure_false_alarms",
    "measure_power",
    "reference_of",
]
