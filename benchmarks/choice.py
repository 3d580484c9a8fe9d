"""The automatic choice on the shipped Lift policy, for the record.

    python benchmarks/choice.py --dataset data/lift.hdf5       # demonstrations whose observations are used

What `dps-calibrate` does, on more observations and chunks, and what windows by step gain over constant ones. Nothing is
stored beside the policy; writes benchmarks/results/choice_lift.{json,md}. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffpolicy_spec import load_policy
from diffpolicy_spec.choice.choose import choose
from diffpolicy_spec.choice.record import Choice
from diffpolicy_spec.choice.report import sentence, table
from diffpolicy_spec.choice.timing import Moments
from diffpolicy_spec.device import parse_device
from diffpolicy_spec.eval.results import environment

RESULTS = Path(__file__).parent / "results"


def by_step_against_constant(choice: Choice) -> str:
    """Markdown: of each family with windows by step, its constant windows beside them, by calls."""
    rows = [row for row in choice.candidates if row["method"] == "speculative"]
    planned = {row["name"] for row in rows if row["window"].startswith("by step")}
    lines = ["| sampler | window | calls | rows | expected ms | measured ms |", "| --- | --- | --- | --- | --- | --- |"]
    for name in sorted(planned):
        for row in sorted((row for row in rows if row["name"] == name), key=lambda row: -row["calls"]):
            timed = f"{row['measured_ms']:.1f}" if "measured_ms" in row else "-"
            lines.append(f"| {name} | {row['window']} | {row['calls']:.2f} | {row['rows']:.0f} | "
                         f"{row['predicted_ms']:.1f} | {timed} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def measure(policy: Any, moments: Moments, timed: int, output: Path) -> None:
    """Choose, print, write."""
    choice = choose(
        policy, moments, timed=timed, finalists=6, probes=6, progress=lambda tried: tqdm(tried, desc="choose")
    )
    text = (
        f"{sentence(choice)}.\n\n"
        f"{len(moments)} observations, {timed} chunks timed, the quicker of two draws of each; load of the machine "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.\n\n"
        f"{table(choice)}\nWindows by step against constant ones, for the families looked at closely. The number after "
        f"*by step* is the share of the price of further rows that the plan is charged.\n\n"
        f"{by_step_against_constant(choice)}"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    described = {"environment": environment(policy.device, torch.get_num_threads()), "choice": asdict(choice)}
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
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--moments", type=int, default=64)
    parser.add_argument("--timed", type=int, default=32)
    parser.add_argument("--output", type=Path, default=RESULTS / "choice_lift")
    args = parser.parse_args()
    from diffpolicy_spec.training.moments import draw_moments

    torch.set_num_threads(args.threads)
    policy = load_policy(args.policy, parse_device(args.device))
    measure(policy, draw_moments(policy, args.dataset, args.moments, args.filter, seed=0), args.timed, args.output)


if __name__ == "__main__":
    main()
