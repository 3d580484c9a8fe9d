"""Counts, times and distances of systems on one problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from systems_law import LEVEL, SequentialLaw
from systems_list import System
from systems_problems import Problem
from torch import Tensor

from diffpolicy_spec import BoundSampler, Sample, SamplerConfig, draw_noise

__all__ = ["Plan", "law_of", "measure"]

TIMED_SEED, BATCH_SEED, LAW_SEED = 1_000, 10_000, 5_000_000  # BATCH_SEED: times 1, 2, ... for each system


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        per_observation: n, chains of a system under each observation.
        timed: how many of all its chains are sampled one by one, for the clock; the others in batches.
        at_once: chains of a batch.
        warm_up: chunks of a system before the clock counts.
        moments, reference: sequential chunks of an observation, see `SequentialLaw`.
    """

    per_observation: int
    timed: int
    at_once: int
    warm_up: int
    moments: int
    reference: int


def draw(problem: Problem, sampler: BoundSampler, chains: range, seed: int) -> Sample:
    """Chunks of these chains; chain j is under observation j mod O."""
    denoise, draft = problem.networks(torch.tensor(chains, device=problem.device) % problem.observations)
    # On the device: what block verification and trees draw on their way must not wait for the host.
    generator = torch.Generator(problem.device).manual_seed(seed)
    noise = draw_noise((len(chains), *problem.chunk), sampler.schedule, generator, problem.device)
    return sampler(denoise, noise, generator=generator, draft=draft)


def blocks(first: int, chains: int, at_once: int) -> list[range]:
    """Chains first ... chains - 1, `at_once` together."""
    return [range(i, min(i + at_once, chains)) for i in range(first, chains, at_once)]


def law_of(problem: Problem, plan: Plan) -> SequentialLaw:
    """The sequential law, from chunks of its own seeds."""
    sampler, each = problem.bind(SamplerConfig("ddpm")), plan.moments + plan.reference + plan.per_observation
    parts = [
        draw(problem, sampler, block, LAW_SEED + block.start).x0.flatten(1)
        for block in blocks(0, each * problem.observations, plan.at_once)
    ]
    return SequentialLaw(
        torch.cat(parts).view(each, problem.observations, -1).transpose(0, 1), plan.moments, plan.reference
    )


def measure(problem: Problem, systems: list[System], law: SequentialLaw, plan: Plan) -> list[dict[str, Any]]:
    """A row for every system."""
    chains = plan.per_observation * problem.observations
    drawn: list[list[Sample]] = [[] for _ in systems]
    samplers = [problem.bind(system.config) for system in systems]
    for sampler in samplers:
        for seed in range(plan.warm_up):
            draw(problem, sampler, range(1), seed)
    # Side by side: one chunk of every system, then the next, so that a slow minute of the machine is everybody's.
    # The same noise for all of them; the batches have noise of their own, so that laws are tested independently.
    for chain in range(plan.timed):
        for sampler, samples in zip(samplers, drawn, strict=True):
            samples.append(draw(problem, sampler, range(chain, chain + 1), TIMED_SEED + chain))
        print(f"{problem.title}: chunk {chain + 1} of {plan.timed} timed", flush=True)
    rows = []
    for i, (system, sampler, timed) in enumerate(zip(systems, samplers, drawn, strict=True), start=1):
        rest = [draw(problem, sampler, block, i * BATCH_SEED + block.start)
                for block in blocks(plan.timed, chains, plan.at_once)]  # fmt: skip
        row = described(system) | counts(timed + rest, system) | times(timed)
        x = torch.cat([sample.x0.flatten(1) for sample in timed + rest])
        row["distance"], row["p"] = law.distance(x)
        row["told_apart"] = row["p"] <= LEVEL
        rows.append(row)
        print(f"{system.label:50s} {row['calls_mean']:6.1f} calls  {row['rows_mean']:6.0f} rows  "
              f"{row['ms_median']:7.1f} ms  distance {row['distance']:.2e}", flush=True)  # fmt: skip
    return rows


def described(system: System) -> dict[str, Any]:
    """Which system a row is about."""
    return {
        "system": system.name, "window": system.window, "family": system.family, "exact": system.exact,
        "method": system.config.method, "steps": system.config.num_inference_steps, "eta": system.config.eta,
        "options": dict(system.config.options),
    }  # fmt: skip


def counts(samples: list[Sample], system: System) -> dict[str, Any]:
    """Means over chains; None where a system has no such thing."""

    def column(name: str) -> Tensor:
        return torch.cat([getattr(sample.stats, name) for sample in samples]).double().cpu()

    calls, rows = column("calls"), column("evaluations")
    tests = column("accepted") + column("rejected")
    speculative = system.config.method in ("speculative", "tree")
    drafts = speculative or system.config.method == "paradigms"
    return {
        "chains": len(calls), "calls_mean": float(calls.mean()), "calls_median": float(calls.median()),
        "calls_standard_error": float(calls.std() / len(calls) ** 0.5) if len(calls) > 1 else None,
        "rows_mean": float(rows.mean()), "draft_calls_mean": float(column("draft_calls").mean()),
        "accepted": float(column("accepted").sum() / tests.sum()) if speculative else None,
        "rejections_mean": float(column("rejected").mean()) if speculative else None,
        "rejection_waste": float(column("wasted").sum() / rows.sum()) if drafts else None,
    }  # fmt: skip


def times(samples: list[Sample]) -> dict[str, Any]:
    """Median ms of a chunk of one chain, and the mean ms of its parts."""
    clocks = [sample.stats.time for sample in samples]

    def ms(name: str) -> Tensor:
        return 1e3 * torch.tensor([getattr(clock, name) for clock in clocks], dtype=torch.float64)

    total = ms("total")
    calls = sum(int(sample.stats.calls) for sample in samples) / len(samples)
    parts = {f"{name}_ms": float(ms(name).mean()) for name in ("network", "draft", "verify", "other")}
    return {
        "timed": len(clocks), "timed_calls_mean": calls, "ms_median": float(total.median()),
        "ms_mean": float(total.mean()), **parts,
        "overhead": float(1 - ms("network").sum() / total.sum()),
    }  # fmt: skip
