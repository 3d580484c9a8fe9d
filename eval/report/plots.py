"""The pictures of report.html, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diffpolicy_spec.eval.latency import latencies
from diffpolicy_spec.eval.report import words
from diffpolicy_spec.eval.report.data import Group, Line, Pair, Report
from diffpolicy_spec.eval.report.svg import Picture, category, linear, logarithmic

__all__ = [
    "acceptance", "differences", "latency_distribution", "real_time", "speedups", "success_against_latency",
    "time_split",
]  # fmt: skip

_POINTS = 240
Colours = Mapping[str, int]


def _rates(lines: Sequence[Line]) -> tuple[float, float]:
    """Range of an axis of success rates in percent, with the intervals in it."""
    lowest = min(100 * line.summary.success_low for line in lines)
    return min(80.0, 10 * float(np.floor(lowest / 10))), 102.0


def success_against_latency(group: Group, colours: Colours) -> str | None:
    """Median latency against success with its interval; exact samplers filled."""
    lines = [x for x in group.lines if x.summary.latency]
    if not lines:
        return None
    ms = [x.summary.latency.p50 for x in lines if x.summary.latency]
    said = "; ".join(
        f"{x.label} {words.success(x.summary)} at {words.milliseconds(t)} ms" for x, t in zip(lines, ms, strict=True)
    )
    picture = Picture(
        f"{group.title}: success against median latency. {said}", logarithmic(min(ms), max(ms)), linear(*_rates(lines)),
        "median latency of a chunk (ms, log scale)", "success (%)",
    )  # fmt: skip
    for line, t in zip(lines, ms, strict=True):
        s, colour = line.summary, colours[line.label]
        picture.bar((t, t), (100 * s.success_low, 100 * s.success_high), colour)
        title = f"{line.label}: {words.success(s)}, {words.milliseconds(t)} ms"
        picture.point(t, 100 * (s.success_rate or 0), colour, title, filled=line.cell.exact)
    return str(picture)


def latency_distribution(group: Group, colours: Colours) -> str | None:
    """Share of calls that took no longer; a chunk's deadline and one control period as rules."""
    calls = {x.label: np.sort(latencies(x.table.chunks)) for x in group.lines if len(x.table.chunks)}
    if not calls:
        return None
    low, high = min(c[0] for c in calls.values()), max(c[-1] for c in calls.values())
    said = "; ".join(f"{name} median {words.milliseconds(float(np.median(c)))} ms" for name, c in calls.items())
    picture = Picture(
        f"{group.title}: distribution of latency. {said}", logarithmic(float(low), float(high)), linear(0, 100),
        "latency of a policy call (ms, log scale)", "calls no longer than this (%)",
    )  # fmt: skip
    due = next(x.summary.deadlines for x in group.lines if x.summary.deadlines)
    picture.rule(1000 / due.control_hz, "one control period")
    picture.rule(due.limit_ms, "chunk due")
    for name, ordered in calls.items():
        n = len(ordered)
        # Ends and evenly spaced order statistics: at this width the rest would fall on the same pixels.
        rows = np.unique(np.linspace(0, n - 1, min(n, _POINTS)).round().astype(int))
        x, y = ordered[rows], 100 * (rows + 1) / n
        picture.line(np.r_[x[0], x], np.r_[0.0, y], colours[name], step=True)
    return str(picture)


_PARTS = ("network", "draft", "verify", "other")


def time_split(group: Group) -> str | None:
    """Mean ms of a call by where it went."""
    lines = [x for x in group.lines if x.summary.shares]
    if not lines:
        return None
    ends = [np.r_[0.0, np.cumsum([getattr(x.summary.shares, p) for p in _PARTS])] for x in lines]
    longest = max(float(e[-1]) for e in ends)
    said = "; ".join(
        f"{x.label} {words.milliseconds(float(e[-1]))} ms, {words.percent(x.summary.overhead)} outside the network"
        for x, e in zip(lines, ends, strict=True)
    )
    names = category([_short(x.label) for x in lines])
    picture = Picture(
        f"{group.title}: where the time goes. {said}", linear(0, 1.22 * longest, 4), names,
        "mean time of a policy call (ms)", size=(460, 74 + 38 * len(lines)),
        margin=(_name_width(lines), 14, 10, 46), downwards=True,
    )  # fmt: skip
    for row, (line, end) in enumerate(zip(lines, ends, strict=True)):
        for part, start, stop in zip(_PARTS, end[:-1].tolist(), end[1:].tolist(), strict=True):
            title = f"{line.label}, {part}: {words.milliseconds(stop - start)} ms"
            picture.block((start, stop), (row - 0.34, row + 0.34), f"part-{part}", title)
        picture.note(float(end[-1]), row, f"{words.milliseconds(float(end[-1]))}")
    return str(picture)


def _short(label: str) -> str:
    """At most as long as `_name_width` has room for."""
    return label if len(label) <= 22 else f"{label[:21]}…"


def _name_width(lines: Sequence[Line]) -> int:
    return 18 + int(7.4 * max(len(_short(x.label)) for x in lines))


def acceptance(group: Group, colours: Colours) -> str | None:
    """Share of drafted steps that passed their test, by training timestep, from noise to action."""
    lines = [x for x in group.lines if x.summary.acceptance]
    if not lines:
        return None
    last = max(max(x.cell.timesteps) for x in lines)
    said = "; ".join(f"{x.label} {words.percent(x.summary.acceptance_rate)}" for x in lines)
    axis = linear(0, last, 5)
    axis.low, axis.high = float(last), 0.0  # sampling runs from noise (large t) to action
    picture = Picture(
        f"{group.title}: accepted drafts by timestep. In all: {said}", axis, linear(0, 101, 5),
        "training timestep t, from noise to action", "drafted steps accepted (%)",
    )  # fmt: skip
    for line in lines:
        tested, accepted = line.table.tested_at, line.table.accepted_at
        seen = tested > 0
        t = np.array(line.cell.timesteps)[seen]
        picture.line(t, 100 * accepted[seen] / tested[seen], colours[line.label])
    return str(picture)


