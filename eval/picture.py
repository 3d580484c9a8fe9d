"""README's picture: what a chunk costs, in network calls and in milliseconds, against success.

    python -m diffpolicy_spec.eval.picture outputs/demo/eval_log.json docs/cost.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffpolicy_spec.eval.plots import colours, figure, plain_log_axis, save

__all__ = ["draw_picture", "main"]


def _sections(log: Mapping[str, Any]) -> dict[str, Any]:
    try:
        sections = {n: s for n, s in log["samplers"].items() if s["summary"]["latency"] and s["summary"]["episodes"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is not an eval_log.json of dps-eval: {error!r}") from error
    if not sections:
        raise ValueError("this eval_log.json has no sampler with finished episodes to draw")
    return sections


def draw_picture(log: Mapping[str, Any], path: Path) -> None:
    """Two panels, sequential calls and median latency of a chunk against success with its 95 % interval.

    Args:
        log: contents of an eval_log.json. Filled marks are exact samplers, open ones approximations.
        path: of the png or svg.

    Raises:
        ValueError: not such a log, or nothing in it to draw.
    """
    sections = _sections(log)
    fig, axes = figure(9.5, 3.8, columns=2, sharey=True)
    colour = colours(sections)
    costs = (
        ("sequential network calls for a chunk (mean, log scale)", lambda s: s["calls_mean"]),
        ("latency of a chunk (median, ms, log scale)", lambda s: s["latency"]["p50"]),
    )
    for ax, (label, cost) in zip(axes, costs, strict=True):
        for name, section in sections.items():
            s = section["summary"]
            rate, low, high = (100 * s[k] for k in ("success_rate", "success_low", "success_high"))
            ax.errorbar(
                cost(s), rate, yerr=[[max(0.0, rate - low)], [max(0.0, high - rate)]], fmt="o", markersize=8, capsize=3,
                color=colour[name], markerfacecolor=colour[name] if section["exact"] else "white", label=name,
            )  # fmt: skip
        ax.set_xscale("log")
        plain_log_axis(ax.xaxis)
        ax.margins(x=0.15)
        ax.set_xlabel(label)
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("success (%), 95 % interval")
    axes[0].set_ylim(None, 103)
    axes[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), title="filled: exact", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(fig, path)


def main() -> None:
    """Command line: eval_log.json in, picture out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="eval_log.json of a comparison")
    parser.add_argument("picture", type=Path, help="png or svg to write")
    given = parser.parse_args()
    draw_picture(json.loads(given.log.read_text()), given.picture)


if __name__ == "__main__":
    main()
