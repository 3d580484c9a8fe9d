"""What one test of the battery says."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Score"]


@dataclass(frozen=True)
class Score:
    """The result of one test, before it is corrected for its companions.

    Attributes:
        statistic: what was measured; large where the samples differ.
        p: its p-value, already corrected for the views within the test.
        detail: what was seen, in words.
    """

    statistic: float
    p: float
    detail: str
