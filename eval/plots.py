"""Plots of a run: where latencies lie, which steps are accepted, where the time goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffpolicy_spec.eval.summary import Summary
from diffpolicy_spec.optional import require

__all__ = [
    "PLOTS", "colours", "draw_plots", "figure", "plain_log_axis", "plot_acceptance", "plot_latency", "plot_time_split",
    "save",
]  # fmt: skip

PLOTS = LATENCY, TIME_SPLIT, ACCEPTANCE = "latency.png", "time_split.png", "acceptance.png"
"""What `draw_plots` may write."""

# Okabe and Ito's palette: distinguishable with the common colour blindnesses.
_PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#999933")
_SHARES = {"network": "#0072B2", "draft": "#E69F00", "verify": "#D55E00", "other": "#BBBBBB"}


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour per sampler, by its place in the run."""
    return {name: _PALETTE[i % len(_PALETTE)] for i, name in enumerate(names)}


def figure(width: float, height: float, columns: int = 1, **kwargs: Any) -> tuple[Any, Any]:
    """A figure of this size in inches that needs no display, and its axes."""
    matplotlib = require("matplotlib", extra="eval", needed_by="a plot")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained", **kwargs)
    for ax in np.atleast_1d(axes):
        ax.spines[["top", "right"]].set_visible(False)
    return fig, axes


def save(fig: Any, path: Path) -> None:
    """Write a figure (png, svg, ... by the suffix) and forget it."""
    import matplotlib.pyplot as plt

    fig.savefig(path, dpi=150)
    plt.close(fig)


def plain_log_axis(axis: Any) -> None:
    """Ticks such as 5, 10, 20, 50 instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def plot_latency(latencies_ms: Mapping[str, np.ndarray], path: Path) -> None:
    """Empirical distribution of each sampler's policy calls: (C,) ms by sampler."""
    fig, ax = figure(7, 4)
    colour = colours(latencies_ms)
    for name, values in latencies_ms.items():
        ordered = np.sort(values)
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        ax.step(
            np.r_[ordered[0], ordered], np.r_[0, share], where="post", color=colour[name], linewidth=1.8,
            label=f"{name}  (median {np.median(ordered):.3g} ms)",
        )  # fmt: skip
    ax.set_xscale("log")
    plain_log_axis(ax.xaxis)
    ax.set_xlabel("latency of a policy call (ms, log scale)")
    ax.set_ylabel("share of calls at or below")
    ax.set_ylim(0, 1.02)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    save(fig, path)


def plot_acceptance(summaries: Mapping[str, Summary], path: Path) -> None:
    """Share of drafted steps that passed their test, by training timestep; samplers that test nothing are left out."""
    fig, ax = figure(7, 4)
    colour = colours(summaries)
    for name, summary in summaries.items():
        if summary.acceptance is None:
            continue
        t, tested, accepted = (
            np.array(v) for v in (summary.acceptance.timesteps, summary.acceptance.tested, summary.acceptance.accepted)
        )
        seen = tested > 0
        rate = accepted[seen] / tested[seen]
        ax.plot(
            t[seen], 100 * rate, color=colour[name], linewidth=1.3, marker=".", markersize=4,
            label=f"{name}  (all: {100 * accepted.sum() / tested.sum():.0f} %)",
        )  # fmt: skip
    ax.invert_xaxis()
    ax.set_xlabel("training timestep t (sampling runs from left to right: noise to action)")
    ax.set_ylabel("drafted steps accepted (%)")
    ax.set_ylim(-2, 102)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, fontsize=9)
    save(fig, path)


def plot_time_split(summaries: Mapping[str, Summary], path: Path) -> None:
    """Mean time of a policy call by where it is spent, one bar per sampler."""
    shown = {name: s for name, s in summaries.items() if s.shares is not None and s.latency is not None}
    fig, ax = figure(7, 0.9 + 0.45 * len(shown))
    rows = np.arange(len(shown))
    left = np.zeros(len(shown))
    for part, colour in _SHARES.items():
        ms = np.array([getattr(s.shares, part) for s in shown.values()])
        ax.barh(rows, ms, left=left, height=0.65, color=colour, label=part)
        left += ms
    for row, summary in zip(rows, shown.values(), strict=True):
        overhead = "" if summary.overhead is None else f"  ({100 * summary.overhead:.0f} % outside network)"
        ax.text(left[row], row, f" {left[row]:.3g} ms{overhead}", va="center", fontsize=8)
    ax.set_yticks(rows, list(shown))
    ax.invert_yaxis()
    ax.set_xlim(0, 1.35 * left.max())
    ax.set_xlabel("mean time of a policy call (ms)")
    ax.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    save(fig, path)


def draw_plots(summaries: Mapping[str, Summary], latencies_ms: Mapping[str, np.ndarray], folder: Path) -> list[Path]:
    """All plots of a run as png; those without data are not drawn. Returns what was written."""
    latencies_ms = {name: values for name, values in latencies_ms.items() if len(values)}
    drawn = []
    if latencies_ms:
        plot_latency(latencies_ms, folder / LATENCY)
        drawn.append(folder / LATENCY)
    if any(s.shares is not None and s.latency is not None for s in summaries.values()):
        plot_time_split(summaries, folder / TIME_SPLIT)
        drawn.append(folder / TIME_SPLIT)
    if any(s.acceptance is not None for s in summaries.values()):
        plot_acceptance(summaries, folder / ACCEPTANCE)
        drawn.append(folder / ACCEPTANCE)
    return drawn
