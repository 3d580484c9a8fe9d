"""Deadlines of a chunk: how well they are kept, and how far a chunk that is finished early is from the exact one.

    python benchmarks/deadlines.py               # the shipped Lift policy on one CPU core

Kept: chunks one by one, each with a deadline so many ms after it is begun. Late are those that came after it, by how
much; inexact those that were finished by DDIM steps, and from which of the K steps on.

Distance: chunks that are exact up to step k of the chain and then finished by n network calls, against exact chunks
under the same observation: the energy distance of the two laws (Szekely and Rizzo 2013), 2 E|X - Y| - E|X - X'| -
E|Y - Y'|, divided by E|Y - Y'|, the mean distance of two exact chunks. 0 is the exact law; what is seen of two samples
of the exact law stands beside it.

Needs torch and this repository; writes benchmarks/results/deadlines.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffpolicy_spec import Deadline, Denoise, Noise, SamplerConfig, draw_noise, load_policy
from diffpolicy_spec.eval.results import environment
from diffpolicy_spec.policies import DiffusionPolicy
from diffpolicy_spec.policies.warm_up import warm_up

RESULTS = Path(__file__).parent / "results"
OBSERVATIONS = Path(__file__).parent / "lift_observations.safetensors"
SAMPLERS = {"speculative": SamplerConfig(), "DDPM": SamplerConfig("ddpm")}
DEADLINES_MS = (15, 25, 40, 60, 80, 100, 150, 250, 500)
STEPS_OF_CHAIN, FINISH_STEPS = (0, 10, 25, 50, 75, 90), (1, 2, 4, 8)


def kept(policy: DiffusionPolicy, config: SamplerConfig, conditions: Tensor, ms: float, steps: int) -> dict[str, Any]:
    """A chunk for each of the conditions, with a deadline `ms` after it is begun."""
    sampler, runner = policy.bind(config), policy.runner()
    over, finished_at = [], []
    for number, condition in enumerate(conditions):
        begin = time.monotonic()
        noise = noise_of(policy, sampler, 1, number)
        sample = runner.sample(sampler, condition[None], noise, deadline=Deadline(begin + 1e-3 * ms, steps))
        over.append(1e3 * (time.monotonic() - begin) - ms)
        finished_at.append(int(sample.stats.finished_at))
    early = [k for k in finished_at if k < sampler.schedule.num_steps]
    return {
        "deadline_ms": ms, "late": float(np.mean(np.array(over) > 0)), "over_ms_p99": float(np.quantile(over, 0.99)),
        "inexact": len(early) / len(over), "finished_at_p50": float(np.median(early)) if early else None,
    }  # fmt: skip


def distances(policy: DiffusionPolicy, conditions: Tensor, draws: int) -> list[dict[str, Any]]:
    """Of chunks finished from each of STEPS_OF_CHAIN on by each of FINISH_STEPS calls, so many for each condition."""
    sampler, n = policy.bind(SamplerConfig("ddpm")), len(conditions) * draws
    network = Counted(policy.denoiser(conditions.repeat_interleave(draws, dim=0)))
    noise = noise_of(policy, sampler, n, 0)
    exact, again = (sampler(network, noise_of(policy, sampler, n, seed)).x0 for seed in (1, 2))
    rows = [{"step": sampler.schedule.num_steps, "calls": 0, "distance": energy_distance(again, exact, draws)}]
    for k in STEPS_OF_CHAIN:
        for steps in FINISH_STEPS:
            network.begin(k)
            sample = sampler(network, noise, deadline=Deadline(1.0, steps, network.clock))
            assert sample.stats.finished_at.tolist() == [k] * n
            rows.append({"step": k, "calls": steps, "distance": energy_distance(sample.x0, exact, draws)})
    return rows


class Counted:
    """A network and a clock that strikes when it has been called so many times: chains stand at that step then."""

    def __init__(self, network: Denoise) -> None:
        self._network = network
        self.begin(0)

    def begin(self, strike: int) -> None:
        """Count anew."""
        self._calls, self._strike = 0, strike

    def __call__(self, x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
        """As the network's."""
        self._calls += 1
        return self._network(x, t, chain)

    def clock(self) -> float:
        """Whether it strikes."""
        return math.inf if self._calls >= self._strike else 0.0


def energy_distance(x: Tensor, y: Tensor, draws: int) -> float:
    """Of x to y, (conditions * draws, Tp, Da) each, relative to the spread of y; mean over the conditions."""
    x, y = (z.reshape(-1, draws, z[0].numel()) for z in (x, y))
    pairs = len(x) * draws * (draws - 1)
    between, (within_x, within_y) = torch.cdist(x, y).mean(), (torch.cdist(z, z).sum() / pairs for z in (x, y))
    return float((2 * between - within_x - within_y) / within_y)


def noise_of(policy: DiffusionPolicy, sampler: Any, chains: int, seed: int) -> Noise:
    """All noise of so many chains."""
    shape = (chains, policy.config.horizon, policy.config.plan_dim)
    return draw_noise(shape, sampler.schedule, torch.Generator().manual_seed(seed))


def tables(report: dict[str, Any]) -> str:
    """What is printed."""
    out = ["| sampler | deadline ms | late | over by ms, p99 | inexact | finished from step, median |",
           "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for name, rows in report["kept"].items():
        for r in rows:
            at = "-" if r["finished_at_p50"] is None else f"{r['finished_at_p50']:.0f}"
            over = max(r["over_ms_p99"], 0.0)
            out.append(f"| {name} | {r['deadline_ms']} | {100 * r['late']:.1f} % | {over:.1f} | "
                       f"{100 * r['inexact']:.0f} % | {at} |")  # fmt: skip
    out += ["", "| finished from step | " + " | ".join(f"{n} calls" for n in FINISH_STEPS) + " |",
            "| --- |" + " --- |" * len(FINISH_STEPS)]  # fmt: skip
    for k in STEPS_OF_CHAIN:
        row = [f"{r['distance']:.3f}" for r in report["distances"] if r["step"] == k]
        out.append(f"| {k} | " + " | ".join(row) + " |")
    out += ["", f"Two samples of the exact law: {report['distances'][0]['distance']:.3f}."]
    return "\n".join(out) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=200, help="chunks for each deadline")
    parser.add_argument("--observations", type=int, default=16, help="for the distances")
    parser.add_argument("--draws", type=int, default=32, help="for each of them")
    parser.add_argument("--finish-steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "deadlines")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    policy = load_policy("lift")
    (conditions,) = load_file(OBSERVATIONS).values()
    of_chunks = conditions[torch.arange(args.chunks) % len(conditions)]
    report: dict[str, Any] = {"environment": environment(policy.device, args.threads), "kept": {}}
    for name, config in SAMPLERS.items():
        warm_up(policy, policy.bind(config), 4, finish_steps=args.finish_steps)
        report["kept"][name] = [kept(policy, config, of_chunks, ms, args.finish_steps) for ms in DEADLINES_MS]
    report["distances"] = distances(policy, conditions[: args.observations], args.draws)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    args.output.with_suffix(".md").write_text(tables(report))
    print(tables(report))


if __name__ == "__main__":
    main()
