"""The tables of `systems.py`, in markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from systems_law import LEVEL
from systems_list import REFERENCE

__all__ = ["systems_table", "waste_table"]

Row = dict[str, Any]


def number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else format(factor * value, form)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def systems_table(rows: list[Row], null: dict[str, float], title: str) -> str:
    """One line per system and window; speed-ups against DDPM-100 with the same tables and network."""
    base = next(r for r in rows if r["system"] == REFERENCE)
    heads = ["system", "window", "exact", "calls (mean)", "median", "rows", "draft calls", "accepted", "rejections",
             "waste", "ms (median)", "network ms", "draft ms", "verify ms", "other ms", "speed-up", "distance",
             "told apart"]  # fmt: skip
    lines = [
        [
            r["system"], str(r["window"] or "-"), "yes" if r["exact"] else "no",
            number(r["calls_mean"], ".1f") + (f" ± {e:.1f}" if (e := r["calls_standard_error"]) else ""),
            number(r["calls_median"], ".0f"), number(r["rows_mean"], ".0f"),
            number(r["draft_calls_mean"] or None, ".0f"), percent(r["accepted"]), number(r["rejections_mean"], ".1f"),
            percent(r["rejection_waste"]), *(number(r[key], ".1f") for key in TIMES),
            f"{r['speedup']:.2f}x", f"{r['distance']:.4f}", "**yes**" if r["told_apart"] else "no",
        ]
        for r in rows
    ]  # fmt: skip
    apart = [r for r in rows if r["told_apart"]]
    exact, inexact = (sum(r["exact"] is kind for r in rows) for kind in (True, False))
    wrong = sum(r["exact"] for r in apart)
    return "\n".join([
        f"Distance to the sequential law on {title}: energy distance of {base['chains']} chunks of each system to "
        f"independent sequential ones. Sequential chunks lie {null['low']:.4f} to {null['high']:.4f} from sequential "
        f"chunks (99 %; median {null['median']:.4f}). *Told apart*: permutation test, p <= {LEVEL}: {wrong} of the "
        f"{exact} exact lines, {len(apart) - wrong} of the {inexact} inexact ones. *Draft calls*: of a draft network. "
        "*Waste*: rows evaluated for drafts that were dropped / rows. Times: one chunk, the parts are means.",
        "", markdown(heads, lines),
    ])  # fmt: skip


TIMES = ("ms_median", "network_ms", "draft_ms", "verify_ms", "other_ms")


def waste_table(rows: list[Row], title: str) -> str:
    """Speculation's overhead and rejection's waste, one line per drafter and window."""
    heads = ["system", "window", "rows", "dropped", "rejection waste", "rejections", "ms a chunk", "overhead share",
             "network", "draft", "verify", "other", "overhead ms a call"]  # fmt: skip
    lines = []
    for r in rows:
        if r["rejection_waste"] is None:
            continue
        shares = [percent(r[f"{part}_ms"] / r["ms_mean"]) for part in ("network", "draft", "verify", "other")]
        lines.append([
            r["system"], str(r["window"] or "-"), number(r["rows_mean"], ".0f"),
            number(r["rejection_waste"] * r["rows_mean"], ".0f"), percent(r["rejection_waste"]),
            number(r["rejections_mean"], ".1f"), number(r["ms_median"], ".1f"), percent(r["overhead"]), *shares,
            number((r["ms_mean"] - r["network_ms"]) / r["timed_calls_mean"], ".2f"),
        ])  # fmt: skip
    return "\n".join([
        f"Where the time and the rows of a chunk go on {title}. *Rejection waste*: rows evaluated for drafts that were "
        "dropped / rows. *Overhead share*: (total - network) / total; a draft network counts as drafting.",
        "", markdown(heads, lines),
    ])  # fmt: skip
