"""What a choice expects, in words and as a table."""

from __future__ import annotations

from .record import Choice

__all__ = ["sentence", "table"]


def sentence(choice: Choice) -> str:
    """One line: what is chosen, what it is expected to cost, against what."""
    where = (
        f"{choice.device} ({choice.processor}, {choice.threads} threads)" if choice.device == "cpu" else choice.device
    )
    if choice.method == "sequential":
        return (
            f"On {where} no speculative sampler is quicker than the sequential one, {choice.sequential_ms:.1f} ms a "
            f"chunk: sampler=auto is sequential"
        )
    return (
        f"On {where}, torch {choice.torch}, sampler=auto is {choice.name}, {_size(choice)}: expects {choice.calls:.1f} "
        f"calls, {choice.rows:.0f} rows and {choice.latency_ms:.1f} ms a chunk (p95 {choice.latency_ms_p95:.1f}); "
        f"sequential {choice.sequential_ms:.1f} ms, {choice.sequential_ms / choice.latency_ms:.1f} times as long"
    )


def _size(choice: Choice) -> str:
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
        "| sampler | window | calls | rows | overhead ms a round | expected ms | measured ms | p95 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in [*rows[:limit], *reference]:
        timed = f"{row['measured_ms']:.1f} | {row['measured_ms_p95']:.1f}" if "measured_ms" in row else "- | -"
        lines.append(
            f"| {row['name']} | {row['window']} | {row['calls']:.1f} | {row['rows']:.0f} | "
            f"{row['overhead_ms_per_round']:.2f} | {row['predicted_ms']:.1f} | {timed} |"
        )
    cost = [f"| {n} | {ms:.2f} |" for n, ms in choice.call_cost_ms.items()]
    return "\n".join([*lines, "", "| rows of a call | ms |", "| --- | --- |", *cost]) + "\n"
