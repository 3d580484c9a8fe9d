"""dps-calibrate: fit the gains of a checkpoint and store them beside it.

    dps-calibrate checkpoint=outputs/train/lift/policy dataset=data/lift.hdf5

Settings and their defaults: configs/calibrate.yaml. Gains change what sampling costs, never what it draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec.calibration import calibrate
from diffpolicy_spec.checkpoints import load_policy
from diffpolicy_spec.checkpoints.native import save_speculation
from diffpolicy_spec.checkpoints.shipped import resolve
from diffpolicy_spec.command import command
from diffpolicy_spec.data import cut_sequences, read_robomimic
from diffpolicy_spec.optional import require
from diffpolicy_spec.policies import DiffusionPolicy
from diffpolicy_spec.samplers import SamplerConfig

__all__ = ["draw_conditions", "main", "run"]


def draw_conditions(policy: DiffusionPolicy, dataset: Path, count: int, filter_key: str | None, seed: int) -> Tensor:
    """(count, To * Do) conditions of moments drawn from demonstrations, each at most once while there are enough.

    Raises:
        DataError: the dataset does not have what the policy observes.
    """
    config = policy.config
    episodes = read_robomimic(dataset, config.obs_dims, action_repr=config.action_repr, filter_key=filter_key)
    sequences = cut_sequences(
        episodes, config.obs_keys, horizon=config.horizon, n_obs_steps=config.n_obs_steps,
        n_action_steps=config.n_action_steps,
    )  # fmt: skip
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed))
    obs = sequences.obs[order[torch.arange(count) % len(order)]]
    parts = obs.split(list(config.obs_dims.values()), dim=-1)
    return policy.encode(dict(zip(config.obs_keys, parts, strict=True)))


def run(cfg: dict[str, Any]) -> Path:
    """Calibrate as configs/calibrate.yaml says (resolved, as plain data); returns the checkpoint folder.

    Raises:
        ValueError: settings that do not fit (CheckpointError and DataError are ValueErrors).
        FileNotFoundError: no such dataset.
    """
    if cfg["checkpoint"] is None:
        raise ValueError("give checkpoint=PATH, the folder of a trained policy")
    folder, dataset = resolve(cfg["checkpoint"]), Path(cfg["dataset"] or cfg["task"]["dataset"])
    torch.set_num_threads(int(cfg["num_threads"]))
    policy = load_policy(folder)
    tqdm = require("tqdm", extra="train", needed_by="dps-calibrate").tqdm
    conditions = draw_conditions(policy, dataset, int(cfg["chains"]), cfg["filter"], int(cfg["seed"]))
    gains = calibrate(
        policy.denoiser(conditions),
        policy.bind(SamplerConfig("ddpm")).schedule,
        (len(conditions), policy.config.horizon, policy.config.action_dim),
        generator=torch.Generator().manual_seed(int(cfg["seed"])),
        perturbations=int(cfg["perturbations"]),
        scale=float(cfg["scale"]),
        ridge=float(cfg["ridge"]),
        progress=lambda steps: tqdm(steps, desc="calibrate", unit="step", dynamic_ncols=True),
    )
    save_speculation(gains.state_dict(), folder)
    print(f"gains of {gains.G.shape[0]} steps, {tuple(gains.G.shape[1:])} each: {folder}")
    return folder


def main() -> None:
    """Entry point of dps-calibrate."""
    command("dps-calibrate", "calibrate", "train", run)


if __name__ == "__main__":
    main()
