"""From records to numbers: success with its interval, latency percentiles, network calls, acceptance, speed-ups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import NormalDist

import numpy as np

from diffpolicy_spec.eval.records import ChunkRecord, EpisodeRecord

__all__ = ["AcceptanceByStep", "Latency", "Summary", "TimeShares", "latencies", "summarize", "wilson_interval"]


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a success rate (Wilson 1927); (0, 1) without trials.

    centre = (p + z^2/2n) / (1 + z^2/n),  half width = z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie between 0 and trials = {trials}, got {successes}")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, shrink = successes / trials, 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / shrink
    # At 0 and n successes the bounds are exactly 0 and 1; rounding must not push them off.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class Latency:
    """Wall-clock of policy calls, ms."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class TimeShares:
    """Mean ms of a policy call, by where it was spent; a sequential sampler's updates are among `other`."""

    network: float
    draft: float
    verify: float
    other: float


@dataclass(frozen=True)
class AcceptanceByStep:
    """Pooled tests by denoising step, in sampling order: timesteps, tested and accepted have K entries each."""

    timesteps: tuple[int, ...]
    tested: tuple[int, ...]
    accepted: tuple[int, ...]


@dataclass(frozen=True)
class Summary:
    """One sampler's line of the report; None where a quantity is not defined.

    Attributes:
        episodes, successes: counts.
        success_rate: in [0, 1], with success_low and success_high, its 95 % Wilson interval.
        steps_mean: environment steps of an episode.
        chunks: action chunks measured, warm-up excluded.
        latency: of a policy call, ms. None without chunks, as everything below.
        shares: mean ms of a call by where it went; None where that is not known.
        calls_mean: sequential network calls of a chunk.
        rows_mean: rows evaluated by the network for a chunk.
        acceptance_rate: tests passed / tests; None where nothing is tested.
        algorithmic_speedup: steps of the full DDPM chain / calls_mean.
        wall_clock_speedup: median latency of the full DDPM chain in the same run / median latency.
        overhead: share of the calls' wall-clock spent outside the network.
        rejection_waste: rows evaluated for drafts that were dropped / rows; None where nothing is drafted.
        acceptance: pooled tests by step; None where nothing is tested.
    """

    episodes: int
    successes: int
    success_rate: float | None
    success_low: float
    success_high: float
    steps_mean: float | None
    chunks: int
    latency: Latency | None
    shares: TimeShares | None
    calls_mean: float | None
    rows_mean: float | None
    acceptance_rate: float | None
    algorithmic_speedup: float | None
    wall_clock_speedup: float | None
    overhead: float | None
    rejection_waste: float | None
    acceptance: AcceptanceByStep | None


def latencies(chunks: Sequence[ChunkRecord]) -> np.ndarray:
    """(C,) ms, one entry per policy call: chunks made by one batched call count once."""
    return np.array(list({c.call: c.latency_ms for c in chunks}.values()))


def _latency(chunks: Sequence[ChunkRecord]) -> Latency:
    ms = latencies(chunks)
    p50, p95, p99 = (float(q) for q in np.percentile(ms, [50, 95, 99]))
    return Latency(mean=float(ms.mean()), p50=p50, p95=p95, p99=p99, max=float(ms.max()))


def _shares(chunks: Sequence[ChunkRecord]) -> TimeShares | None:
    """None where rounds are captured graphs: what happens inside one is not timed."""
    calls = {c.call: (c.network_ms, c.draft_ms, c.verify_ms, c.other_ms) for c in chunks}
    means = [float(v) for v in np.mean(list(calls.values()), axis=0)]
    return TimeShares(*means) if np.isfinite(means).all() else None


def summarize(
    episodes: Sequence[EpisodeRecord],
    chunks: Sequence[ChunkRecord],
    timesteps: Sequence[int],
    *,
    reference_steps: int,
    verifies: bool = True,
    reference_latency_ms: float | None = None,
) -> Summary:
    """Reduce one sampler's records.

    Args:
        timesteps: (K,) training timestep of each denoising step.
        reference_steps: calls of the sequential reference, the full DDPM chain (100 for DDPM-100).
        verifies: whether the sampler tests its drafts; an approximate one (ParaDiGMS) keeps them to a tolerance.
        reference_latency_ms: that reference's median latency in the same run; None where it was not run.
    """
    successes = sum(e.success for e in episodes)
    low, high = wilson_interval(successes, len(episodes))
    if chunks:
        latency, shares = _latency(chunks), _shares(chunks)
        overhead = None if shares is None else 1 - shares.network / sum(astuple(shares))
        calls_mean = float(np.mean([c.calls for c in chunks]))
        rows = sum(c.evaluations for c in chunks)
        drafted = sum(c.drafted for c in chunks)
        tests = sum(c.accepted + c.rejected for c in chunks) if verifies else 0
        passed = sum(c.accepted for c in chunks)
        tested = np.sum([c.tested_at for c in chunks], axis=0)
        accepted = np.sum([c.accepted_at for c in chunks], axis=0)
    else:
        latency, shares, overhead, calls_mean = None, None, None, None
        rows, drafted, tests, passed, tested, accepted = 0, 0, 0, 0, np.zeros(0, int), np.zeros(0, int)
    by_step = AcceptanceByStep(tuple(timesteps), tuple(tested.tolist()), tuple(accepted.tolist()))
    return Summary(
        episodes=len(episodes),
        successes=successes,
        success_rate=successes / len(episodes) if episodes else None,
        success_low=low,
        success_high=high,
        steps_mean=float(np.mean([e.steps for e in episodes])) if episodes else None,
        chunks=len(chunks),
        latency=latency,
        shares=shares,
        calls_mean=calls_mean,
        rows_mean=rows / len(chunks) if chunks else None,
        acceptance_rate=passed / tests if tests else None,
        algorithmic_speedup=reference_steps / calls_mean if calls_mean else None,
        wall_clock_speedup=reference_latency_ms / latency.p50 if latency and reference_latency_ms else None,
        overhead=overhead,
        rejection_waste=sum(c.wasted for c in chunks) / rows if drafted and rows else None,
        acceptance=by_step if tests else None,
    )
