"""What a choice expects, in words and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffpolicy_spec.runtime.config import RuntimeConfig

from .record import Choice
from .runtimes import described

__all__ = ["cost_table", "sentence", "size_of", "table"]


def sentence(choice: Choice) -> str:
    """One line: what is chosen, what it is expected to cost, against what."""
    where = f"{choice.device} ({choice.processor})" if choice.device == "cpu" else choice.device
    how = described(choice.runtime)
    if choice.method == "sequential":
        return (
            f"On {where} no speculative sampler is quicker than the sequential one, {choice.sequential_ms:.1f} ms a "
            f"chunk: sampler=auto is sequential, run {how}"
        )
    return (
        f"On {where}, torch {choice.torch}, sampler=auto is {choice.name}, {size_of(choice)}, run {how}: expects "
        f"{choice.calls:.1f} calls, {choice.rows:.0f} rows and {choice.latency_ms:.1f} ms a chunk (p95 "
        f"{choice.latency_ms_p95:.1f}); sequential {choice.sequential_ms:.1f} ms, "
        f"{choice.sequential_ms / choice.latency_ms:.1f} times as long"
    )


def size_of(choice: Choice) -> str:
    """Rows of the chosen sampler's rounds, in words."""
    window = choice.options.get("window")
    if window is None:
        return f"children {choice.options['children']}"
    if isinstance(window, list):
        return f"windows of {min(window)} to {max(window)} rows by step"
    return f"window {window}"


def table(choice: Choice, limit: int | None = None) -> str:
    """Markdown: what was tried, quickest by expectation first; measured times of the finalists; c(n)."""
    rows = sorted(choice.candidates, key=lambda row: row["predicted_ms"])
    reference = [row for row in rows[limit:] if row["method"] == "sequential"] if limit else []
    lines = [
        "| sampler | window | runtime | calls | rows | overhead ms a round | expected ms | measured ms | p95 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in [*rows[:limit], *reference]:
        timed = f"{row['measured_ms']:.1f} | {row['measured_ms_p95']:.1f}" if "measured_ms" in row else "- | -"
        lines.append(
            f"| {row['name']} | {row['window']} | {_runtime(row)} | {row['calls']:.1f} | {row['rows']:.0f} | "
            f"{row['overhead_ms_per_round']:.2f} | {row['predicted_ms']:.1f} | {timed} |"
        )
    return "\n".join([*lines, "", *cost_table(choice.call_cost_ms)]) + "\n"


def cost_table(costs: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Markdown lines: c(n) in milliseconds, one column for each name; rows that were not measured are left blank."""
    rows = sorted({n for cost in costs.values() for n in cost}, key=int)
    return [
        f"| rows of a call | {' | '.join(f'{name}, ms' for name in costs)} |",
        f"| --- |{' --- |' * len(costs)}",
        *(f"| {n} | {' | '.join(f'{c[n]:.2f}' if n in c else '' for c in costs.values())} |" for n in rows),
    ]


def _runtime(row: Mapping[str, Any]) -> str:
    return described(RuntimeConfig(**row["runtime"]))
