"""Figures with matplotlib: size, colours, axes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from diffpolicy_spec.optional import require

__all__ = ["colours", "figure", "plain_log_axis", "save"]

# Okabe and Ito's palette: distinguishable with the common colour blindnesses.
_PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#999933")


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