def speedups(group: Group, colours: Colours) -> str | None:
    """Wall-clock (mark) and algorithmic (end of the stalk) speed-up against median latency."""
    lines = [x for x in group.lines if x.summary.latency and x.summary.wall_clock_speedup]
    if not lines:
        return None
    ms = [x.summary.latency.p50 for x in lines if x.summary.latency]
    wall = [x.summary.wall_clock_speedup or 1.0 for x in lines]
    calls = [x.summary.algorithmic_speedup or 1.0 for x in lines]
    said = "; ".join(
        f"{x.label} {w:.1f}x, by calls {c:.1f}x, at {words.milliseconds(t)} ms"
        for x, w, c, t in zip(lines, wall, calls, ms, strict=True)
    )
    picture = Picture(
        f"{group.title}: speed-up against latency. {said}", logarithmic(min(ms), max(ms)),
        logarithmic(min(wall + calls), max(wall + calls), "x"), "median latency of a chunk (ms, log scale)",
        "speed-up",
    )  # fmt: skip
    for line, t, w, c in zip(lines, ms, wall, calls, strict=True):
        colour = colours[line.label]
        picture.bar((t, t), (w, c), colour)
        picture.point(t, c, colour, f"{line.label}: {c:.1f}x fewer sequential calls", filled=False)
        picture.point(t, w, colour, f"{line.label}: {w:.1f}x in wall-clock, {words.milliseconds(t)} ms")
    return str(picture)


def differences(report: Report, colours: Colours) -> str | None:
    """Paired differences of success in lockstep with their intervals; the band is the margin."""
    groups = [g for g in report.groups if g.mode == "lockstep" and g.pairs]
    if not groups:
        return None
    rows: list[tuple[Group, Pair | None]] = []  # a heading, then its samplers
    for group in groups:
        rows += [(group, None)] if len(groups) > 1 else []
        rows += [(group, found) for found in group.pairs]
    pairs = [(g, p) for g, p in rows if p is not None]
    ends = [100 * v for _, p in pairs for v in (p.success.low, p.success.high)]
    margin = 100 * report.margin
    low, high = min([*ends, -1.6 * margin]), max([*ends, 1.6 * margin])
    said = "; ".join(f"{g.title}, {p.b.label} {words.difference(p.success)}" for g, p in pairs)
    names = category([_short(p.b.label) if p else "" for _, p in rows])
    picture = Picture(
        f"Difference of success against the baseline, points, 95 % interval; the margin is {margin:g} points. {said}",
        linear(max(-100.0, low - 1), min(100.0, high + 1), 5), names,
        "difference of success (points)", size=(460, 74 + 28 * len(rows)),
        margin=(_name_width([p.b for _, p in pairs]), 16, 10, 46), downwards=True,
    )  # fmt: skip
    picture.block((-margin, margin), (-0.5, len(rows) - 0.5), "band", f"margin ±{margin:g} points")
    picture.rule(0.0, "")
    for row, (group, found) in enumerate(rows):
        if found is None:
            picture.heading(row, group.title)
            continue
        c, colour = found.success, colours[found.b.label]
        picture.bar((100 * c.low, 100 * c.high), (row, row), colour)
        title = f"{group.title}, {found.b.label}: {words.difference(c)}, {words.verdict(c)}"
        picture.point(100 * c.difference, row, colour, title, filled=found.b.cell.exact)
    return str(picture)


def real_time(groups: Sequence[Group], colours: Colours) -> str | None:
    """Success against the control rate; groups differ in the rate only."""
    lines = [x for g in groups for x in g.lines]
    rates = sorted({float(x.cell.control_hz) for x in lines if x.cell.control_hz})
    if not rates:
        return None
    said = "; ".join(f"{x.label} at {x.cell.control_hz:g} Hz {words.percent(x.summary.success_rate)}" for x in lines)
    axis = logarithmic(rates[0], rates[-1])
    axis.ticks = tuple((hz, f"{hz:g}") for hz in rates)
    picture = Picture(
        f"{groups[0].task}, real time: success against the control rate. {said}", axis, linear(*_rates(lines)),
        "control rate (Hz, log scale)", "success (%)",
    )  # fmt: skip
    order = list(dict.fromkeys(x.label for x in lines))
    for place, name in enumerate(order):
        # Side by side, so that intervals of one rate do not hide each other.
        shift = 1 + 0.012 * (place - (len(order) - 1) / 2)
        own = sorted((x for x in lines if x.label == name), key=lambda x: x.cell.control_hz or 0)
        hz = np.array([x.cell.control_hz for x in own], dtype=float) * shift
        picture.line(hz, np.array([100 * (x.summary.success_rate or 0) for x in own]), colours[name])
        for x, at in zip(own, hz.tolist(), strict=True):
            s = x.summary
            picture.bar((at, at), (100 * s.success_low, 100 * s.success_high), colours[name])
            title = f"{name} at {x.cell.control_hz:g} Hz: {words.success(s)}"
            picture.point(at, 100 * (s.success_rate or 0), colours[name], title, filled=x.cell.exact)
    return str(picture)
