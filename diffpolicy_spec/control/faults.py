"""What goes wrong, told when it begins and when it is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from diffpolicy_spec.control.events import FAULTS, Fault

__all__ = ["FaultBook"]


@dataclass
class _Running:
    began: float
    last: float
    times: int
    lasting: bool


class FaultBook:
    """Faults by kind: how often, and which are not over.

    A fault that lasts (a server that is gone) is over when somebody says so. One that happens now and then (an
    observation lost) is told when it happens first, counted from then on, and over when it has not happened for
    `quiet` s. Two parties may have one of a kind, as lost connections: each has its own.

    Args:
        tell: what is called with each Fault.
    """

    def __init__(self, tell: Callable[[Fault], None], quiet: float = 1.0) -> None:
        self._tell, self._quiet = tell, quiet
        self._running: dict[tuple[str, str], _Running] = {}
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> Mapping[str, int]:
        """How often each kind has happened."""
        return dict(self._counts)

    @property
    def active(self) -> tuple[str, ...]:
        """The kinds that are not over."""
        running = list(self._running)  # at once: the loop may change it
        return tuple(dict.fromkeys(kind for kind, _ in running))

    def happened(
        self, kind: str, message: str, now: float, *, lasting: bool = False, times: int = 1, whose: str = ""
    ) -> None:
        """A fault; told if it is not running yet. whose: any name, where several may have one of this kind.

        Raises:
            ValueError: a kind that is not one of FAULTS.
        """
        if kind not in FAULTS:
            raise ValueError(f"{kind!r} is no fault: {', '.join(FAULTS)}")
        self._counts[kind] += times
        running = self._running.get((kind, whose))
        if running is None:
            self._running[kind, whose] = _Running(now, now, times, lasting)
            self._tell(Fault(now, kind, message))
        else:
            running.last, running.lasting, running.times = now, running.lasting or lasting, running.times + times

    def over(self, kind: str, now: float, message: str = "", whose: str = "") -> None:
        """A fault is over; nothing happens if it is not running."""
        running = self._running.pop((kind, whose), None)
        if running is not None:
            often = f"{running.times} times" if running.times > 1 else "once"
            lasted = now - running.began
            self._tell(Fault(now, kind, message or f"over: {often} in {lasted:.2f} s", True, lasted))

    def look(self, now: float) -> None:
        """End those that have not happened for a while."""
        if self._running:
            for (kind, whose), running in list(self._running.items()):
                if not running.lasting and now - running.last >= self._quiet:
                    self.over(kind, now, whose=whose)
