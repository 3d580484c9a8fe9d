"""What speculation itself costs: milliseconds a round beside the network, and bytes beside the weights.

    python benchmarks/overhead.py               # B = 1, chunks of 16 x 10, K = 100, the shipped Lift policy

The overhead of a round is (total - network) / calls: window, draft (with the draft network), verification, correction,
memory, bookkeeping. The
memory is what the sampler's own tensors hold at their peak: tables, noise, rings of evaluations, gains, one round's
rows. Needs torch, numpy and this repository; writes benchmarks/results/overhead.{json,md}.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec import Noise, SamplerConfig, bind, draw_noise, load_policy
from diffpolicy_spec.eval.results import environment

RESULTS = Path(__file__).parent / "results"

SPECULATIVE: dict[str, dict[str, Any]] = {
    "ASD, two-call": {"drafter": "parent"},
    "nearest": {"drafter": "nearest"},
    "nearest, block": {"drafter": "nearest", "verifier": "block"},
    "picard": {"drafter": "picard", "memory": 0, "gain": False, "corrector": False},
    "picard + secant": {"drafter": "picard", "memory": 3, "gain": False, "corrector": False},
    "picard + gain": {"drafter": "picard", "memory": 0, "gain": True, "corrector": False},
    "picard + secant + gain": {"drafter": "picard", "memory": 1, "gain": True, "corrector": False},
    "picard + corrector (ours)": {"drafter": "picard", "memory": 1, "gain": False, "corrector": True},
}


def overhead_ms(sampler: Any, policy: Any, chunks: int) -> tuple[list[float], list[float], list[float]]:
    """Per chunk: overhead ms a round, its share of the chunk, chunk ms."""
    condition = torch.zeros(1, policy.config.condition_dim, device=policy.device)
    denoise, draft = policy.denoiser(condition), policy.drafter(condition)
    shape = (1, policy.config.horizon, policy.config.action_dim)
    rounds, shares, totals = [], [], []
    for seed in range(chunks + 4):
        noise = draw_noise(shape, sampler.schedule, torch.Generator().manual_seed(seed), policy.device)
        stats = sampler(denoise, noise, draft=draft).stats
        if seed >= 4:  # warm-up
            rounds.append(1e3 * (stats.time.total - stats.time.network) / int(stats.calls))
            shares.append(stats.time.overhead)
            totals.append(1e3 * stats.time.total)
    return rounds, shares, totals


def storage_bytes() -> dict[int, int]:
    """Every live tensor storage: address -> bytes."""
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, Tensor) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def sampler_bytes(config: SamplerConfig, policy: Any, batch: int) -> int:
    """Peak bytes of live tensors at the network calls that were not there before the sampler was bound."""
    shape = (batch, policy.config.horizon, policy.config.action_dim)
    condition = torch.zeros(batch, policy.config.condition_dim, device=policy.device)
    denoise, draft = policy.denoiser(condition), policy.drafter(condition)
    gc.collect()
    before = storage_bytes()
    peak = 0

    def watched(x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
        nonlocal peak
        now = storage_bytes()
        peak = max(peak, sum(size for address, size in now.items() if address not in before))
        return denoise(x, t, chain)

    sampler = bind(config, policy.scheduler_config, policy.speculation, has_draft=draft is not None)
    noise: Noise = draw_noise(shape, sampler.schedule, torch.Generator().manual_seed(0), policy.device)
    sampler(watched, noise, draft=draft)
    return peak


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="lift")
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "overhead")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    policy = load_policy(args.policy, device=args.device)
    rows = []
    for name, drafting in SPECULATIVE.items():
        config = SamplerConfig(options={"window": args.window, **drafting})
        rounds, shares, totals = overhead_ms(policy.bind(config), policy, args.chunks)
        one, nine = (sampler_bytes(config, policy, batch) / 2**20 for batch in (1, 9))
        rows.append({
            "sampler": name, "window": args.window, "ms_per_round_p50": statistics.median(rounds),
            "ms_per_round_p95": statistics.quantiles(rounds, n=20)[-1], "share_p50": statistics.median(shares),
            "chunk_ms_p50": statistics.median(totals), "MiB_one_chain": one, "MiB_each_further_chain": (nine - one) / 8,
        })  # fmt: skip
    sequential, _, totals = overhead_ms(policy.bind(SamplerConfig("ddpm")), policy, args.chunks // 4)
    rows.append({
        "sampler": "DDPM-100 (precomputed tables)", "window": 1, "ms_per_round_p50": statistics.median(sequential),
        "ms_per_round_p95": statistics.quantiles(sequential, n=20)[-1], "chunk_ms_p50": statistics.median(totals),
    })  # fmt: skip
    out = ["| sampler | window | overhead ms a round p50 | p95 | share of the chunk | MiB, one chain | each more |",
           "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for r in rows:
        share = f"{100 * r['share_p50']:.0f} %" if "share_p50" in r else "-"
        mib = f"{r['MiB_one_chain']:.1f} | {r['MiB_each_further_chain']:.2f}" if "MiB_one_chain" in r else "- | -"
        out.append(f"| {r['sampler']} | {r['window']} | {r['ms_per_round_p50']:.2f} | {r['ms_per_round_p95']:.2f} | "
                   f"{share} | {mib} |")  # fmt: skip
    text = "\n".join(out) + "\n"
    args.output.parent.mkdir(parents=True, exist_ok=True)
    described = {"environment": environment(policy.device, args.threads), "rows": rows}
    args.output.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
    args.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
