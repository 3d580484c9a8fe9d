"""How long policy calls take, how evenly, and whether chunks came in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffpolicy_spec.eval.cells import Cell
from diffpolicy_spec.eval.episode_table import ChunkTable

__all__ = ["Deadlines", "Latency", "RealTime", "TimeShares", "deadlines", "latencies", "latency", "real_time", "shares"]


@dataclass(frozen=True)
class Latency:
    """Wall-clock of policy calls, ms; a batched call counts once, warm-up calls are not among them.

    Attributes:
        mean, p50, p90, p95, p99, max: of the calls; percentiles interpolate linearly between order statistics.
        deviation: jitter, the standard deviation of the calls.
        spread: jitter of the tail, p99 - p50.
    """

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    deviation: float
    spread: float


@dataclass(frozen=True)
class Deadlines:
    """Chunks that came too late.

    Attributes:
        limit_ms: what a call may take: the time of the actions of one chunk, n_action_steps / control_hz.
        control_hz: actions a second; in lockstep the task's own rate.
        missed: share of the calls. In lockstep those longer than limit_ms, which a robot would have waited for; in real
            time the chunks that did come after the actions before them were used up.
        over_period: share of the calls longer than one control period, 1 / control_hz: at least one action is stale.
    """

    limit_ms: float
    control_hz: float
    missed: float
    over_period: float


@dataclass(frozen=True)
class RealTime:
    """What the world did not wait for; means of a chunk.

    Attributes:
        waited: control steps that passed during the call.
        stale: actions of the chunk that were dropped, because their time had passed.
        held: control steps in which the robot had no action left.
    """

    waited: float
    stale: float
    held: float


@dataclass(frozen=True)
class TimeShares:
    """Mean ms of a policy call, by where it was spent; a sequential sampler's updates are among `other`."""

    network: float
    draft: float
    verify: float
    other: float


def latencies(chunks: ChunkTable) -> np.ndarray:
    """(C,) ms, one entry per policy call: chunks made by one batched call count once."""
    return chunks["latency_ms"][chunks.first_of_call()]


def latency(ms: np.ndarray) -> Latency | None:
    """Percentiles and jitter of (C,) calls; None without any."""
    if not len(ms):
        return None
    p50, p90, p95, p99 = (float(q) for q in np.percentile(ms, [50, 90, 95, 99]))
    return Latency(float(ms.mean()), p50, p90, p95, p99, float(ms.max()), float(ms.std()), p99 - p50)


def shares(chunks: ChunkTable) -> TimeShares | None:
    """None without calls, and where rounds are captured graphs: what happens inside one is not timed."""
    rows = chunks.first_of_call()
    if not len(rows):
        return None
    means = [float(chunks[f"{part}_ms"][rows].mean()) for part in ("network", "draft", "verify", "other")]
    return TimeShares(*means) if np.isfinite(means).all() else None


def deadlines(cell: Cell, chunks: ChunkTable) -> Deadlines | None:
    """Chunks that came too late, at the cell's control rate; None without calls."""
    if not len(chunks):
        return None
    hz = float(cell.control_hz or cell.control_freq)
    limit, ms = 1000 * cell.n_action_steps / hz, latencies(chunks)
    real = cell.mode == "realtime"
    missed = float(chunks.deadline_missed.mean()) if real else float((ms > limit).mean())
    if real and not isinstance(cell.latency, str) and cell.latency is not None:
        over = float(cell.latency > 1000 / hz)
    else:
        over = float((ms > 1000 / hz).mean())
    return Deadlines(limit, hz, missed, over)


def real_time(cell: Cell, chunks: ChunkTable) -> RealTime | None:
    """None in lockstep, and without chunks."""
    if cell.mode != "realtime" or not len(chunks):
        return None
    return RealTime(*(float(chunks[name].mean()) for name in ("waited", "stale", "held")))
