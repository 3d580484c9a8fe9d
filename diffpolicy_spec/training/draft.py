"""dps-train draft=PATH: distil a draft network from a checkpoint and store it beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffpolicy_spec.checkpoints import load_policy
from diffpolicy_spec.checkpoints.native import save_speculation
from diffpolicy_spec.device import parse_device
from diffpolicy_spec.optional import require
from diffpolicy_spec.training.calibrate import draw_conditions, storable
from diffpolicy_spec.training.distill import DistillConfig, distill
from diffpolicy_spec.training.observations import Names

__all__ = ["train_draft"]


def train_draft(cfg: dict[str, Any]) -> Path:
    """Distil as configs/train.yaml says; returns the folder of the checkpoint, which now has a draft network.

    Raises:
        ValueError: settings that do not fit.
        FileNotFoundError: no such checkpoint or dataset.
    """
    folder, dataset = storable(cfg["draft"]), Path(cfg["dataset"] or cfg["task"]["dataset"])
    unknown = set(cfg["distill"]) - set(DistillConfig.__dataclass_fields__)
    if unknown:
        raise ValueError(f"distill has no {', '.join(sorted(unknown))}; known: {', '.join(cfg['distill'])}")
    config = DistillConfig(**cfg["distill"])
    torch.set_num_threads(int(cfg["num_threads"]))
    policy = load_policy(folder, device=str(parse_device(cfg["device"])))
    tqdm = require("tqdm", extra="train", needed_by="dps-train").tqdm
    wanted = config.chains * config.rounds
    conditions = draw_conditions(policy, dataset, wanted, cfg["train_filter"], config.seed, Names.of(cfg))
    title = f"distil {policy.config.task}".strip()
    network = distill(
        policy, conditions, config, progress=lambda steps: tqdm(steps, desc=title, unit="step", dynamic_ncols=True)
    )
    stored = {name: value.cpu() for name, value in network.stored().items()}
    # What else is stored for speculation stays.
    kept = {n: v.cpu() for n, v in (policy.speculation or {}).items() if not n.startswith("draft.")}
    save_speculation(kept | stored, folder)
    size = sum(value.numel() * value.element_size() for value in stored.values())
    print(f"draft network of {size / 1e6:.2f} MB: {folder}")
    return folder
