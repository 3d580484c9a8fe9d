"""Files that say what an evaluation found: report.html, report.md, report.tex and report.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from diffpolicy_spec.atomic import write_atomically
from diffpolicy_spec.eval.episode_table import read_stores
from diffpolicy_spec.eval.report.data import Report, collect, store_in
from diffpolicy_spec.eval.report.films import films_in
from diffpolicy_spec.eval.report.html import html_page
from diffpolicy_spec.eval.report.latex import latex_report
from diffpolicy_spec.eval.report.markdown import markdown_report

__all__ = ["FILES", "Report", "load_report", "write_reports"]

FILES = ("report.html", "report.md", "report.tex", "report.json")


def load_report(stores: Sequence[str | Path], *, margin: float = 0.05) -> Report:
    """What some stores hold, summarised and compared.

    Args:
        stores: folders of stores, or outputs of dps-eval, which have one in `store`.
        margin: the difference of success that would not matter, in (0, 1).

    Raises:
        StoreError: no store, a damaged one, one of another version, or no finished episode.
        ValueError: a margin outside (0, 1).
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin must lie between 0 and 1 (0 and 100 points), got {margin}")
    return collect(read_stores([store_in(path) for path in stores]), margin)


def write_reports(
    stores: Sequence[str | Path],
    output: str | Path,
    *,
    report: Report | None = None,
    margin: float = 0.05,
    title: str = "Diffusion Policy samplers, evaluated",
    videos_mb: float = 24.0,
) -> list[Path]:
    """Write report.html, report.md, report.tex and report.json to `output`; returns their paths.

    Args:
        stores: see `load_report`. Videos are looked for in `videos/<task>/<cell>/<seed>.mp4` beside each store.
        report: what `load_report` gives for these stores, where it has been called already.
        margin: the difference of success that would not matter, in (0, 1); for a report that is not given.
        videos_mb: megabytes of videos that are embedded in the page; further ones are linked.

    Raises:
        StoreError, ValueError: see `load_report`.
        OSError: `output` cannot be written.
    """
    report = load_report(stores, margin=margin) if report is None else report
    folder = Path(output)
    films = films_in(list(dict.fromkeys([folder, *(store_in(path).parent for path in stores)])))
    texts = {
        "report.html": html_page(report, films, folder, title=title, videos_mb=videos_mb),
        "report.md": markdown_report(report, title=title),
        "report.tex": latex_report(report),
        "report.json": json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n",
    }
    for name in FILES:
        write_atomically(folder / name, partial(_write, texts[name]))
    return [folder / name for name in FILES]


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
