"""What dps-inspect found: plain data for machines, and the same as text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Report", "shape_text"]


def shape_text(sizes: Sequence[Any]) -> str:
    """ "(3, 84, 84)"; of one number "(7,)"."""
    return f"({', '.join(str(n) for n in sizes)}{',' if len(sizes) == 1 else ''})"


@dataclass(frozen=True)
class Report:
    """A file or folder, described.

    Attributes:
        path: what was looked at.
        kind: "checkpoint" or "dataset".
        format: of which project's layout.
        facts: plain data in the order in which it is told; a list of mappings is a table.
        notes: what a user should know, as sentences.
        problems: what is wrong, as sentences; empty for a file in order.
    """

    path: Path
    kind: str
    format: str
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "path": str(self.path), "kind": self.kind, "format": self.format, **self.facts,
            "notes": list(self.notes), "problems": list(self.problems),
        }  # fmt: skip

    def text(self) -> str:
        """Lines for people: facts one a line, tables below their name, then notes and problems."""
        lines = [f"{self.path}: {self.format} {self.kind}"]
        tables = {name: value for name, value in self.facts.items() if _is_table(value)}
        plain = {
            name: value for name, value in self.facts.items() if name not in tables and value not in (None, {}, [])
        }
        width = max((len(_label(name)) for name in plain), default=0)
        lines += [f"  {_label(name):<{width}}  {_shown(value)}" for name, value in plain.items()]
        for name, rows in tables.items():
            lines += ["", _label(name), *_table(rows)]
        for title, sentences in (("notes", self.notes), ("problems", self.problems)):
            if sentences:
                lines += ["", title, *(f"  - {sentence}" for sentence in sentences)]
        return "\n".join(lines)


def _label(name: str) -> str:
    return name.replace("_", " ")


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns side by side; the names of the columns are told by what stands in them."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_shown(row.get(head)) for head in heads] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    return ["  " + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_label(str(key))} {_shown(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        numbers = all(isinstance(item, int | float) for item in value)
        return f"[{', '.join(_shown(i) for i in value)}]" if numbers else ", ".join(_shown(i) for i in value)
    return str(value)
