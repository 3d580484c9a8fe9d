"""Run a prepared evaluation: every cell on the same episodes, each kept as soon as it is finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffpolicy_spec.atomic import write_atomically
from diffpolicy_spec.eval.episode_table import Results, read_stores
from diffpolicy_spec.eval.errors import RunError
from diffpolicy_spec.eval.jobs import Done, Job
from diffpolicy_spec.eval.progress import ProgressBar
from diffpolicy_spec.eval.report import FILES, Report, write_reports
from diffpolicy_spec.eval.report.data import collect
from diffpolicy_spec.eval.report.markdown import markdown_table
from diffpolicy_spec.eval.report.tables import tables_of
from diffpolicy_spec.eval.results import eval_log, video_path, write_json
from diffpolicy_spec.eval.settings import Settings, prepare
from diffpolicy_spec.eval.spread import run_jobs
from diffpolicy_spec.eval.store import Store, load_parts

__all__ = ["Interrupted", "evaluate", "run"]

REPORTS = ("eval_log.json", *FILES)
"""What is made from the store, in the output folder."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message says how far it came."""


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write to {path} ({error.strerror or error}): see to it, then run the same command again; "
            "the episodes finished before are safe"
        ) from error


class _Run:
    """Keeps what comes in: the store, films, bars, and the files that say what is in the store."""

    def __init__(self, settings: Settings, config: Mapping[str, Any]) -> None:
        self.settings, self.config = settings, dict(config)
        with _writing(settings.output):
            self.store = Store.open(settings.output / "store")
            for work in settings.works.values():
                self.store.declare(work.cell)
        self.done = _finished(self.store, settings)
        self._bars: dict[str, ProgressBar] = {}
        self._environments: dict[str, dict[str, Any]] = {}
        self._described = settings.worker.environment(next(iter(settings.works.values())))

    @property
    def total(self) -> int:
        return len(self.settings.works) * len(self.settings.seeds)

    @property
    def stored(self) -> int:
        return sum(len(seeds) for seeds in self.done.values())

    def jobs(self) -> list[Job]:
        """What is left to do; an episode that is stored runs again only where its film is missing."""
        found = []
        for key, work in self.settings.works.items():
            for seed in self.settings.seeds:
                film = work.video and seed == self.settings.film
                there = seed in self.done[key]
                filmed = (self.settings.output / video_path(work.cell, seed)).exists()
                if not there or (film and not filmed):
                    found.append(Job(key, seed, film))
        return found

    def dealt(self, job: Job) -> None:
        if job.cell not in self._bars:
            label, done = self.settings.works[job.cell].label, self.done[job.cell]
            self._bars[job.cell] = ProgressBar(label, len(self.settings.seeds), len(done), sum(done.values()))

    def finished(self, done: Done) -> None:
        key, seed = done.job.cell, done.job.seed
        video = done.video
        if video is not None:  # before the episode, which is not run again once it is stored
            path = self.settings.output / video_path(self.settings.works[key].cell, seed)
            with _writing(path):
                write_atomically(path, lambda temporary: temporary.write_bytes(video))
        if seed in self.done[key]:
            return
        self.store.append(key, done.record, done.chunks, self._environment(done.environment))
        self.done[key][seed] = done.record.success
        self._bars[key].episode(done.record, done.chunks)
        if len(self.done[key]) == len(self.settings.seeds):
            self._bars[key].close()
            if self.stored < self.total:  # `run` writes it at the end
                self.write(read_stores([self.store.path]))

    def write(self, found: Results) -> Results:
        """Write what the store holds as eval_log.json; returns it with this run's cells first, in their order."""
        order = [*self.settings.works, *(key for key in found.cells if key not in self.settings.works)]
        results, output = Results({key: found.cells[key] for key in order}, found.tables), self.settings.output
        log = eval_log(results, output, self.config, self._described, finished=self.stored == self.total)
        with _writing(output):
            write_json(output / "eval_log.json", log)
        return results

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()
        self.settings.worker.close()

    def _environment(self, described: Mapping[str, Any]) -> dict[str, Any]:
        """What an episode ran on, with this run's configuration; the same object for the same content."""
        key = json.dumps(described, sort_keys=True)
        if key not in self._environments:
            self._environments[key] = {**described, "config": self.config}
        return self._environments[key]


def _finished(store: Store, settings: Settings) -> dict[str, dict[int, bool]]:
    """Cell id -> seed -> success, of this run's episodes that the store has."""
    table = load_parts(store.path, columns=["cell", "seed", "success"]).to_pydict()
    found: dict[str, dict[int, bool]] = {key: {} for key in settings.works}
    for key, seed, success in zip(table["cell"], table["seed"], table["success"], strict=True):
        if key in found and settings.seeds[0] <= seed <= settings.seeds[-1]:
            found[key][seed] = success
    return found


def _tables(report: Report) -> str:
    """What is said at the end."""
    tables = [f"{t.title}\n{markdown_table(t.header, t.rows, t.left)}" for t in tables_of(report)]
    return "\n\n".join([*(f"note: {note}" for note in report.notes), *tables])


def _remove(output: Path, names: tuple[str, ...]) -> None:
    for name in names:
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def run(settings: Settings, config: Mapping[str, Any]) -> Results:
    """Run what is not in the store yet, write the output folder, print the tables.

    An episode is in the store (`output`/store) as soon as it is finished; eval_log.json is written after each cell,
    the report at the end. Killed at any moment, a run goes on when it is started again.

    Raises:
        RunError, StoreError: it cannot go on; the message says what to do. What was finished is in the store.
        Interrupted: Ctrl-C.
    """
    for notice in settings.notices:
        print(f"note: {notice}")
    output = settings.output
    if settings.overwrite:
        _remove(output, ("store", "videos", *REPORTS))
    running = _Run(settings, config)
    try:
        jobs = running.jobs()
        if running.stored:
            print(f"{running.stored} of {running.total} episodes are in {output} already")
        if jobs:
            _remove(output, REPORTS)  # none may say that the run is finished
            run_jobs(settings.worker, settings.works, jobs, running, settings.spread)
    except KeyboardInterrupt as error:
        running.close()
        running.done = _finished(running.store, settings)  # it may have come between the disk and our count
        raise Interrupted(
            f"stopped: {running.stored} of {running.total} episodes are stored in {output}; "
            "run the same command to go on"
        ) from error
    finally:
        running.close()
    found = read_stores([running.store.path])
    results, report = running.write(found), collect(found)
    with _writing(output):
        written = write_reports([running.store.path], output, report=report) if settings.report else []
    print(f"\n{_tables(report)}\n")
    folders = ["videos"] if (output / "videos").exists() else []
    print(f"Written to {output}: {', '.join(['store', 'eval_log.json', *(p.name for p in written), *folders])}.")
    return results


def evaluate(config: Mapping[str, Any]) -> Results:
    """Evaluate as a configuration says.

    Args:
        config: plain data with the keys of configs/eval.yaml.

    Returns:
        everything in the output's results store.

    Raises:
        ValueError, OSError, ImportError: see `prepare`; nothing has been run or written then.
        RunError, StoreError, Interrupted: see `run`.
    """
    return run(prepare(config), config)
