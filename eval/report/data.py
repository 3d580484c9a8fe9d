"""What a report shows: cells in groups that differ in the sampler only, each compared with the group's baseline."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffpolicy_spec.eval.cells import Cell
from diffpolicy_spec.eval.comparison import Comparison, compare_scores, compare_successes, holm
from diffpolicy_spec.eval.episode_table import EpisodeTable, Results
from diffpolicy_spec.eval.store import StoreError
from diffpolicy_spec.eval.summary import Summary, group_key, machine, reference_of, summarize_all

__all__ = ["Group", "Line", "Machine", "Pair", "Report", "collect", "labels", "pair", "store_in"]


@dataclass(frozen=True)
class Line:
    """A cell as the report shows it.

    Attributes:
        key: the cell's id.
        label: the sampler's name; with its runtime, policy or id where that alone is not unique in the group.
        cell, table, summary: of the cell.
    """

    key: str
    label: str
    cell: Cell
    table: EpisodeTable
    summary: Summary


@dataclass(frozen=True)
class Pair:
    """Sampler b against sampler a on the seeds that both have.

    Attributes:
        a, b: the cells.
        success: of both.
        score: of both; None where the score only says success or is not in [0, 1].
        identical: share of the seeds on which both executed the same actions, bit for bit.
    """

    a: Line
    b: Line
    success: Comparison
    score: Comparison | None
    identical: float


@dataclass(frozen=True)
class Group:
    """Cells that differ in the sampler only.

    Attributes:
        task: name of the task.
        title: the task, with policy, mode and rate where groups differ in them.
        mode: "lockstep" or "realtime".
        lines: the cells, the baseline first.
        pairs: every other line against the baseline; those that share seeds with it.
    """

    task: str
    title: str
    mode: str
    lines: tuple[Line, ...]
    pairs: tuple[Pair, ...]

    @property
    def baseline(self) -> Line:
        """The full DDPM chain, step by step, where it was run."""
        return self.lines[0]

    def pair_of(self, line: Line) -> Pair | None:
        """The line against the baseline."""
        return next((p for p in self.pairs if p.b is line), None)


@dataclass(frozen=True)
class Machine:
    """What episodes ran on.

    Attributes:
        environment: as it was stored (versions, device, processor, threads, commit), without the configuration.
        configurations: of the runs there.
        episodes: how many.
    """

    environment: Mapping[str, Any]
    configurations: tuple[Mapping[str, Any], ...]
    episodes: int


@dataclass(frozen=True)
class Report:
    """Everything the files are written from.

    Attributes:
        groups: by task, lockstep before real time.
        machines: what the episodes ran on, most episodes first.
        margin: the difference of success that would not matter, in [0, 1].
        notes: what the reader should know.
    """

    groups: tuple[Group, ...]
    machines: tuple[Machine, ...]
    margin: float
    notes: tuple[str, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(dict.fromkeys(g.task for g in self.groups))

    @property
    def labels(self) -> tuple[str, ...]:
        """Every sampler's label once; a sampler's place here is its colour."""
        return tuple(dict.fromkeys(line.label for g in self.groups for line in g.lines))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: summaries, comparisons and what the episodes ran on."""
        groups = [
            {
                "task": g.task,
                "title": g.title,
                "baseline": g.baseline.label,
                "cells": [
                    {"label": x.label, "id": x.key, "cell": x.cell.to_dict(), "summary": asdict(x.summary)}
                    for x in g.lines
                ],
                "comparisons": [pair_to_dict(p) for p in g.pairs],
            }
            for g in self.groups
        ]
        machines = [asdict(m) for m in self.machines]
        return {"margin": self.margin, "groups": groups, "machines": machines, "notes": list(self.notes)}


