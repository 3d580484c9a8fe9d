"""The stored choice beside what is measured now: c(n), and chunks of auto, the sequential sampler and DDIM-10."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from diffpolicy_spec.runtime.config import RuntimeConfig
from diffpolicy_spec.samplers import SamplerConfig

from .choose import in_ms, measure_calls
from .record import Choice, sequential
from .report import cost_table, size_of
from .runtimes import described, keeping_threads
from .timing import Moments, Timed, time_samplers

if TYPE_CHECKING:
    from diffpolicy_spec.policies import DiffusionPolicy

__all__ = ["FAR", "PARTS", "Line", "Measured", "measure"]

FAR = 0.25
"""A median further than this from what was expected, as a share of it, is told."""

PARTS = ("network", "draft", "verify", "sync")
"""Where the time of a chunk goes; what is left is the policy's own: encoding, noise, units."""

_DDIM_STEPS = 10


@dataclass(frozen=True)
class Line:
    """A sampler: what was expected of a policy call, and policy calls of now.

    Attributes:
        name, window: in tables.
        runtime: it was run with.
        exact: whether it draws from the chain's law.
        expected_ms: of a policy call.
        timed: (n,) calls, each drawn once.
    """

    name: str
    window: str
    runtime: RuntimeConfig
    exact: bool
    expected_ms: float
    timed: Timed

    def percentile(self, q: float) -> float:
        """Milliseconds of a policy call."""
        return 1e3 * float(np.percentile(self.timed.seconds, q))

    @property
    def off(self) -> float:
        """(median - expected) / expected."""
        return self.percentile(50) / self.expected_ms - 1

    def row(self) -> dict[str, Any]:
        """As plain data; parts that are not known (captured rounds) are None."""
        parts = 1e3 * self.timed.parts.mean(0)
        known = {name: float(ms) if np.isfinite(ms) else None for name, ms in zip(PARTS, parts, strict=True)}
        rest = 1e3 * float(self.timed.seconds.mean()) - float(parts.sum())
        return {
            "name": self.name,
            "window": self.window,
            "runtime": asdict(self.runtime),
            "exact": self.exact,
            "calls": float(self.timed.calls.mean()),
            "rows": float(self.timed.rows.mean()),
            "expected_ms": self.expected_ms,
            "mean_ms": 1e3 * float(self.timed.seconds.mean()),
            **{f"p{q}_ms": self.percentile(q) for q in (50, 95, 99)},
            "parts_ms": known | {"other": rest if np.isfinite(rest) else None},
        }


@dataclass(frozen=True)
class Measured:
    """A choice and what is measured now.

    Attributes:
        choice: as stored.
        cost_ms: c(n) now, as `Choice.call_cost_ms`, of the runtimes in `lines`.
        lines: auto, the sequential sampler and DDIM-10.
    """

    choice: Choice
    cost_ms: Mapping[str, Mapping[str, float]]
    lines: tuple[Line, ...]

    def data(self) -> dict[str, Any]:
        """As plain data."""
        recorded = {name: self.choice.call_cost_ms.get(name) for name in self.cost_ms}
        return {"call_cost_ms": {"recorded": recorded, "now": self.cost_ms}, "samplers": [x.row() for x in self.lines]}

    def text(self) -> str:
        """Markdown: chunks, c(n), and whatever took longer or less long than expected."""
        title = ("sampler", "window", "runtime", "exact", "calls", "rows", "expected ms", "p50", "p95", "p99",
                 *PARTS, "other")  # fmt: skip
        lines = [f"| {' | '.join(title)} |", "| --- " * len(title) + "|", *(_shown(line) for line in self.lines)]
        costs: dict[str, Mapping[str, float]] = {}
        for name, now in self.cost_ms.items():
            costs |= {f"{name}: recorded": self.choice.call_cost_ms.get(name, {}), f"{name}: now": now}
        far = [_told(line) for line in self.lines if abs(line.off) > FAR]
        return "\n".join([*lines, "", *cost_table(costs), *([""] if far else []), *far]) + "\n"


def _shown(line: Line) -> str:
    row = line.row()
    about = [line.name, line.window, described(line.runtime), "yes" if line.exact else "no"]
    counts = [f"{row['calls']:.1f}", f"{row['rows']:.0f}"]
    times = [row["expected_ms"], row["p50_ms"], row["p95_ms"], row["p99_ms"], *row["parts_ms"].values()]
    return f"| {' | '.join([*about, *counts, *('-' if ms is None else f'{ms:.1f}' for ms in times)])} |"


def _told(line: Line) -> str:
    return (
        f"{line.name} took {line.percentile(50):.1f} ms at the median, {abs(line.off):.0%} "
        f"{'more' if line.off > 0 else 'less'} than the {line.expected_ms:.1f} ms expected: the machine is busier or "
        f"clocked otherwise than when dps-calibrate ran, or its observations were others. If that lasts, run it again."
    )


@keeping_threads()
def measure(policy: DiffusionPolicy, moments: Moments, choice: Choice, chunks: Iterable[int]) -> Measured:
    """Time the choice, the sequential sampler and DDIM-10 side by side, one robot's chunks in turns; and c(n).

    Both of the latter have the runtime that the sequential sampler was quickest with. The expectation of DDIM-10 is ten
    of the sequential sampler's rounds as they were measured then.
    """
    (reference,) = (row for row in choice.candidates if row["method"] == "sequential")
    runtime = RuntimeConfig(**reference["runtime"])
    step_by_step = policy.bind(replace(sequential(choice.num_inference_steps, choice.eta), runtime=runtime))
    window = "1" if choice.method == "sequential" else size_of(choice)
    rounds_ms = choice.sequential_ms / step_by_step.schedule.num_steps
    given = [
        ("auto", window, choice.config, True, choice.latency_ms),
        ("sequential", "1", step_by_step.config, True, choice.sequential_ms),
        (f"DDIM-{_DDIM_STEPS}", "1", SamplerConfig("ddim", _DDIM_STEPS, runtime=runtime), False,
         _DDIM_STEPS * rounds_ms),
    ]  # fmt: skip
    costs = measure_calls(policy, moments, step_by_step.schedule, list(dict.fromkeys([choice.runtime, runtime])))
    timed = time_samplers(policy, [policy.bind(config) for _, _, config, _, _ in given], moments, chunks, repeats=1)
    lines = (
        Line(name, window, config.runtime or RuntimeConfig(), exact, expected, measured)
        for (name, window, config, exact, expected), measured in zip(given, timed, strict=True)
    )
    return Measured(choice, {described(r): in_ms(cost) for r, cost in costs.items()}, tuple(lines))
