"""The films of a report: two samplers side by side on one seed."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from diffpolicy_spec.eval.report.data import Line, Report

__all__ = ["Film", "films_in", "films_section"]


class Film:
    """The mp4 of one episode: videos/<task>/<title of the cell> [<first digits of its id>]/<seed>.mp4."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        self.task, folder, self.seed = path.parent.parent.name, path.parent.name, path.stem
        self.sampler, _, self.cell = folder.removesuffix("]").rpartition(" [")

    def line(self, report: Report) -> Line | None:
        """The line of the cell it shows; None where the report has none."""
        every = (line for group in report.groups for line in group.lines)
        return next((line for line in every if line.key.startswith(self.cell)), None)


def films_in(folders: Sequence[Path]) -> list[Film]:
    """The films below some output folders of dps-eval."""
    paths = sorted(p for folder in folders for p in (folder / "videos").glob("*/*/*.mp4"))
    return [Film(p) for p in paths if not p.name.startswith(".") and p.stat().st_size]


def _outcome(report: Report, film: Film) -> str:
    """How the episode ended, as the store has it."""
    line = film.line(report)
    if line is not None and film.seed.isdigit():
        row = np.flatnonzero(line.table.seed == int(film.seed))
        if len(row):
            solved = "solved" if line.table.success[row[0]] else "not solved"
            return f"{solved}, {int(line.table.steps[row[0]])} steps"
    return "not in the store"


def _name(report: Report, film: Film) -> str:
    """What the page calls its sampler: the title, or the label that tells namesakes apart."""
    line = film.line(report)
    return film.sampler if line is None or line.label == line.cell.sampler else line.label


def films_section(report: Report, films: Sequence[Film], output: Path, limit_mb: float) -> tuple[str, str]:
    """HTML of the section and the JSON the page's script reads; both empty without films.

    Films are embedded seed by seed, as long as all of them together stay below `limit_mb`; the others are linked where
    they lie below `output`, and else left out.
    """
    keys = [x.key for g in report.groups for x in g.lines]
    order: dict[str, int] = {}
    for film in films:
        place = next((i for i, key in enumerate(keys) if key.startswith(film.cell)), len(keys))
        order.setdefault(_name(report, film), place)
    left = limit_mb * 1e6
    found: dict[str, dict[str, dict[str, dict[str, str]]]] = {}
    linked = omitted = 0
    for film in sorted(films, key=lambda f: (f.seed, f.task, order[_name(report, f)])):
        if film.size <= left:
            left -= film.size
            source = "data:video/mp4;base64," + base64.b64encode(film.path.read_bytes()).decode()
        elif film.path.resolve().is_relative_to(output.resolve()):
            source, linked = os.path.relpath(film.path.resolve(), output.resolve()).replace(os.sep, "/"), linked + 1
        else:
            omitted += 1
            continue
        text = _outcome(report, film)
        found.setdefault(film.task, {}).setdefault(_name(report, film), {})[film.seed] = {"src": source, "text": text}
    if not found:
        return "", ""
    found = {
        task: dict(sorted(by.items(), key=lambda item: order[item[0]]))
        for task, by in sorted(found.items())
    }
    notes = [f"{linked} of the videos are files beside this page" if linked else "",
             f"{omitted} are left out: they are larger than the limit" if omitted else ""]  # fmt: skip
    said = ". ".join(n for n in notes if n)
    # A "<" could end the script element, or begin a comment in it.
    data = json.dumps(found).replace("<", "\\u003c")
    return _SECTION.replace("NOTE", escape(said + "." if said else "")), data


_SECTION = """
<h2 id="videos">Two samplers on one seed</h2>
<p class="soft">The same start, played at the task's own rate. NOTE</p>
<noscript><p class="warn">The videos need JavaScript.</p></noscript>
<div class="controls">
<div><label for="film-task">Task</label><select id="film-task"></select></div>
<div><label for="film-seed">Seed</label><select id="film-seed"></select></div>
<div><label for="film-sampler-a">Left</label><select id="film-sampler-a"></select></div>
<div><label for="film-sampler-b">Right</label><select id="film-sampler-b"></select></div>
<div><label for="film-speed">Speed</label><select id="film-speed">
<option value="0.5">0.5x</option><option value="1" selected>1x</option><option value="2">2x</option></select></div>
<button id="film-play" type="button">Play both</button>
</div>
<div class="videos" id="films-pair">
<div id="film-side-a"><video id="film-a" muted playsinline preload="auto" controls></video>
<p id="film-text-a"></p></div>
<div id="film-side-b"><video id="film-b" muted playsinline preload="auto" controls></video>
<p id="film-text-b"></p></div>
</div>
"""