def pair_to_dict(p: Pair) -> dict[str, Any]:
    """Plain data for JSON; what is infinite is None."""

    def plain(c: Comparison | None) -> dict[str, Any] | None:
        if c is None:
            return None
        values = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(c).items()}
        return {**values, "verdict": c.verdict}

    cells = {"a": p.a.label, "b": p.b.label, "cell_a": p.a.key, "cell_b": p.b.key}
    return {**cells, "identical": p.identical, "success": plain(p.success), "score": plain(p.score)}


def store_in(path: str | Path) -> Path:
    """The store of a folder: the folder itself, or `store` in an output of dps-eval.

    Raises:
        StoreError: there is none.
    """
    path = Path(path).expanduser()
    for place in (path, path / "store"):
        if (place / "store.json").exists():
            return place
    what = "holds no results of dps-eval" if path.is_dir() else "does not exist"
    raise StoreError(f"{path} {what}: give the output folder of dps-eval, or the `store` in it")


def labels(cells: Mapping[str, Cell]) -> dict[str, str]:
    """A label for each cell of a group: the sampler's name, and what tells namesakes apart."""
    found = {key: cell.sampler for key, cell in cells.items()}

    def twice() -> set[str]:
        counts = Counter(found.values())
        return {key for key in found if counts[found[key]] > 1}

    for more in (lambda key: cells[key].policy, lambda key: str(cells[key].runtime.get("mode")), lambda key: key[:6]):
        again = twice()
        for name in {found[key] for key in again}:
            same = [key for key in again if found[key] == name]
            if len({more(key) for key in same}) > 1:
                found |= {key: f"{name} ({more(key)})" for key in same}
    return found


def pair(a: Line, b: Line, margin: float, alpha: float = 0.05) -> Pair:
    """Compare two cells on the seeds that both have.

    Raises:
        ValueError: there are none.
    """
    shared, i, j = np.intersect1d(a.table.seed, b.table.seed, return_indices=True)
    if not len(shared):
        raise ValueError(
            f"{a.label} ({_seeds(a)}) and {b.label} ({_seeds(b)}) share no seeds: "
            "run dps-eval for both with the same seed and num_episodes"
        )
    success = compare_successes(a.table.success[i], b.table.success[j], margin=margin, alpha=alpha)
    score = None
    x, y = a.table.max_reward[i], b.table.max_reward[j]
    graded = a.summary.score is not None or b.summary.score is not None
    if graded and min(x.min(), y.min()) >= 0 and max(x.max(), y.max()) <= 1:
        score = compare_scores(x, y, margin=margin, alpha=alpha)
    same = a.table.actions_sha[i] == b.table.actions_sha[j]
    return Pair(a, b, success, score, float((same & (a.table.actions_sha[i] != "")).mean()))


def _seeds(line: Line) -> str:
    seeds = line.table.seed
    return f"{len(seeds)} seeds from {seeds[0]} to {seeds[-1]}" if len(seeds) else "no finished episode"


def collect(results: Results, margin: float = 0.05) -> Report:
    """Group the cells of some stores and compare each with its group's baseline.

    The p values are adjusted by Holm's method for the comparisons of a group and quantity.

    Raises:
        StoreError: no finished episode anywhere.
    """
    empty = [c for key, c in results.cells.items() if not len(results.tables[key])]
    full = {key: c for key, c in results.cells.items() if len(results.tables[key])}
    if not full:
        raise StoreError("the store holds no finished episode yet: run dps-eval, or wait for its first one")
    notes = [f"{c.task}, {c.sampler}: no finished episode yet" for c in empty]
    summaries = summarize_all(results)
    by_group: dict[str, dict[str, Cell]] = {}
    for key, cell in full.items():
        by_group.setdefault(json.dumps(group_key(cell)), {})[key] = cell
    titles = _titles({name: next(iter(cells.values())) for name, cells in by_group.items()}, by_group)
    groups = []
    for name, cells in by_group.items():
        named = labels(cells)
        lines = [Line(key, named[key], c, results.tables[key], summaries[key]) for key, c in cells.items()]
        lines.sort(key=lambda x: (-(x.summary.calls_mean or 0), x.label))
        reference = reference_of(results, lines[0].key)
        lines.sort(key=lambda x: x.key != reference)
        pairs = []
        for line in lines[1:]:
            try:
                pairs.append(pair(lines[0], line, margin))
            except ValueError as error:
                notes.append(f"{titles[name]}: {error}")
        notes += _doubts(titles[name], lines)
        groups.append(Group(lines[0].cell.task, titles[name], lines[0].cell.mode, tuple(lines), tuple(pairs)))
    groups.sort(key=lambda g: (g.task, g.mode, g.baseline.cell.control_hz or 0, g.title))
    return Report(_adjusted(groups), _machines(results), margin, tuple(notes))


