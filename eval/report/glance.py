"""What a sampler changed and what it did not, in a few lines."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from diffpolicy_spec.eval.comparison import Comparison
from diffpolicy_spec.eval.report import words
from diffpolicy_spec.eval.report.data import Group, Line, Pair, Report

__all__ = ["Card", "Fact", "cards", "success_fact", "summary_lines"]


@dataclass(frozen=True)
class Fact:
    """One thing that changed, or did not.

    Attributes:
        kind: "faster", "same", "better", "worse", "open" (not decided) or "near" (a remark).
        sign: one character for it.
        name: of the quantity.
        text: before, after and verdict.
    """

    kind: str
    sign: str
    name: str
    text: str


@dataclass(frozen=True)
class Card:
    """One sampler of a group.

    Attributes:
        line: the sampler.
        big, below: the number to remember and what it is.
        facts: the rest.
    """

    line: Line
    big: str
    below: str
    facts: tuple[Fact, ...]


def cards(group: Group) -> list[Card]:
    """A card for every sampler that is compared with the baseline; for every sampler where nothing is compared."""
    compared = [x for x in group.lines if group.pair_of(x)]
    return [_card(group, line) for line in (compared or group.lines)]


def _card(group: Group, line: Line) -> Card:
    s, base, pair = line.summary, group.baseline.summary, group.pair_of(line)
    facts = []
    if pair and s.latency and base.latency:
        for name, what, before, after in (
            ("latency", "median of a chunk", base.latency.p50, s.latency.p50),
            ("slowest calls", "p99", base.latency.p99, s.latency.p99),
        ):
            text = f"{words.milliseconds(before)} → {words.milliseconds(after)} ms ({what})"
            facts.append(_change(name, text, before, after))
    if pair and s.calls_mean and base.calls_mean:
        text = f"{words.number(base.calls_mean)} → {words.number(s.calls_mean)} in a row for a chunk"
        facts.append(_change("network calls", text, base.calls_mean, s.calls_mean))
    if line.cell.exact:
        facts.append(Fact("same", "=", "law", "the full DDPM chain's, exactly"))
    else:
        facts.append(Fact("near", "≈", "law", "an approximation of the full DDPM chain's"))
    if pair:
        facts += [success_fact(c) for c in (pair.success, pair.score) if c is not None]
    else:
        facts.append(Fact("near", "·", "success", words.success(s)))
    return Card(line, *_headline(group, line, pair), tuple(facts))


def _headline(group: Group, line: Line, pair: Pair | None) -> tuple[str, str]:
    s = line.summary
    if s.wall_clock_speedup and pair:
        if s.wall_clock_speedup >= 1:
            return words.times(s.wall_clock_speedup), f"quicker than {group.baseline.label}, wall-clock"
        return words.times(s.wall_clock_speedup), f"as quick as {group.baseline.label}, wall-clock"
    if s.latency:
        return f"{words.milliseconds(s.latency.p50)} ms", "median latency of a chunk"
    return words.percent(s.success_rate), "success"


def _change(name: str, text: str, before: float, after: float) -> Fact:
    if after < 0.95 * before:
        return Fact("faster", "▼", name, text)
    return Fact("worse", "▲", name, text) if after > 1.05 * before else Fact("same", "=", name, text)


def success_fact(c: Comparison) -> Fact:
    """Success or score, before and after, and what that supports."""
    rates = f"{c.a:.3f} → {c.b:.3f}" if c.quantity == "score" else f"{100 * c.a:.0f} → {100 * c.b:.0f} %"
    text = (
        f"{rates}, {c.pairs:,} seeds: {words.verdict(c)}{' episodes' if c.verdict == 'undecided' and c.needed else ''}"
    )
    if c.equal:
        return Fact("same", "=", c.quantity, text)
    if c.different:
        return Fact("better", "▲", c.quantity, text) if c.difference > 0 else Fact("worse", "▼", c.quantity, text)
    return Fact("open", "?", c.quantity, text)


def summary_lines(report: Report) -> list[str]:
    """One sentence for each sampler, over all tasks in lockstep: what it changed, and what became of success."""
    said = []
    groups = [g for g in report.groups if g.mode == "lockstep" and g.pairs]
    for label in report.labels:
        pairs = [p for g in groups for p in g.pairs if p.b.label == label]
        if not pairs:
            continue
        law = "draws from exactly the same law" if pairs[0].b.cell.exact else "approximates the law"
        speed = sorted(p.b.summary.wall_clock_speedup for p in pairs if p.b.summary.wall_clock_speedup)
        if speed:
            low, high = words.times(speed[0]), words.times(speed[-1])
            law += f" and is {low if low == high else f'{low} to {high}'} as quick in wall-clock"
        counts = Counter(p.success.verdict for p in pairs)
        names = {
            "equal": f"equal within ±{100 * report.margin:g} points",
            "different": "different",
            "different, but within the margin": f"different by less than {100 * report.margin:g} points",
            "undecided": "undecided",
        }
        if len(pairs) == 1:
            verdict = names[pairs[0].success.verdict]
        else:
            verdict = ", ".join(
                f"{text} on {counts[v]} of {len(pairs)} tasks" for v, text in names.items() if counts[v]
            )
        said.append(f"{label} {law}; success against {_baselines(pairs)}: {verdict}.")
    return said


def _baselines(pairs: list[Pair]) -> str:
    return " and ".join(dict.fromkeys(p.a.label for p in pairs))
