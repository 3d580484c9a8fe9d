"""The tables of a report, once, for Markdown, LaTeX and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffpolicy_spec.eval.latency import Deadlines
from diffpolicy_spec.eval.report import words
from diffpolicy_spec.eval.report.data import Group, Line, Pair, Report

__all__ = [
    "LEGEND",
    "Table",
    "comparison_table",
    "cost_table",
    "latency_table",
    "metrics_table",
    "realtime_table",
    "success_table",
    "tables_of",
]

LEGEND: tuple[tuple[str, str], ...] = (
    ("exact", "draws from the law of the full DDPM chain; the others approximate it"),
    ("success", "solved / episodes, with the 95 % Wilson interval"),
    ("score", "mean of the episodes' largest reward, with Student's 95 % interval"),
    ("difference", "points of success against the baseline on the same seeds, with Tango's 95 % interval"),
    (
        "verdict",
        "equal: the 90 % interval of the difference lies inside the margin (two one-sided tests at 5 %). better, "
        "worse: McNemar's exact test, p < 0.05 after Holm's adjustment for the rows of the table. needs: episodes for "
        "a verdict with probability 0.8, under the assumption that the sentences state",
    ),
    ("steps", "environment steps of an episode, mean"),
    ("p50 ... max", "ms of a policy call, from observations to actions; a batched call counts once, no warm-up"),
    ("jitter", "standard deviation of the calls; p99 - p50 is that of the tail"),
    (
        "late",
        "chunks that come after the actions before them are used up; in lockstep, calls longer than the actions of a "
        "chunk last",
    ),
    ("over period", "calls longer than one control period, after which at least one action is stale"),
    ("speed-up", "median latency of the full DDPM chain / this one, same machine"),
    ("chunks", "action chunks drawn, warm-up excluded"),
    ("calls, rows", "sequential network calls and rows evaluated, mean of a chunk"),
    ("accepted", "drafted steps that passed their test"),
    ("waste", "rows evaluated for drafts that were dropped / rows"),
    ("fewer calls", "algorithmic speed-up: steps of the full chain / calls"),
    ("network ... other", "mean ms of a policy call by where it went; outside: share of it outside the network"),
    (
        "waited, stale, held",
        "of a chunk: control steps that passed during the call, actions dropped, steps without action",
    ),
    ("-", "not defined for this sampler or run"),
)


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        title: what it shows.
        header: (C,) names of the columns.
        rows: (R, C).
        left: columns from the left that hold words; the others hold numbers.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    """Columns in which no row has anything to say are left out."""
    keep = [i for i in range(len(header)) if i < left or any(row[i] != words.NONE for row in rows)]
    return Table(title, tuple(header[i] for i in keep), tuple(tuple(row[i] for i in keep) for row in rows), left)


def success_table(group: Group) -> Table:
    """What came out."""
    rows = []
    for line in group.lines:
        found, s = group.pair_of(line), line.summary
        verdict = "baseline" if line is group.baseline and group.pairs else words.verdict(found and found.success)
        rows.append(
            [
                line.label, "yes" if line.cell.exact else "no", words.success(s), words.mean(s.score),
                words.number(s.steps_mean, ".0f"), words.difference(found and found.success), verdict,
            ]
        )  # fmt: skip
    header = ["sampler", "exact", "success", "score", "steps", "difference", "verdict"]
    return _table(f"{group.title}: success", header, rows)


def comparison_table(pairs: Sequence[Pair], title: str, *, adjusted: bool = True) -> Table:
    """Every number of some paired comparisons with one baseline.

    Args:
        adjusted: whether the p values are, by Holm's method.
    """
    rows = []
    for found in pairs:
        for c in (found.success, found.score):
            if c is not None:
                counts = ["-" if n is None else f"{n:,}" for n in (c.both, c.only_a, c.only_b, c.neither)]
                rows.append(
                    [
                        found.b.label, c.quantity, f"{c.pairs:,}", *counts, words.percent(found.identical),
                        words.difference(c), words.p_value(c),
                        words.difference(c, of_equality=True), words.verdict(c),
                    ]
                )  # fmt: skip
    base, alpha = pairs[0].a.label, pairs[0].success.alpha
    header = [
        "sampler", "quantity", "seeds", "both solve", f"only {base}", "only this", "neither", "same episode",
        f"difference, {100 * (1 - alpha):g} %", "p (Holm)" if adjusted else "p",
        f"difference, {100 * (1 - 2 * alpha):g} %", "verdict",
    ]  # fmt: skip
    return _table(f"{title}: against {base}, seed by seed", header, rows, left=2)


def _late(d: Deadlines | None) -> str:
    if d is None:
        return words.NONE
    return words.percent(d.missed, 1 if 0 < d.missed < 0.1 else 0)


def latency_table(group: Group) -> Table:
    """How long a policy call takes."""
    rows = []
    for line in group.lines:
        s, t = line.summary, line.summary.latency
        ms = (t.p50, t.p90, t.p95, t.p99, t.max, t.deviation, t.spread) if t else (None,) * 7
        d = s.deadlines
        rows.append(
            [
                line.label, *map(words.milliseconds, ms), _late(d),
                words.percent(d.over_period if d else None), words.times(s.wall_clock_speedup),
            ]
        )  # fmt: skip
    header = ["sampler", "p50 ms", "p90", "p95", "p99", "max", "jitter", "p99 - p50", "late", "over period", "speed-up"]
    d = next((x.summary.deadlines for x in group.lines if x.summary.deadlines), None)
    hz = f" (chunks due after {d.limit_ms:.0f} ms, control at {d.control_hz:g} Hz)" if d else ""
    return _table(f"{group.title}: latency{hz}", header, rows)


def cost_table(group: Group) -> Table:
    """What speculation and rejection cost."""
    rows = []
    for line in group.lines:
        s, t = line.summary, line.summary.shares
        parts = (t.network, t.draft, t.verify, t.other) if t else (None,) * 4
        rows.append(
            [
                line.label, f"{s.chunks:,}", words.number(s.calls_mean), words.number(s.rows_mean, ".0f"),
                words.percent(s.acceptance_rate), words.percent(s.rejection_waste), words.times(s.algorithmic_speedup),
                *map(words.milliseconds, parts), words.percent(s.overhead),
            ]
        )  # fmt: skip
    header = ["sampler", "chunks", "calls", "rows", "accepted", "waste", "fewer calls", "network ms", "draft", "verify",
              "other", "outside"]  # fmt: skip
    return _table(f"{group.title}: cost of a chunk", header, rows)


def metrics_table(group: Group) -> Table | None:
    """The task's further results; None where it has none."""
    names = tuple(dict.fromkeys(name for line in group.lines for name in line.summary.metrics))
    if not names:
        return None
    rows = [[line.label, *(words.mean(line.summary.metrics.get(name)) for name in names)] for line in group.lines]
    return _table(f"{group.title}: further results", ["sampler", *names], rows)


