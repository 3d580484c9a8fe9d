"""What every sampler costs in closed loop on the shipped Lift policy.

    python benchmarks/closed_loop.py            # all drafters at windows 8, 16, 32, 100, and the sequential samplers

Each sampler runs its own rollouts of the same episode seeds (real MuJoCo, warm starts from its own plans, one robot).
Prints medians and means over all chunks and writes benchmarks/results/closed_loop.{json,md}. Wall-clock figures compare
within one run on one machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers_loop import DiffusersLoop

from diffpolicy_spec import SamplerConfig, load_policy
from diffpolicy_spec.envs import make_env
from diffpolicy_spec.eval.results import environment
from diffpolicy_spec.eval.rollout import run_episodes, warm_up
from diffpolicy_spec.eval.subscribers import Recorder
from diffpolicy_spec.eval.worlds import LocalWorld

RESULTS = Path(__file__).parent / "results"

SECANT: dict[str, Any] = {"drafter": "picard", "memory": 3, "gain": False, "corrector": False}
GAIN: dict[str, Any] = {"drafter": "picard", "memory": 1, "gain": True, "corrector": False}
CORRECTOR: dict[str, Any] = {"drafter": "picard", "memory": 1, "gain": False, "corrector": True}

DRAFTERS: dict[str, dict[str, Any]] = {
    "ASD, two-call (published)": {"drafter": "parent", "warm_start": False},
    "draft model (published)": {"drafter": "model", "warm_start": False},
    "nearest (fused)": {"drafter": "nearest", "warm_start": False},
    "nearest (fused), block": {"drafter": "nearest", "verifier": "block", "warm_start": False},
    "picard": {**SECANT, "memory": 0, "warm_start": False},
    "picard + secant": {**SECANT, "warm_start": False},
    "picard + secant + warm start": {**SECANT, "warm_start": True},
    "picard + secant + gain": {**GAIN, "warm_start": False},
    "picard + secant + gain + warm start": {**GAIN, "warm_start": True},
    "picard + corrector": {**CORRECTOR, "warm_start": False},
    "picard + corrector + warm start (ours)": {**CORRECTOR, "warm_start": True},
}


def samplers(policy: Any, windows: list[int]) -> Iterator[tuple[str, int | None, Any]]:
    """(name, window, sampler) of everything that is compared."""
    yield "DDPM-100, diffusers' loop", None, DiffusersLoop(policy.scheduler_config)
    yield "DDPM-100", None, policy.bind(SamplerConfig("ddpm"))
    yield "DDIM-10 (inexact)", None, policy.bind(SamplerConfig("ddim", num_inference_steps=10))
    for window in windows:
        options = {"window": window}
        yield "ParaDiGMS (inexact)", window, policy.bind(SamplerConfig("paradigms", options=options))
        for name, drafting in DRAFTERS.items():
            yield name, window, policy.bind(SamplerConfig("speculative", options=options | drafting))


def measure(policy: Any, env: Any, sampler: Any, seeds: list[int]) -> dict[str, Any]:
    """Closed-loop rollouts with one sampler."""
    world, recorder = LocalWorld([env]), Recorder()
    warm_up(policy, sampler, world, seeds[0], calls=2)
    run_episodes(policy, sampler, world, seeds, subscribers=[recorder])
    chunks = recorder.chunks

    def column(name: str) -> list[float]:
        return [float(getattr(chunk, name)) for chunk in chunks]

    calls = column("calls")
    rounds = [c.sampler_ms - c.network_ms for c in chunks]
    return {
        "chunks": len(chunks),
        "successes": sum(e.success for e in recorder.episodes),
        "episodes": len(recorder.episodes),
        "calls_mean": statistics.fmean(calls),
        "calls_standard_error": statistics.stdev(calls) / len(calls) ** 0.5,
        "calls_median": statistics.median(calls),
        "rows_mean": statistics.fmean(column("evaluations")),
        "rejections_mean": statistics.fmean(column("rejected")),
        "latency_ms_median": statistics.median(column("latency_ms")),
        "network_ms_median": statistics.median(column("network_ms")),
        "overhead_ms_per_call_median": statistics.median(r / c for r, c in zip(rounds, calls, strict=True)),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; speed-ups against DDPM-100 with the same tables and network."""
    base = next(r for r in rows if r["sampler"] == "DDPM-100")
    out = ["| sampler | window | calls (mean) | median | rows | rejected | latency ms (median) | speed-up | success |",
           "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for r in rows:
        out.append(
            f"| {r['sampler']} | {r['window'] or '-'} | {r['calls_mean']:.1f} ± {r['calls_standard_error']:.1f} | "
            f"{r['calls_median']:.0f} | {r['rows_mean']:.0f} | {r['rejections_mean']:.1f} | "
            f"{r['latency_ms_median']:.0f} | {base['latency_ms_median'] / r['latency_ms_median']:.1f}x | "
            f"{r['successes']}/{r['episodes']} |"
        )
    return "\n".join(out) + "\n"


def main() -> None:
    """Run all samplers, print as they finish, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="lift")
    parser.add_argument("--windows", type=int, nargs="+", default=[8, 16, 32, 100])
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "closed_loop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    policy = load_policy(args.policy)
    env = make_env(policy.config.task, action_repr=policy.config.action_repr)
    seeds = [200_000 + i for i in range(args.episodes)]
    rows = []
    for name, window, sampler in samplers(policy, args.windows):
        row = {"sampler": name, "window": window, **measure(policy, env, sampler, seeds)}
        rows.append(row)
        print(f"{name:45s} window {window or '-':>4}  calls {row['calls_mean']:6.1f}  rows {row['rows_mean']:5.0f}  "
              f"latency {row['latency_ms_median']:6.1f} ms", flush=True)  # fmt: skip
    text = table(rows)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    described = {"environment": environment(policy.device, args.threads), "seeds": seeds, "rows": rows}
    args.output.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
    args.output.with_suffix(".md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
