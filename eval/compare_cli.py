"""`dps-compare`: two samplers on the same seeds.

dps-compare a=ddpm100 b=speculative output=outputs/eval
dps-compare a=3f2a b=91c0 margin=2
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffpolicy_spec.atomic import write_atomically
from diffpolicy_spec.command import command
from diffpolicy_spec.eval.report.data import Group, Line, Pair, Report, pair, pair_to_dict
from diffpolicy_spec.eval.report_cli import margin_of, stores_of

__all__ = ["compare", "find_pairs", "main"]


def find_pairs(
    report: Report, a: str, b: str, *, tasks: Sequence[str] | None, margin: float, alpha: float
) -> list[tuple[Group, Pair]]:
    """The comparisons that two names mean: one in every group that has both samplers, or two cells of one task.

    Raises:
        ValueError: a name that is not there or means several cells, the same cell twice, or no seed in common.
    """
    unknown = [t for t in tasks or () if t not in report.tasks]
    if unknown:
        raise ValueError(f"there is no task {', '.join(unknown)} in the store; there are: {', '.join(report.tasks)}")
    groups = [g for g in report.groups if tasks is None or g.task in tasks]
    found = []
    for group in groups:
        first, second = _named(group, a), _named(group, b)
        if first and second:
            found.append((group, pair(_one(first, a), _one(second, b), margin, alpha)))
    if found:
        return found
    (home, first_line), (other, second_line) = _anywhere(groups, a), _anywhere(groups, b)
    if home.task != other.task:
        raise ValueError(f"{a} is of task '{home.task}' and {b} of '{other.task}': their seeds are different episodes")
    return [(home, pair(first_line, second_line, margin, alpha))]


def _named(group: Group, name: str) -> list[Line]:
    """Lines of a group with this label, else with this sampler, else whose cell's id begins so."""
    for lines in (
        [x for x in group.lines if x.label == name],
        [x for x in group.lines if x.cell.sampler == name],
        [x for x in group.lines if len(name) >= 4 and x.key.startswith(name)],
    ):
        if lines:
            return lines
    return []


def _one(lines: list[Line], name: str) -> Line:
    if len(lines) > 1:
        raise ValueError(
            f"'{name}' may be {' or '.join(f'{x.label} (id {x.key[:6]})' for x in lines)}: give one of the ids"
        )
    return lines[0]


def _anywhere(groups: list[Group], name: str) -> tuple[Group, Line]:
    there = [(g, x) for g in groups for x in _named(g, name)]
    if len({x.key for _, x in there}) == 1:
        return there[0]
    listed = "\n".join(f"  {x.key[:6]}  {x.label:24} {g.title}" for g in groups for x in g.lines)
    what = "is not in the store" if not there else "is several cells, none of them beside the other sampler"
    raise ValueError(f"'{name}' {what}; give the name or the first digits of the id of one of these cells:\n{listed}")


def compare(cfg: dict[str, Any]) -> str:
    """Compare as configs/compare.yaml says (resolved, as plain data); writes compare.md and compare.json.

    Returns:
        the text of compare.md.

    Raises:
        ValueError: see `find_pairs`; StoreError is one.
    """
    from diffpolicy_spec.eval.report import load_report, words
    from diffpolicy_spec.eval.report.machines import facts
    from diffpolicy_spec.eval.report.markdown import markdown_table
    from diffpolicy_spec.eval.report.tables import comparison_table

    alpha, margin = cfg["alpha"], margin_of(cfg)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5, such as 0.05, got {alpha!r}")
    if cfg["tasks"] is not None and (isinstance(cfg["tasks"], str) or not isinstance(cfg["tasks"], Sequence)):
        raise ValueError(f"tasks must be a list such as [lift,can], got {cfg['tasks']!r}")
    if str(cfg["a"]) == str(cfg["b"]):
        raise ValueError(f"a and b are both '{cfg['a']}': give two samplers")
    report = load_report(stores_of(cfg), margin=margin)
    pairs = find_pairs(report, str(cfg["a"]), str(cfg["b"]), tasks=cfg["tasks"], margin=margin, alpha=float(alpha))
    parts = []
    for group, found in pairs:
        table = comparison_table([found], group.title, adjusted=False)
        parts.append(f"**{table.title}**\n\n{markdown_table(table.header, table.rows, table.left)}")
        parts += [
            words.sentence(c, found.a.label, found.b.label) for c in (found.success, found.score) if c is not None
        ]
        if found.identical == 1:
            parts.append("All episodes are the same, action for action.")
    if len(pairs) > 1:
        parts.append("Each p value is of its comparison alone; dps-report adjusts those of one table by Holm's method.")
    for machine in report.machines:
        parts.append("\n".join(f"- {name}: {text}" for name, text in facts(machine).items() if name != "summary"))
    text = "\n\n".join(parts) + "\n"
    data = {
        "margin": margin,
        "alpha": alpha,
        "comparisons": [{"task": g.task, "title": g.title, **pair_to_dict(p)} for g, p in pairs],
        "machines": report.to_dict()["machines"],
    }
    folder, as_json = Path(cfg["output"]).expanduser(), json.dumps(data, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / "compare.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    write_atomically(folder / "compare.json", lambda temporary: temporary.write_text(as_json, encoding="utf-8"))
    return text


def main() -> None:
    """Entry point; the options are those of configs/compare.yaml."""
    command("dps-compare", "compare", "eval", lambda cfg: (compare(cfg), cfg["output"]), _say)


def _say(done: tuple[str, str]) -> None:
    text, output = done
    print(f"{text}\nWritten to {output}: compare.md, compare.json.")


if __name__ == "__main__":
    main()
