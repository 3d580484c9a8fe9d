"""The samplers that are tried: ways to draft and verify, and the sizes of a round for each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["COARSE", "FAMILIES", "FINE", "Family", "available", "windows_near"]

COARSE = (8, 16, 32)
"""Windows every family is tried with, and all K rows."""

FINE = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
"""Windows among which the best families are looked at more closely."""


@dataclass(frozen=True)
class Family:
    """A way to draft and verify, the size of its rounds left open.

    Attributes:
        name: in tables.
        options: of `SamplerConfig`.
        needs: what must be stored with the policy: "gains" (fitted for the chain that is sampled), "draft" (a network).
        method: of `SamplerConfig`.
        shapes: options that stand in for windows, for methods that have none.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    method: str = "speculative"
    shapes: tuple[Mapping[str, Any], ...] = ()

    def sizes(self, num_steps: int) -> list[dict[str, Any]]:
        """Options for the coarse search, from few rows to many."""
        if self.shapes:
            return [dict(shape) for shape in self.shapes]
        return [{"window": n} for n in (*(n for n in COARSE if n < num_steps), num_steps)]


_PICARD = {"drafter": "picard", "gain": False, "corrector": False}
_CORRECTED = {**_PICARD, "memory": 1, "corrector": True}

FAMILIES: tuple[Family, ...] = (
    Family("ASD", {"drafter": "parent"}),
    Family("nearest", {"drafter": "nearest"}),
    Family("nearest, block", {"drafter": "nearest", "verifier": "block"}),
    Family("picard", {**_PICARD, "memory": 0}),
    Family("picard + secant", {**_PICARD, "memory": 3}),
    Family("picard + secant, block", {**_PICARD, "memory": 3, "verifier": "block"}),
    Family("picard + secant + gain", {**_PICARD, "memory": 1, "gain": True}, needs=("gains",)),
    Family("picard + secant + gain, block", {**_PICARD, "memory": 1, "gain": True, "verifier": "block"}, ("gains",)),
    Family("draft model", {"drafter": "model"}, needs=("draft",)),
    Family("picard + corrector, 1 sweep", {**_CORRECTED, "sweeps": 1}, needs=("draft",)),
    Family("picard + corrector", _CORRECTED, needs=("draft",)),
    Family("picard + corrector, 4 sweeps", {**_CORRECTED, "sweeps": 4, "first_sweeps": 8}, needs=("draft",)),
    Family("tree", method="tree", shapes=(
        {"children": [2, 1, 1, 1, 1, 1], "depth": 6}, {"children": [2, 2, 1, 1, 1, 1, 1, 1], "depth": 8},
        {"children": [3, 2, 2, 1, 1, 1, 1, 1], "depth": 8},
    )),
)  # fmt: skip
"""All the ways that are tried; those that need what the policy lacks are left out."""


def available(families: Sequence[Family], there: Collection[str]) -> list[Family]:
    """The families that can run with what is stored with the policy ("gains", "draft")."""
    return [family for family in families if set(family.needs) <= set(there)]


def windows_near(best: int, num_steps: int) -> list[int]:
    """Windows of the fine search: from half the best one to its double."""
    return [n for n in FINE if best / 2 <= n <= 2 * best and n < num_steps]
