"""What a run of the loop was like, in a fixed amount of memory however long it takes."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from diffpolicy_spec.control.events import (
    ChunkArrived,
    Fault,
    Intervention,
    LoopStarted,
    LoopStopped,
    Subscriber,
    Tick,
)
from diffpolicy_spec.control.histogram import Histogram, Percentiles
from diffpolicy_spec.control.publisher import METHODS

__all__ = ["FaultRecord", "Recorder", "Summary", "replay"]


@dataclass(frozen=True)
class FaultRecord:
    """Of one kind of fault.

    Attributes:
        count: how often it began.
        seconds: how long it lasted in all, one that is not over up to now.
        ongoing: whether it is not over.
    """

    count: int
    seconds: float
    ongoing: bool


@dataclass(frozen=True)
class Summary:
    """A run, or several.

    Attributes:
        control_hz: of the last run; policy, sampler: where they were known.
        seconds: from the first event to the last.
        periods: of the loop; skipped: those it had no time for.
        jitter_ms: how late periods began; busy_ms: what the loop did in one.
        sources: source -> periods, see `events.SOURCES`.
        latency_ms: of chunks, from the request until they were there.
        observation_age_ms: of the observation that a command's chunk was made from, at the time the command is for.
        chunks: that came; inexact: finished by DDIM to keep a deadline; deadline_misses: came late, or so finished.
        on_deadline: what is done with those that would be late, see `ControlConfig`; "": no deadlines.
        stale_actions: of chunks, whose time had passed when they came; usable_actions: the others.
        calls, evaluations: of the network, in all chunks that told; accepted, rejected: drafted steps.
        interventions: kind -> how often the safety layer stepped in.
        faults: kind -> its record.
        stopped: why the last run ended; None: it has not.
    """

    control_hz: float
    policy: str
    sampler: str
    seconds: float
    periods: int
    skipped: int
    jitter_ms: Percentiles
    busy_ms: Percentiles
    sources: Mapping[str, int]
    latency_ms: Percentiles
    observation_age_ms: Percentiles
    chunks: int
    inexact: int
    deadline_misses: int
    stale_actions: int
    usable_actions: int
    calls: int
    evaluations: int
    accepted: int
    rejected: int
    interventions: Mapping[str, int]
    faults: Mapping[str, FaultRecord]
    stopped: str | None
    on_deadline: str = ""

    @property
    def acceptance(self) -> float:
        """Accepted of the drafted steps that were tested; NaN: none was."""
        tested = self.accepted + self.rejected
        return self.accepted / tested if tested else math.nan

    def data(self) -> dict[str, Any]:
        """For JSON; what is not known is left out."""
        numbers = asdict(self)
        for name, value in vars(self).items():
            if isinstance(value, Percentiles):
                numbers[name] = value.data()
        numbers["acceptance"] = self.acceptance
        return {key: value for key, value in numbers.items() if not (isinstance(value, float) and math.isnan(value))}

    def text(self) -> str:
        """For people, a line for each subject."""
        how = f" (on_deadline: {self.on_deadline})" if self.on_deadline else ""
        lines = [
            f"{self.seconds:.1f} s, {self.periods} periods at {self.control_hz:g} Hz, {self.skipped} skipped",
            f"commands: {_counts(self.sources)}",
            f"jitter {_times(self.jitter_ms)}; busy {_times(self.busy_ms)}",
            f"chunks: {self.chunks}, latency {_times(self.latency_ms)}",
            f"  {self.deadline_misses} missed their deadline{how}, {self.inexact} inexact, {self.stale_actions} of "
            f"{self.stale_actions + self.usable_actions} actions stale",
        ]
        if not math.isnan(self.acceptance):
            lines.append(f"  {100 * self.acceptance:.1f} % of drafted steps accepted, {self.calls} calls")
        lines += [
            f"age of the observation at execution: {_times(self.observation_age_ms)}",
            f"interventions: {_counts(self.interventions)}",
        ]
        faults = [
            f"{kind} {fault.count} ({fault.seconds:.1f} s{', not over' if fault.ongoing else ''})"
            for kind, fault in sorted(self.faults.items())
        ]
        lines.append(f"faults: {', '.join(faults) or 'none'}")
        if self.stopped is not None:
            lines.append(f"stopped: {self.stopped}")
        return "\n".join(lines)


class Recorder(Subscriber):
    """Counts and histograms of a loop's events. `summary` may be asked for at any time, from any thread."""

    def __init__(self) -> None:
        self._hz = math.nan
        self._policy = self._sampler = self._on_deadline = ""
        self._first = self._last = math.nan
        self._index: int | None = None
        self._stopped: str | None = None
        self._counts: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        self._interventions: Counter[str] = Counter()
        self._begun: dict[str, float] = {}
        self._faults: Counter[str] = Counter()
        self._lasted: defaultdict[str, float] = defaultdict(float)
        self._jitter, self._busy, self._latency, self._age = Histogram(), Histogram(), Histogram(), Histogram()

    def on_start(self, event: LoopStarted) -> None:
        self._at(event.time)
        self._hz, self._index, self._stopped = event.control_hz, None, None
        if event.info is not None:
            self._policy, self._sampler = event.info.policy, event.info.sampler

    def on_tick(self, event: Tick) -> None:
        self._at(event.time)
        if self._index is not None:
            self._counts["skipped"] += max(0, event.index - self._index - 1)
        self._index = event.index
        self._counts["periods"] += 1
        self._sources[event.source] += 1
        self._jitter.add(event.jitter_ms)
        self._busy.add(event.busy_ms)
        self._age.add(event.observation_age_ms)

    def on_chunk(self, event: ChunkArrived) -> None:
        self._at(event.time)
        self._latency.add(event.latency_ms)
        if event.deadline_ms is not None:
            self._on_deadline = event.on_deadline
        self._counts.update(
            chunks=1,
            inexact=int(not event.exact),
            deadline_misses=int(event.deadline_missed),
            stale_actions=event.stale,
            usable_actions=event.usable,
            calls=max(0, event.cost.calls),
            evaluations=max(0, event.cost.evaluations),
            accepted=max(0, event.cost.accepted),
            rejected=max(0, event.cost.rejected),
        )

    def on_intervention(self, event: Intervention) -> None:
        self._at(event.time)
        self._interventions[event.kind] += event.count

    def on_fault(self, event: Fault) -> None:
        self._at(event.time)
        begun = self._begun.pop(event.kind, None)
        if not event.recovered:
            self._faults[event.kind] += begun is None
            self._begun[event.kind] = event.time if begun is None else begun
        elif event.lasted_s is not None:
            self._lasted[event.kind] += event.lasted_s
            self._faults[event.kind] += begun is None  # its beginning was not seen
        elif begun is not None:
            self._lasted[event.kind] += event.time - begun

    def on_stop(self, event: LoopStopped) -> None:
        self._at(event.time)
        self._stopped = event.reason

    def summary(self) -> Summary:
        """Up to now."""
        counts, begun, lasted = Counter(self._counts), dict(self._begun), dict(self._lasted)
        faults = {
            kind: FaultRecord(
                count, lasted.get(kind, 0.0) + (self._last - begun[kind] if kind in begun else 0.0), kind in begun
            )
            for kind, count in dict(self._faults).items()
        }
        names = ("periods", "skipped", "chunks", "inexact", "deadline_misses", "stale_actions", "usable_actions",
                 "calls", "evaluations", "accepted", "rejected")  # fmt: skip
        return Summary(
            control_hz=self._hz,
            policy=self._policy,
            sampler=self._sampler,
            seconds=0.0 if math.isnan(self._first) else self._last - self._first,
            jitter_ms=self._jitter.percentiles(),
            busy_ms=self._busy.percentiles(),
            sources=dict(self._sources),
            latency_ms=self._latency.percentiles(),
            observation_age_ms=self._age.percentiles(),
            interventions=dict(self._interventions),
            faults=faults,
            stopped=self._stopped,
            on_deadline=self._on_deadline,
            **{name: counts[name] for name in names},
        )

    def _at(self, time: float) -> None:
        if math.isnan(self._first):
            self._first = self._last = time
        self._last = max(self._last, time)


def replay(events: Iterable[Any], subscriber: Subscriber) -> None:
    """Tell a subscriber events, as a loop would.

    Raises:
        TypeError: something that is no event.
    """
    for event in events:
        if type(event) not in METHODS:
            raise TypeError(f"{type(event).__name__} is no event of a control loop")
        getattr(subscriber, METHODS[type(event)])(event)


def _times(times: Percentiles) -> str:
    if not times.count:
        return "none"
    return f"{times.p50:.2f} / {times.p90:.2f} / {times.p99:.2f} ms (p50 / p90 / p99), {times.max:.2f} at most"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
