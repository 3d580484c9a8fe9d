"""What a chunk costs against how far its law is from the sequential sampler's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from systems_list import REFERENCE

__all__ = ["plot"]

# Okabe and Ito's palette: distinguishable with the common colour blindnesses.
COLOURS = {
    "sequential": "#000000", "DDPM-n": "#000000", "DDIM-n": "#D55E00", "DDIM-10, eta 1": "#D55E00",
    "ParaDiGMS": "#CC79A7", "ASD": "#E69F00", "DB, frozen drift": "#F0E442", "DB, draft model": "#999933",
    "frozen x0, fused": "#56B4E9", "draft trees": "#BBBBBB", "Picard (ours)": "#009E73", "corrector (ours)": "#0072B2",
}  # fmt: skip
MARKS = {8: "o", 16: "s", 32: "D", "all": "^", None: "o"}
PLAIN = {"DDPM-n": "P", "DDIM-n": "X", "DDIM-10, eta 1": "*", "sequential": "P", "draft trees": "p"}

Row = dict[str, Any]


def mark(row: Row) -> str:
    """Shape of a mark: by window, or by family where there is no window."""
    return PLAIN.get(row["family"]) or MARKS.get(row["window"], "v")


def lines(rows: list[Row]) -> list[list[Row]]:
    """Inexact systems that differ in one number only: the steps of DDPM-n and DDIM-n, the tolerance of ParaDiGMS."""
    joined: dict[tuple[str, Any], list[Row]] = {}
    for r in rows:
        if not r["exact"]:
            joined.setdefault((r["family"], r["window"]), []).append(r)
    return list(joined.values())


def panel(axis: Any, rows: list[Row], null: dict[str, float], cost: str) -> None:
    """One cost: filled marks are exact systems, open ones on lines are not."""
    axis.axhspan(null["low"], null["high"], color="#0072B2", alpha=0.10, linewidth=0)
    for line in lines(rows):
        colour = COLOURS[line[0]["family"]]
        axis.plot([r[cost] for r in line], [r["distance"] for r in line], color=colour, linewidth=1, zorder=2)
        for r in line:
            axis.plot(r[cost], r["distance"], mark(r), color=colour, markersize=8, markerfacecolor="white", zorder=3)
    for r in rows:
        if r["exact"]:
            axis.plot(r[cost], r["distance"], mark(r), color=COLOURS[r["family"]], markersize=7, zorder=4,
                      markeredgecolor="black", markeredgewidth=0.4)  # fmt: skip
    for line in lines(rows):
        for r in line:
            if r["family"] in ("DDPM-n", "DDIM-n"):
                above = 5 if r["family"] == "DDPM-n" else -11
                axis.annotate(str(r["steps"]), (r[cost], r["distance"]), xytext=(6, above), fontsize=8,
                              textcoords="offset points", color=COLOURS[r["family"]])  # fmt: skip
    base = next(r for r in rows if r["system"] == REFERENCE)
    axis.axvline(base[cost], color="black", linewidth=0.8, linestyle=":", zorder=1)
    axis.set(xscale="log", yscale="log")
    axis.grid(alpha=0.25, which="both", linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def plot(rows: list[Row], null: dict[str, float], path: Path, title: str) -> None:
    """Two panels: distance over sequential calls, and over milliseconds of a chunk."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, axes = plt.subplots(1, 2, figsize=(12, 6.4), sharey=True, layout="constrained")
    for axis, cost, label in zip(
        axes, ("calls_mean", "ms_median"), ("sequential network calls of a chunk", "ms a chunk, one chain (median)"),
        strict=True,
    ):  # fmt: skip
        panel(axis, rows, null, cost)
        axis.set_xlabel(label + ", log scale")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    low, high = np.min([r["distance"] for r in rows]), np.max([r["distance"] for r in rows])
    axes[0].set_ylim(min(low, null["low"]) / 1.25, high * 1.4)
    axes[0].set_ylabel("energy distance to the sequential law, log scale")
    figure.suptitle(f"{title}: filled marks are exact, open marks are not", fontsize=12)

    families = {r["family"]: r for r in rows}
    handles: list[Any] = [
        Line2D([], [], color=COLOURS[family], marker=PLAIN.get(family, "o"), markersize=8,
               linestyle="none" if row["exact"] or family == "DDIM-10, eta 1" else "-",
               markerfacecolor=COLOURS[family] if row["exact"] else "white",
               markeredgecolor="black" if row["exact"] else COLOURS[family], markeredgewidth=0.4 if row["exact"] else 1,
               label=f"{REFERENCE}, sequential" if family == "sequential" else family)
        for family, row in families.items()
    ]  # fmt: skip
    for window in dict.fromkeys(r["window"] for r in rows if r["window"] is not None):
        handles.append(Line2D([], [], color="#555555", marker=MARKS.get(window, "v"), linestyle="none", markersize=7,
                              label=f"window {window}"))  # fmt: skip
    handles.append(Patch(color="#0072B2", alpha=0.10, label="sequential against sequential"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)