def realtime_table(report: Report, task: str) -> Table | None:
    """What the latency costs when the world does not wait; None where that was not run."""
    rows = []
    for group in report.groups:
        if group.task != task or group.mode != "realtime":
            continue
        for line in group.lines:
            rows.append(_realtime_row(group, line))
    header = ["sampler", "control", "latency", "meanwhile", "success", "score", "difference", "verdict", "p50 ms",
              "p99", "late", "waited", "stale", "held"]  # fmt: skip
    title = f"{task}: in real time, the world does not wait"
    for name, words_before in (("meanwhile", "meanwhile: "), ("latency", "latency: ")):
        i = header.index(name)
        if len({row[i] for row in rows}) == 1:  # what is the same everywhere is said once
            title += f"; {words_before}{rows[0][i]}"
            header, rows = header[:i] + header[i + 1 :], [row[:i] + row[i + 1 :] for row in rows]
    return _table(title, header, rows, left=2) if rows else None


def _realtime_row(group: Group, line: Line) -> list[str]:
    s, c, r, found = line.summary, line.cell, line.summary.real_time, group.pair_of(line)
    verdict = "baseline" if line is group.baseline and group.pairs else words.verdict(found and found.success)
    waits = (r.waited, r.stale, r.held) if r else (None,) * 3
    return [
        line.label, f"{c.control_hz:g} Hz", c.latency if isinstance(c.latency, str) else f"{c.latency:g} ms",
        c.meanwhile or words.NONE, words.success(s), words.mean(s.score), words.difference(found and found.success),
        verdict, *(words.milliseconds(v) for v in ((s.latency.p50, s.latency.p99) if s.latency else (None, None))),
        _late(s.deadlines), *(words.number(v) for v in waits),
    ]  # fmt: skip


def tables_of(report: Report) -> list[Table]:
    """All tables but the full comparisons, in reading order."""
    found: list[Table | None] = []
    for task in report.tasks:
        for group in report.groups:
            if group.task == task and group.mode == "lockstep":
                found += [success_table(group), metrics_table(group), latency_table(group), cost_table(group)]
        found.append(realtime_table(report, task))
    return [table for table in found if table is not None]
