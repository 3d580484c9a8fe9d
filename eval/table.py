"""The report as two markdown tables that also read well in a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from diffpolicy_spec.eval.report.markdown import markdown_table
from diffpolicy_spec.eval.summary import Summary

__all__ = ["markdown_table", "report"]

LEGEND = """\
exact: draws from the law of the full DDPM chain. success: with its 95 % Wilson interval. steps: of an episode, mean.
ms: latency of a policy call. wall speed-up: median latency of the full DDPM chain in this run / this one.
calls, rows: sequential network calls and rows evaluated, mean of a chunk. accepted: drafted steps that passed their
test. algorithmic speed-up: steps of the full chain / calls. outside network: share of the wall-clock.
rejection waste: rows evaluated for drafts that were dropped. -: not defined for this sampler or run."""


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x"


def _success(s: Summary) -> str:
    if not s.episodes:
        return "-"
    return f"{s.successes}/{s.episodes} [{100 * s.success_low:.0f}, {100 * s.success_high:.0f}] %"


def report(summaries: Mapping[str, Summary], exact: Mapping[str, bool]) -> str:
    """What came out and how fast, then where the calls and the time went; one row per sampler."""
    outcome, cost = [], []
    for name, s in summaries.items():
        latency = s.latency
        times = (latency.p50, latency.p95, latency.p99, latency.max) if latency else (None,) * 4
        outcome.append(
            [
                name, "yes" if exact[name] else "no", _success(s), _number(s.steps_mean, ".0f"), str(s.chunks),
                *(_number(t, ".1f") for t in times), _times(s.wall_clock_speedup),
            ]
        )
        cost.append(
            [
                name, _number(s.calls_mean, ".1f"), _number(s.rows_mean, ".0f"), _percent(s.acceptance_rate),
                _times(s.algorithmic_speedup), _percent(s.overhead), _percent(s.rejection_waste),
            ]
        )
    first = ["sampler", "exact", "success", "steps", "chunks", "p50 ms", "p95 ms", "p99 ms", "max ms", "wall speed-up"]
    second = ["sampler", "calls", "rows", "accepted", "algorithmic speed-up", "outside network", "rejection waste"]
    return "\n\n".join([markdown_table(first, outcome), markdown_table(second, cost), LEGEND])
