"""The tables of `runtime.py`, in markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from systems_tables import markdown, number, percent

__all__ = ["batch_table", "call_table", "chunk_table", "composed_table", "report_table"]

Row = dict[str, Any]


def call_table(rows: Sequence[Row]) -> str:
    """ms of a call by rows, and how many times its floor."""
    sizes = sorted({n for row in rows for n in row["rows"]})
    lines = []
    for row in rows:
        cells = {
            n: f"{ms:.2f} ({ms / floor:.1f})"
            for n, ms, floor in zip(row["rows"], row["ms"], row["floor_ms"], strict=True)
        }
        size = f"{row['weights'] / 1e6:.1f}M, {row['flops'] / 1e6:.0f} MFLOP"
        lines.append([row["network"], row["way"], row["dtype"], size, *(cells.get(n, "-") for n in sizes)])
    heads = ["network", "run as", "dtype", "weights read a call, work of a row", *(f"c({n})" for n in sizes)]
    return markdown(heads, lines)


def chunk_table(rows: Sequence[Row]) -> str:
    """Lines of one runtime; ratios are between lines of this table."""
    p50 = {row["sampler"]: row["p50_ms"] for row in rows if row["window"] is None}
    heads = ["sampler", "window", "exact", "calls", "rows", "p50 ms", "p95", "p99", "network ms", "draft", "verify",
             "sync", "other", "overhead", "faster than DDPM-100", "than DDIM-10"]  # fmt: skip
    lines = [
        [
            row["sampler"], str(row["window"] or "-"), "yes" if row["exact"] else "no", number(row["calls"], ".1f"),
            number(row["rows"], ".0f"), *(number(row[f"{p}_ms"], ".1f") for p in ("p50", "p95", "p99")),
            ("" if row["parts_known"] else "~ ") + number(row["network_ms"], ".1f"),
            *(number(row[f"{part}_ms"], ".2f") for part in ("draft", "verify", "sync", "other")),
            percent(row["overhead"]), *(f"{p50[name] / row['p50_ms']:.2f} x" for name in ("DDPM-100", "DDIM-10")),
        ]
        for row in rows
    ]  # fmt: skip
    return markdown(heads, lines)


def composed_table(rows: Sequence[Row]) -> str:
    """Lines of one runtime, all networks."""
    heads = ["network", "sampler", "window", "exact", "calls", "rows", "ms", "measured ms", "network ms", "overhead",
             "faster than DDPM-100", "than DDPM-100 as measured", "than DDIM-10"]  # fmt: skip
    lines = [
        [
            row["network"], row["sampler"], str(row["window"] or "-"), "yes" if row["exact"] else "no",
            number(row["calls"], ".1f"), number(row["rows"], ".0f"),
            *(number(row[key], ".1f") for key in ("ms", "measured_ms", "network_ms")), percent(row["overhead"]),
            *(f"{row[key]:.2f} x" for key in ("speedup", "speedup_measured", "against_ddim")),
        ]
        for row in rows
    ]  # fmt: skip
    return markdown(heads, lines)


def batch_table(rows: Sequence[Row]) -> str:
    """Lines of one runtime; ratios are within a batch size."""
    base = {row["batch"]: row["chunks_per_second"] for row in rows if row["sampler"] == "DDPM-100"}
    lines = [
        [
            str(row["batch"]), row["sampler"], str(row["window"] or "-"), number(row["calls"], ".0f"),
            number(row["rows"], ".0f"), number(row["ms"], ".0f"), number(row["chunks_per_second"], ".1f"),
            f"{row['chunks_per_second'] / base[row['batch']]:.2f} x",
        ]
        for row in rows
    ]  # fmt: skip
    heads = ["robots", "sampler", "window", "calls (slowest chain)", "rows a chain", "ms", "chunks a second",
             "of DDPM-100"]  # fmt: skip
    return markdown(heads, lines)


def report_table(rows: Sequence[Row]) -> str:
    """What it took to make graphs and fixed shapes ready."""
    lines = [
        [
            row["runtime"], row["sampler"], str(row["batch"]), str(row["pieces"]), number(row["seconds"], ".2f"),
            number(row["bytes"], ".1f", 2**-20), "yes" if row["graphs"] else "no",
        ]
        for row in rows
    ]  # fmt: skip
    return markdown(["runtime", "sampler", "batch", "pieces", "seconds", "MiB", "CUDA graphs"], lines)
