"""A made-up results store of any size, for benchmarks/report.py and the report's tests. Nothing in it was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from diffpolicy_spec.eval.cells import Cell
from diffpolicy_spec.eval.store import INTEGERS, TIMES, Store, schema

STEPS = 100
ENVIRONMENT: dict[str, Any] = {
    "versions": {"python": "3.11", "diffpolicy-spec": "made up", "torch": "made up"},
    "device": "made up",
    "processor": "made up",
    "cores": 2,
    "num_threads": 1,
    "commit": "0" * 40,
    "config": {"policy": "lift", "num_episodes": 500, "task": {"name": "lift", "horizon": 400}},
}


@dataclass(frozen=True)
class Sampler:
    """The law that a sampler's made-up chunks follow.

    Attributes:
        name: of the sampler.
        exact, drafts: what it is.
        calls: sequential calls of a chunk, mean.
        rows: rows of a call.
        ms: of a call, and of the rest of a chunk.
        success: rate of success.
    """

    name: str
    exact: bool
    drafts: bool
    calls: float
    rows: int
    ms: tuple[float, float]
    success: float


SAMPLERS = (
    Sampler("ddpm100", True, False, 100.0, 1, (3.0, 20.0), 0.93),
    Sampler("ddim10", False, False, 10.0, 1, (3.0, 4.0), 0.86),
    Sampler("asd", True, True, 19.0, 13, (6.0, 18.0), 0.93),
    Sampler("speculative", True, True, 6.8, 24, (8.5, 26.0), 0.93),
)


def _cells(task: str, hz: Sequence[float], samplers: Sequence[Sampler], lockstep: bool) -> list[tuple[Cell, Sampler]]:
    found = []
    for rate in (*([None] if lockstep else []), *hz):
        for s in samplers:
            few = s.name == "ddim10"
            steps = 10 if few else STEPS
            real = {} if rate is None else {
                "mode": "realtime", "control_hz": rate, "latency": "measured", "meanwhile": "continue",
            }  # fmt: skip
            found.append((
                Cell(
                    task=task, policy=task, policy_fingerprint="0123456789abcdef", sampler=s.name,
                    sampler_config={"method": "speculative" if s.drafts else "ddim" if few else "ddpm", "options": {}},
                    runtime={"mode": "eager"}, exact=s.exact, verifies=s.drafts, reference=s.name == "ddpm100",
                    reference_steps=STEPS, timesteps=tuple(range(0, STEPS, STEPS // steps))[::-1],
                    action_repr="absolute_rot6d", n_action_steps=8, control_freq=20.0, max_steps=400, **real,
                ), s,
            ))  # fmt: skip
    return found


def make_store(
    path: Path, task: str, episodes: int, *, chunks: int = 30, hz: Sequence[float] = (), seed: int = 0,
    samplers: Sequence[Sampler] = SAMPLERS, graded: bool = False, metrics: bool = False,
    environment: dict[str, Any] | None = None, part: int = 1000, first: int = 100000,
    lockstep: bool = True,
) -> int:  # fmt: skip
    """Add `episodes` of every sampler, in lockstep (unless told not to) and at each control rate; returns how many.

    Args:
        chunks: of an episode, about.
        graded: whether max_reward is a score in [0, 1] rather than success.
        metrics: whether episodes have p_1 and p_2.
        part: episodes of a file.
        first: seed.
        lockstep: whether there are cells in which the world waits.
    """
    store, rng, total = Store.open(path), np.random.default_rng(seed), 0
    text = json.dumps(environment or ENVIRONMENT, sort_keys=True)
    ease = rng.random(episodes)  # of each seed, the same for every sampler
    for cell, sampler in _cells(task, hz, samplers, lockstep):
        store.declare(cell)
        for begin in range(0, episodes, part):
            seeds = np.arange(begin, min(begin + part, episodes))
            columns = _episodes(cell, sampler, ease[seeds], chunks, rng, graded)
            columns |= {"cell": [cell.id] * len(seeds), "seed": first + seeds, "environment": [text] * len(seeds)}
            p = [json.dumps({"p_1": float(s), "p_2": float(s and e > 0.5)}) if metrics else ""
                 for s, e in zip(columns["success"], ease[seeds], strict=True)]  # fmt: skip
            columns["metrics"] = p
            arrays = [pa.array(columns[f.name]).cast(f.type) for f in schema()]
            table = pa.table(arrays, schema=schema())
            parquet.write_table(table, path / "parts" / f"1-{cell.id}{first + begin:08d}.parquet", compression="zstd")
            total += len(seeds)
    return total


def _episodes(
    cell: Cell, s: Sampler, ease: np.ndarray, chunks: int, rng: np.random.Generator, graded: bool
) -> dict[str, Any]:
    n, steps = len(ease), len(cell.timesteps)
    counts = np.maximum(1, rng.poisson(chunks, n))
    offsets, c = np.r_[0, np.cumsum(counts)], int(counts.sum())
    calls = np.maximum(2, rng.poisson(s.calls, c)) if s.drafts else np.full(c, steps)
    network = calls * s.ms[0] * rng.lognormal(0, 0.06, c)
    other = s.ms[1] * rng.lognormal(0, 0.2, c) + rng.exponential(2.0, c)
    draft, verify = (0.25 * other, 0.2 * other) if s.drafts else (np.zeros(c), np.zeros(c))
    rest = other - draft - verify
    latency = network + draft + verify + rest
    rejected = np.where(s.drafts, calls - 1, 0)
    accepted = steps - calls if s.drafts else np.zeros(c, int)
    rows = calls * s.rows
    period = 1000 / (cell.control_hz or cell.control_freq)
    waited = np.ceil(latency / period).astype(int) if cell.mode == "realtime" else np.zeros(c, int)
    stale = np.minimum(waited, 8)
    held = np.maximum(0, waited - 8)
    late = float(np.mean(waited > 8)) + 0.02 * float(np.mean(stale)) if cell.mode == "realtime" else 0.0
    success = (0.8 * ease + 0.2 * rng.random(n)) > 1 - max(0.02, s.success - late)
    t = np.array(cell.timesteps) / STEPS
    tested = np.maximum(counts[:, None] * (0.9 if s.drafts else 0) * np.ones(steps), 0).astype(int)
    rate = (0.97 - 0.3 * np.exp(-((t - 0.08) ** 2) / 0.004)) if s.drafts else np.zeros(steps)
    score = np.clip(0.6 + 0.5 * ease + 0.05 * rng.standard_normal(n), 0, 1) * np.where(success, 1.0, 0.6)
    integers = {
        "batch": np.ones(c, int), "calls": calls, "evaluations": rows, "drafted": np.where(s.drafts, rows - calls, 0),
        "accepted": accepted, "rejected": rejected,
        "wasted": np.where(s.drafts, np.maximum(rows - calls - accepted, 0), 0),
        "waited": waited, "stale": stale, "held": held,
    }  # fmt: skip
    times = {"latency_ms": latency, "network_ms": network, "draft_ms": draft, "verify_ms": verify, "other_ms": rest,
             "sampler_ms": latency - 0.5 * rest}  # fmt: skip
    flat = {**{k: integers[k] for k in INTEGERS}, **{k: times[k] for k in TIMES}, "deadline_missed": waited > 8,
            "call": rng.integers(0, 2**62, c)}  # fmt: skip

    def lists(values: np.ndarray, at: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(at, pa.int32()), pa.array(values))

    by_step = np.arange(n + 1) * steps
    return {
        "success": success,
        "max_reward": score if graded else success.astype(float),
        "steps": np.where(success, np.minimum(8 * counts, 400), 400),
        "chunks": counts,
        "actions_sha": [f"{v:016x}" for v in rng.integers(0, 2**62, n)],
        "wall_s": latency.sum() / n / 1000 * np.ones(n),
        "tested_at": lists(tested.reshape(-1), by_step),
        "accepted_at": lists(rng.binomial(tested, rate).reshape(-1), by_step),
        **{name: lists(values, offsets) for name, values in flat.items()},
    }