def _titles(first: Mapping[str, Cell], groups: Mapping[str, Mapping[str, Cell]]) -> dict[str, str]:
    """Task, policy where there are several, and how the world went on."""
    weights: dict[str, set[str]] = {}
    for cell in first.values():
        weights.setdefault(cell.task, set()).add(cell.policy_fingerprint)
    titles = {}
    for name, cell in first.items():
        parts = [cell.task]
        if len(weights[cell.task]) > 1:
            parts.append(f"policy {cell.policy}")
        if cell.mode == "realtime":
            how = "measured latency" if isinstance(cell.latency, str) else f"latency {cell.latency:g} ms"
            parts.append(f"real time at {cell.control_hz:g} Hz, {how}, meanwhile {cell.meanwhile}")
        titles[name] = ", ".join(parts)
    counts = Counter(titles.values())
    return {name: t if counts[t] == 1 else f"{t}, group of {min(groups[name])[:6]}" for name, t in titles.items()}


def _doubts(title: str, lines: Sequence[Line]) -> list[str]:
    """What makes latencies of a group hard to compare."""
    notes = [
        f"{title}, {x.label}: latencies come from {len(machine(x.table))} machines or thread counts"
        for x in lines
        if len(machine(x.table)) > 1
    ]
    if len({machine(x.table) for x in lines}) > 1:
        notes.append(f"{title}: samplers ran on different machines or thread counts; their latencies do not compare")
    busy = {str(c["num_workers"]) for x in lines for e in x.table.environments
            if (c := e.get("config") or {}).get("num_workers", 1) != 1}  # fmt: skip
    if busy:
        notes.append(
            f"{title}: {', '.join(sorted(busy))} workers shared the machine; latencies are not one robot's alone"
        )
    batched = [x.label for x in lines if (x.summary.batch_mean or 1) > 1]
    if batched:
        notes.append(f"{title}: latencies of {', '.join(batched)} are of calls for several environments, not one robot")
    return notes


def _adjusted(groups: Sequence[Group]) -> tuple[Group, ...]:
    p_values: dict[int, float] = {}
    for g in groups:
        for family in ([p.success for p in g.pairs], [p.score for p in g.pairs if p.score is not None]):
            p_values |= dict(zip(map(id, family), holm([c.p_value for c in family]), strict=True))

    def adjust(c: Comparison | None) -> Any:
        return None if c is None else replace(c, p_value=p_values[id(c)], different=p_values[id(c)] < c.alpha)

    return tuple(
        replace(g, pairs=tuple(replace(p, success=adjust(p.success), score=adjust(p.score)) for p in g.pairs))
        for g in groups
    )


def _machines(results: Results) -> tuple[Machine, ...]:
    counts: Counter[str] = Counter()
    configs: dict[str, dict[str, None]] = {}
    for table in results.tables.values():
        for i, environment in enumerate(table.environments):
            text = json.dumps({k: v for k, v in environment.items() if k != "config"}, sort_keys=True)
            counts[text] += int((table.environment == i).sum())
            if environment.get("config"):
                configs.setdefault(text, {})[json.dumps(environment["config"], sort_keys=True)] = None
    return tuple(
        Machine(json.loads(text), tuple(map(json.loads, configs.get(text, {}))), n) for text, n in counts.most_common()
    )
