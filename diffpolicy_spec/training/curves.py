"""Loss curves: JSON lines while a run goes on, a picture of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffpolicy_spec.atomic import write_atomically
from diffpolicy_spec.optional import require

__all__ = ["append_record", "plot_curves", "read_records", "truncate_records"]


def append_record(path: Path, record: dict[str, Any]) -> None:
    """One more line."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def truncate_records(path: Path, step: int) -> None:
    """Drop what lies after `step`: a resumed run writes it again."""
    if not path.exists():
        return
    kept = [record for record in read_records(path) if record["step"] <= step]
    text = "".join(json.dumps(record) + "\n" for record in kept)
    write_atomically(path, lambda temporary: temporary.write_text(text))


def plot_curves(records: list[dict[str, Any]], path: Path) -> None:
    """Training and validation loss against the step, log scale, as a png.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", extra="train", needed_by="plotting loss curves")
    figure = figure_module.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, label in (("train_loss", "training"), ("val_loss", "validation (EMA weights)")):
        points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
    axes.set(xlabel="optimiser step", ylabel="denoising loss (mean squared error)", yscale="log")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=120)
