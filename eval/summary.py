"""From a cell's episodes to its line of the report: success, score, latency, network calls, acceptance, speed-ups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from diffpolicy_spec.eval.cells import Cell
from diffpolicy_spec.eval.episode_table import EpisodeTable, Results
from diffpolicy_spec.eval.intervals import mean_interval, wilson_interval
from diffpolicy_spec.eval.latency import (
    Deadlines,
    Latency,
    RealTime,
    TimeShares,
    deadlines,
    latencies,
    latency,
    real_time,
    shares,
)  # fmt: skip

__all__ = ["AcceptanceByStep", "Mean", "Summary", "group_key", "machine", "reference_of", "summarize", "summarize_all"]

_SAMPLER_FIELDS = (
    "policy", "sampler", "sampler_config", "runtime", "exact", "verifies", "reference", "reference_steps", "timesteps",
)  # fmt: skip


@dataclass(frozen=True)
class Mean:
    """A mean over episodes with its 95 % interval; low and high are None where there is none."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class AcceptanceByStep:
    """Pooled tests by denoising step, in sampling order: timesteps, tested and accepted have K entries each."""

    timesteps: tuple[int, ...]
    tested: tuple[int, ...]
    accepted: tuple[int, ...]


@dataclass(frozen=True)
class Summary:
    """One cell's line of the report; None where a quantity is not defined.

    Attributes:
        episodes, successes: counts.
        success_rate: in [0, 1], with success_low and success_high, its 95 % Wilson interval.
        score: mean of the largest reward of an episode, with Student's interval; None where it only says success.
        metrics: further results by name (Kitchen's p_1 to p_7); Wilson's interval where all values are 0 or 1.
        steps_mean: environment steps of an episode.
        chunks: action chunks measured, warm-up excluded.
        policy_calls: calls that made them; fewer than chunks where environments share one.
        batch_mean: chunks of a call.
        latency: of a policy call, ms. None without chunks, as everything below.
        deadlines: chunks that came too late.
        real_time: what the world did not wait for; None in lockstep.
        shares: mean ms of a call by where it went; None where that is not known.
        calls_mean: sequential network calls of a chunk.
        rows_mean: rows evaluated by the network for a chunk.
        acceptance_rate: tests passed / tests; None where nothing is tested.
        algorithmic_speedup: steps of the full DDPM chain / calls_mean.
        wall_clock_speedup: median latency of the full DDPM chain / median latency; None where that chain was not run on
            the same task, policy and mode, or on another machine.
        overhead: share of the calls' wall-clock spent outside the network.
        rejection_waste: rows evaluated for drafts that were dropped / rows; None where nothing is drafted.
        acceptance: pooled tests by step; None where nothing is tested.
    """

    episodes: int
    successes: int
    success_rate: float | None
    success_low: float
    success_high: float
    score: Mean | None
    metrics: dict[str, Mean]
    steps_mean: float | None
    chunks: int
    policy_calls: int
    batch_mean: float | None
    latency: Latency | None
    deadlines: Deadlines | None
    real_time: RealTime | None
    shares: TimeShares | None
    calls_mean: float | None
    rows_mean: float | None
    acceptance_rate: float | None
    algorithmic_speedup: float | None
    wall_clock_speedup: float | None
    overhead: float | None
    rejection_waste: float | None
    acceptance: AcceptanceByStep | None


def _mean(values: np.ndarray, confidence: float) -> Mean:
    mean = float(values.mean())
    if np.isin(values, (0.0, 1.0)).all():
        return Mean(mean, *wilson_interval(float(values.sum()), len(values), confidence))
    return Mean(mean, *(mean_interval(values, confidence) or (None, None)))


