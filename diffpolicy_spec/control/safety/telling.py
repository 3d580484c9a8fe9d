"""Interventions are counted each time and told at most once a second for each kind and axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from diffpolicy_spec.control.events import INTERVENTIONS, Intervention

__all__ = ["AGAIN_S", "Teller"]

AGAIN_S = 1.0


class Teller:
    """Counts, and remembers what was told when.

    Attributes:
        counts: (kind, axis) -> how often; axis None: of the whole action.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, int | None]] = Counter()
        self._told: dict[tuple[str, int | None], tuple[float, int]] = {}

    def tell(
        self, kind: str, now: float, message: Callable[[], str] | str, axis: int | None = None
    ) -> list[Intervention]:
        """Count one; what is to be published of it: nothing where the same was told within a second."""
        if kind not in INTERVENTIONS:
            raise ValueError(f"kind must be one of {', '.join(INTERVENTIONS)}, got {kind!r}")
        key = kind, axis
        self.counts[key] += 1
        when, count = self._told.get(key, (float("-inf"), 0))
        if 0 <= now - when < AGAIN_S - 1e-6:  # the last of 20 periods of 50 ms is not early
            return []
        self._told[key] = now, self.counts[key]
        text = message if isinstance(message, str) else message()
        return [Intervention(now, kind, text, axis, self.counts[key] - count)]

    def untold(self, now: float) -> list[Intervention]:
        """What was counted and not told yet, as at the end of a run."""
        left = []
        for (kind, axis), total in self.counts.items():
            count = total - self._told[kind, axis][1]
            if count:
                self._told[kind, axis] = now, total
                left.append(Intervention(now, kind, f"{count} more until now", axis, count))
        return left
