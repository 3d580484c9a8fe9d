"""The automatic choice on the shipped Lift policy, for the record.

    python benchmarks/choice.py --dataset data/lift.hdf5       # demonstrations whose observations are used

What `dps-calibrate` does, on more observations and chunks: sampler and runtime, and what windows by step gain over
constant ones. Nothing is stored beside the policy; writes benchmarks/results/choice_lift.{json,md}. Run it on an idle
machine.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffpolicy_spec import load_policy
from diffpolicy_spec.choice.choose import choose
from diffpolicy_spec.choice.record import Choice
from diffpolicy_spec.choice.report import sentence, table
from diffpolicy_spec.choice.runtimes import described, runtimes
from diffpolicy_spec.choice.timing import Moments
from diffpolicy_spec.device import parse_device
from diffpolicy_spec.eval.results import environment
from diffpolicy_spec.runtime import RuntimeConfig

RESULTS = Path(__file__).parent / "results"


def by_step_against_constant(choice: Choice) -> str:
    """Markdown: of each family with windows by step, its constant windows under the same runtime beside them."""
    rows: list[dict[str, Any]] = [
        {**row, "run": described(RuntimeConfig(**row["runtime"]))} for row in choice.candidates
    ]
    planned = {(row["name"], row["run"]) for row in rows if row["window"].startswith("by step")}
    lines = ["| sampler | runtime | window | calls | rows | expected ms | measured ms |",
             "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for which in sorted(planned):
        same = [row for row in rows if (row["name"], row["run"]) == which]
        for row in sorted(same, key=lambda row: -row["calls"]):
            timed = f"{row['measured_ms']:.1f}" if "measured_ms" in row else "-"
            lines.append(f"| {row['name']} | {row['run']} | {row['window']} | {row['calls']:.2f} | {row['rows']:.0f} | "
                         f"{row['predicted_ms']:.1f} | {timed} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def measure(policy: Any, moments: Moments, tried: Sequence[RuntimeConfig], timed: int, output: Path) -> None:
    """Choose, print, write."""
    choice = choose(
        policy, moments, tried=tried, timed=timed, finalists=6, probes=6,
        progress=lambda tried: tqdm(tried, desc="choose"),
    )  # fmt: skip
    text = (
        f"{sentence(choice)}.\n\n"
        f"{len(moments)} observations, {timed} chunks timed, the quicker of two draws of each; load of the machine "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.\n\n"
        f"{table(choice)}\nWindows by step against constant ones, for the families looked at closely. The number after "
        f"*by step* is the share of the price of further rows that the plan is charged.\n\n"
        f"{by_step_against_constant(choice)}"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    described = {"environment": environment(policy.device, choice.runtime.threads or 1), "choice": asdict(choice)}
    output.with_suffix(".json").write_text(json.dumps(described, indent=1) + "\n")
    output.with_suffix(".md").write_text(text)
    print(text)


def main() -> None:
    """Draw the observations and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="lift")
    parser.add_argument("--dataset", type=Path, default=Path("data/lift.hdf5"))
    parser.add_argument("--filter", default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", help="of torch on a CPU; default: 1, 2, 4, ... and all cores")
    parser.add_argument("--modes", nargs="+", help="runtimes to try; default: those of the device")
    parser.add_argument("--dtypes", nargs="+", default=[None])
    parser.add_argument("--moments", type=int, default=64)
    parser.add_argument("--timed", type=int, default=32)
    parser.add_argument("--output", type=Path, default=RESULTS / "choice_lift")
    args = parser.parse_args()
    from diffpolicy_spec.training.moments import draw_moments

    torch.set_num_threads(1)
    policy = load_policy(args.policy, parse_device(args.device))
    modes = [{"mode": mode} for mode in args.modes] if args.modes else "auto"
    tried = runtimes(policy.device, modes, threads=args.threads or "auto", dtypes=args.dtypes)
    moments = draw_moments(policy, args.dataset, args.moments, args.filter, seed=0)
    measure(policy, moments, tried, args.timed, args.output)


if __name__ == "__main__":
    main()