def summarize(
    cell: Cell, table: EpisodeTable, *, reference_latency_ms: float | None = None, confidence: float = 0.95
) -> Summary:
    """Reduce a cell's episodes.

    Args:
        reference_latency_ms: median latency of the sequential reference where the two may be compared, else None.
        confidence: of the intervals.
    """
    n, successes, chunks = len(table), int(table.success.sum()), table.chunks
    low, high = wilson_interval(successes, n, confidence)
    graded = n > 0 and not np.array_equal(table.max_reward, table.success.astype(float))
    seen = {name: values[np.isfinite(values)] for name, values in table.metrics.items()}
    rows, drafted, wasted, accepted, rejected = (
        int(chunks[name].sum()) for name in ("evaluations", "drafted", "wasted", "accepted", "rejected")
    )
    tests = accepted + rejected if cell.verifies else 0
    split, ms = shares(chunks), latencies(chunks)
    found = latency(ms)
    calls_mean = float(chunks["calls"].mean()) if len(chunks) else None
    by_step = AcceptanceByStep(cell.timesteps, tuple(table.tested_at.tolist()), tuple(table.accepted_at.tolist()))
    return Summary(
        episodes=n,
        successes=successes,
        success_rate=successes / n if n else None,
        success_low=low,
        success_high=high,
        score=_mean(table.max_reward, confidence) if graded else None,
        metrics={name: _mean(values, confidence) for name, values in seen.items() if len(values)},
        steps_mean=float(table.steps.mean()) if n else None,
        chunks=len(chunks),
        policy_calls=len(ms),
        batch_mean=len(chunks) / len(ms) if len(ms) else None,
        latency=found,
        deadlines=deadlines(cell, chunks),
        real_time=real_time(cell, chunks),
        shares=split,
        calls_mean=calls_mean,
        rows_mean=rows / len(chunks) if len(chunks) else None,
        acceptance_rate=accepted / tests if tests else None,
        algorithmic_speedup=cell.reference_steps / calls_mean if calls_mean else None,
        wall_clock_speedup=reference_latency_ms / found.p50 if found and reference_latency_ms else None,
        overhead=None if split is None else 1 - split.network / sum(astuple(split)),
        rejection_waste=wasted / rows if drafted and rows else None,
        acceptance=by_step if tests else None,
    )


def group_key(cell: Cell) -> tuple[tuple[str, Any], ...]:
    """What two cells must share to differ in the sampler only: task, weights, actions, mode, rates."""
    return tuple((name, value) for name, value in cell.to_dict().items() if name not in _SAMPLER_FIELDS)


def machine(table: EpisodeTable) -> tuple[str, ...]:
    """What a latency depends on besides the cell: the devices, processors and threads of the episodes, as text."""
    names = ("device", "processor", "num_threads")
    seen = (table.environments[i] for i in np.unique(table.environment))
    return tuple(sorted({", ".join(str(e.get(name)) for name in names) for e in seen}))


def reference_of(results: Results, key: str) -> str | None:
    """The full DDPM chain, step by step, that a cell is compared with: the same task, weights and mode.

    Where it was run in several runtimes, the cell's own, else the one with the most chunks.
    """
    cell = results.cells[key]
    there = [
        (other.runtime == cell.runtime, len(results.tables[k].chunks), k)
        for k, other in results.cells.items()
        if other.reference and group_key(other) == group_key(cell) and len(results.tables[k])
    ]
    return max(there)[2] if there else None


def summarize_all(results: Results, confidence: float = 0.95) -> Mapping[str, Summary]:
    """Summaries by cell id, in the order of the cells. Wall-clock speed-ups need the reference on the same machine."""
    medians = {}
    for key, cell in results.cells.items():
        if cell.reference and len(results.tables[key].chunks):
            medians[key] = float(np.median(latencies(results.tables[key].chunks)))
    found = {}
    for key, cell in results.cells.items():
        table, reference = results.tables[key], reference_of(results, key)
        fair = reference is not None and machine(results.tables[reference]) == machine(table)
        median = medians.get(reference) if reference is not None and fair else None
        found[key] = summarize(cell, table, reference_latency_ms=median, confidence=confidence)
    return found
