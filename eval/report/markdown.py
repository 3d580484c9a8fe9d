"""report.md: the tables for a README, which also read well in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from diffpolicy_spec.eval.report import words
from diffpolicy_spec.eval.report.data import Report
from diffpolicy_spec.eval.report.machines import facts
from diffpolicy_spec.eval.report.tables import LEGEND, Table, tables_of

__all__ = ["markdown_report", "markdown_table"]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns padded to equal width; the first `left` are left-aligned, the others right-aligned."""
    cells = [[c.replace("|", "\\|") for c in line] for line in (header, *rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(cells[0]), rule, *(line(row) for row in cells[1:])])


def _section(table: Table) -> str:
    return f"**{table.title}**\n\n{markdown_table(table.header, table.rows, table.left)}"


def markdown_report(report: Report, *, title: str | None = None) -> str:
    """Tables, what the comparisons support in full sentences, the machine, and what the numbers mean."""
    parts = [f"# {title}"] if title else []
    parts += [f"> {note}" for note in report.notes]
    parts += [_section(table) for table in tables_of(report)]
    sentences = [
        f"- {group.title}. {words.sentence(c, p.a.label, p.b.label)}"
        for group in report.groups
        for p in group.pairs
        for c in (p.success, p.score)
        if c is not None
    ]
    if sentences:
        parts.append("\n".join(sentences))
    for machine in report.machines:
        parts.append("\n".join(f"- {name}: {text}" for name, text in facts(machine).items() if name != "summary"))
    parts.append("\n".join(f"- *{name}*: {text}." for name, text in LEGEND))
    return "\n\n".join(parts) + "\n"
