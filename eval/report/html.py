"""report.html: one page that needs nothing else, not even a network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from diffpolicy_spec.eval.report import plots, words
from diffpolicy_spec.eval.report.data import Group, Line, Machine, Report
from diffpolicy_spec.eval.report.films import Film, films_section
from diffpolicy_spec.eval.report.glance import Fact, cards, success_fact, summary_lines
from diffpolicy_spec.eval.report.machines import facts
from diffpolicy_spec.eval.report.svg import COLOURS
from diffpolicy_spec.eval.report.tables import (
    LEGEND,
    Table,
    comparison_table,
    cost_table,
    latency_table,
    metrics_table,
    realtime_table,
    success_table,
)
from diffpolicy_spec.eval.summary import group_key

__all__ = ["html_page"]


def html_page(report: Report, films: Sequence[Film], output: Path, *, title: str, videos_mb: float) -> str:
    """The page.

    Args:
        films: the episodes that were filmed.
        output: folder the page is written to; videos that are not embedded are linked from there.
        videos_mb: megabytes of videos that are embedded.
    """
    colours = {label: i for i, label in enumerate(report.labels)}
    film_section, film_data = films_section(report, films, output, videos_mb)
    parts = [_glance(report, colours)]
    for task in report.tasks:
        parts.append(_task(report, task, colours))
    parts += [film_section, _machines(report.machines), _definitions()]
    links = [("glance", "At a glance"), *((_anchor(t), t) for t in report.tasks)]
    links += [("videos", "Videos")] if film_section else []
    links += [("machine", "Machine and settings"), ("definitions", "What the numbers mean")]
    script = ""
    if film_data:
        script = f'<script type="application/json" id="films">{film_data}</script>\n<script>{_file("page.js")}</script>'
    episodes = sum(m.episodes for m in report.machines)
    subtitle = (
        f"{episodes:,} episodes, {len(report.labels)} samplers, "
        f"{len(report.tasks)} task{'s' if len(report.tasks) > 1 else ''}: {', '.join(report.tasks)}"
    )
    return Template(_file("page.html")).substitute(
        title=escape(title),
        css=_file("page.css"),
        subtitle=escape(subtitle),
        nav="".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name in links),
        body="\n".join(parts),
        footer=escape("; ".join(facts(m)["summary"] for m in report.machines)),
        script=script,
    )


def _file(name: str) -> str:
    return (files("diffpolicy_spec.eval.report") / name).read_text(encoding="utf-8")


def _anchor(task: str) -> str:
    return "task-" + "".join(c if c.isalnum() else "-" for c in task)


def _swatch(line_exact: bool, colour: int) -> str:
    return f'<span class="swatch c{colour % COLOURS}{" full" if line_exact else ""}" aria-hidden="true"></span>'


def _legend(lines: Sequence[Line], colours: Mapping[str, int]) -> str:
    once = {x.label: x for x in lines}
    items = "".join(
        f"<li>{_swatch(x.cell.exact, colours[name])}{escape(name)}{'' if x.cell.exact else ' (approximate)'}</li>"
        for name, x in once.items()
    )
    return f'<ul class="legend" aria-label="Colours">{items}</ul>'


def _figure(svg: str | None, title: str, text: str, *, below: str = "") -> str:
    if svg is None:
        return ""
    caption = f"<figcaption><b>{escape(title)}</b>{escape(text)}</figcaption>"
    return f"<figure>{caption}{svg}{below}</figure>"


def _html_table(table: Table | None) -> str:
    """In a box of its own, which scrolls where the screen is narrow."""
    if table is None or not table.rows:
        return ""

    def word(i: int) -> str:
        return ' class="word"' if i < table.left or table.header[i] in ("verdict", "meanwhile") else ""

    head = "".join(f'<th scope="col"{word(i)}>{escape(name)}</th>' for i, name in enumerate(table.header))
    rows = []
    for row in table.rows:
        first = f'<th scope="row" class="word">{escape(row[0])}</th>'
        rows.append(f"<tr>{first}{''.join(f'<td{word(i)}>{escape(v)}</td>' for i, v in enumerate(row) if i)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>'
        f"<caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
        "</table></div>"
    )


def _glance(report: Report, colours: Mapping[str, int]) -> str:
    """What the samplers changed and what they did not, before any detail."""
    notes = "".join(f'<p class="warn">{escape(note)}</p>' for note in report.notes)
    said = "".join(f"<li>{escape(text)}</li>" for text in summary_lines(report))
    figures = [
        _figure(
            plots.differences(report, colours),
            "What the sampler did to success",
            "Difference to the baseline on the same seeds, 95 % interval. Band: the margin of "
            f"±{100 * report.margin:g} points. Inside it: nothing that matters changed. Across an edge: not shown.",
        ),
        *(figure for task in report.tasks for figure in _real_time_figures(report, task, colours)),
    ]
    lockstep = [g for g in report.groups if g.mode == "lockstep"]
    shown = _cards(lockstep[0], colours) if len(lockstep) == 1 else _matrix(lockstep, colours)
    return (
        f'<h2 id="glance">At a glance</h2>{notes}{f"<ul class=says>{said}</ul>" if said else ""}{shown}'
        f'<div class="figures">{"".join(figures)}</div>{_legend([x for g in report.groups for x in g.lines], colours)}'
    )


def _cards(group: Group, colours: Mapping[str, int]) -> str:
    shown = "".join(
        f'<article class="card"><h3>{_swatch(c.line.cell.exact, colours[c.line.label])}{escape(c.line.label)}</h3>'
        f'<p class="big">{escape(c.big)}</p><p>{escape(c.below)}</p>'
        f'<ul class="facts">{"".join(map(_fact, c.facts))}</ul></article>'
        for c in cards(group)
    )
    return f'<div class="cards">{shown}</div>'


def _matrix(groups: Sequence[Group], colours: Mapping[str, int]) -> str:
    """Samplers by tasks: the speed-up and what became of success."""
    if not groups:
        return ""
    lines = {x.label: x for g in groups for x in g.lines if g.pair_of(x)}
    head = "".join(f'<th scope="col" class="word">{escape(g.title)}</th>' for g in groups)
    rows = []
    for label, first in lines.items():
        row = []
        for group in groups:
            line = next((x for x in group.lines if x.label == label), None)
            pair = group.pair_of(line) if line else None
            if line is None or pair is None:
                row.append(f"<td>{'baseline' if line else '-'}</td>")
                continue
            fact, s = success_fact(pair.success), line.summary
            factor = words.times(s.wall_clock_speedup) if s.wall_clock_speedup else "-"
            rates, _, verdict = fact.text.partition(": ")
            row.append(
                f'<td><span class="factor">{factor}</span> <span class="soft">success {escape(rates)}</span><br>'
                f'<span class="badge {fact.kind}">{fact.sign} {escape(verdict)}</span></td>'
            )
        name = f'<th scope="row" class="word">{_swatch(first.cell.exact, colours[label])} {escape(label)}</th>'
        rows.append(f"<tr>{name}{''.join(row)}</tr>")
    title = "Speed-up in wall-clock, and success against the baseline on the same seeds"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table class="matrix"><caption>{title}'
        f'</caption><thead><tr><th scope="col" class="word">sampler</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _fact(fact: Fact) -> str:
    said = {"same": "unchanged", "faster": "better", "open": "undecided", "near": "note"}.get(fact.kind, fact.kind)
    return (
        f'<li class="{fact.kind}"><span class="sign" role="img" aria-label="{said}">{fact.sign}</span>'
        f"<span><b>{escape(fact.name)}</b> {escape(fact.text)}</span></li>"
    )


def _task(report: Report, task: str, colours: Mapping[str, int]) -> str:
    parts = [f'<h2 id="{_anchor(task)}">{escape(task)}</h2>']
    groups = [g for g in report.groups if g.task == task]
    lockstep = [g for g in groups if g.mode == "lockstep"]
    several = sum(g.mode == "lockstep" for g in report.groups) > 1  # else the cards stand at the top of the page
    for group in lockstep:
        parts.append(_lockstep(group, colours, named=len(lockstep) > 1, several=several))
    real = realtime_table(report, task)
    if real:
        parts += ["<h3>In real time</h3>", _html_table(real)]
    return "\n".join(parts)


def _lockstep(group: Group, colours: Mapping[str, int], *, named: bool, several: bool) -> str:
    sentences = "".join(
        f"<li>{escape(words.sentence(c, p.a.label, p.b.label))}</li>"
        for p in group.pairs
        for c in (p.success, p.score)
        if c is not None
    )
    split = "".join(
        f'<li><span class="square part-{p}"></span>{p}</li>' for p in ("network", "draft", "verify", "other")
    )
    figures = [
        _figure(plots.success_against_latency(group, colours), "Success against latency",
                "Up and to the left is better. Bars: 95 % Wilson intervals. Filled: exact."),
        _figure(plots.latency_distribution(group, colours), "How long a policy call takes",
                "Share of calls that took no longer."),
        _figure(plots.time_split(group), "Where the time goes", "Mean of a policy call.",
                below=f'<ul class="legend">{split}</ul>'),
        _figure(plots.acceptance(group, colours), "Which drafted steps are accepted",
                "By timestep; sampling runs from left to right."),
        _figure(plots.speedups(group, colours), "Speed-up against latency",
                "Filled: wall-clock. Ring: by sequential calls. The stalk between them is what drafting, verifying and "
                "wider calls cost."),
    ]  # fmt: skip
    compared = ""
    if group.pairs:
        compared = (
            f"<details{'' if several else ' open'}><summary>The paired comparison in words and numbers</summary>"
            f'<ul class="sentences">{sentences}</ul>{_html_table(comparison_table(group.pairs, group.title))}</details>'
        )
    return "\n".join([
        f"<h3>{escape(group.title)}</h3>" if named else "",
        _legend(group.lines, colours),
        _cards(group, colours) if several else "",
        _html_table(success_table(group)),
        compared,
        _html_table(metrics_table(group)),
        f'<div class="figures">{"".join(figures)}</div>',
        _html_table(latency_table(group)),
        _html_table(cost_table(group)),
    ])  # fmt: skip


def _real_time_figures(report: Report, task: str, colours: Mapping[str, int]) -> list[str]:
    """One picture for each way of being late, over the control rates."""
    families: dict[str, list[Group]] = {}
    for group in report.groups:
        if group.task == task and group.mode == "realtime":
            key = json.dumps([pair for pair in group_key(group.baseline.cell) if pair[0] != "control_hz"])
            families.setdefault(key, []).append(group)
    figures = []
    for family in families.values():
        cell = family[0].baseline.cell
        how = "as measured" if isinstance(cell.latency, str) else f"given, {cell.latency:g} ms"
        text = f"The world does not wait for the policy. Latency {how}; the robot meanwhile: {cell.meanwhile}."
        title = f"{task} in real time: success against the control rate"
        figures.append(_figure(plots.real_time(family, colours), title, text))
    return figures


def _machines(machines: Sequence[Machine]) -> str:
    parts = ['<h2 id="machine">Machine and settings</h2>']
    for machine in machines:
        known = facts(machine)
        shown = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in known.items() if k != "summary")
        rest = escape(json.dumps(asdict(machine), indent=1, default=str))
        parts.append(f"<dl>{shown}</dl><details><summary>Everything, as JSON</summary><pre>{rest}</pre></details>")
    return "\n".join(parts)


def _definitions() -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in LEGEND)
    return f'<h2 id="definitions">What the numbers mean</h2><dl>{items}</dl>'
