"""dps-bench: what dps-calibrate expected of a checkpoint on this device, and what is measured now.

    dps-bench checkpoint=outputs/train/lift/policy dataset=data/lift.hdf5
    dps-bench checkpoint=... device=cuda output=outputs/bench_gpu.json

Prints c(n), the chosen sampler, its runtime, and the latency of auto, the sequential sampler and DDIM-10; writes the
same as JSON. Settings and their defaults: configs/bench.yaml.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from diffpolicy_spec.checkpoints import load_policy
from diffpolicy_spec.checkpoints.shipped import resolve
from diffpolicy_spec.choice.bench import measure
from diffpolicy_spec.choice.fingerprint import fingerprint
from diffpolicy_spec.choice.record import changes, find_choice
from diffpolicy_spec.choice.report import sentence
from diffpolicy_spec.command import command
from diffpolicy_spec.device import parse_device
from diffpolicy_spec.eval.results import environment, write_json
from diffpolicy_spec.training.moments import draw_moments
from diffpolicy_spec.training.observations import Names

__all__ = ["main", "run"]


def run(cfg: dict[str, Any]) -> Path:
    """Measure as configs/bench.yaml says (resolved, as plain data); returns the JSON file.

    Raises:
        ValueError: settings that do not fit, or no choice for this device and chain.
        FileNotFoundError: no such dataset.
    """
    if cfg["checkpoint"] is None:
        raise ValueError("give checkpoint=PATH, the folder of a trained policy")
    if int(cfg["timed"]) < 1 or int(cfg["moments"]) < 1:
        raise ValueError(f"timed and moments must be at least 1, got {cfg['timed']} and {cfg['moments']}")
    folder, dataset = resolve(cfg["checkpoint"]), Path(cfg["dataset"] or cfg["task"]["dataset"])
    policy = load_policy(folder, parse_device(cfg["device"]))
    choice = find_choice(policy.choices, policy.device, cfg["num_inference_steps"], cfg["eta"])
    changed = changes(choice, policy.device, fingerprint(policy.network, policy.speculation))
    print(f"{sentence(choice)}: {folder}")
    if changed:
        print(f"That was measured with {', '.join(changed)}: run dps-calibrate again to know what is quickest now")
    moments = draw_moments(policy, dataset, int(cfg["moments"]), cfg["filter"], int(cfg["seed"]), Names.of(cfg))
    measured = measure(policy, moments, choice, range(int(cfg["timed"])))
    print(f"\n{measured.text()}")
    output = Path(cfg["output"])
    about = environment(policy.device, choice.runtime.threads or torch.get_num_threads())
    about["load"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"checkpoint": str(folder), "environment": about, "changed": changed, **measured.data()})
    print(output)
    return output


def main() -> None:
    """Entry point of dps-bench."""
    command("dps-bench", "bench", "train", run)


if __name__ == "__main__":
    main()
