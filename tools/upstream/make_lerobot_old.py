"""Fixtures of LeRobot 0.3.2's diffusion policies: statistics inside the weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from fixture import Fixture, allow_torchvision

allow_torchvision()

from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy  # noqa: E402
from lerobot_common import chunk, config, facts, finish, observations, statistics  # noqa: E402

STATE, IMAGE = "observation.state", "observation.image"

# name -> inputs, settings
CASES: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "lerobot_old_layout": ({STATE: (5,), "observation.environment_state": (8,)}, {}),
    "lerobot_old_image": ({IMAGE: (3, 40, 40), STATE: (2,)}, {"crop_shape": (34, 34)}),
}


def make(name: str, folder: Path) -> None:
    """Build, save and run one policy."""
    inputs, settings = CASES[name]
    cfg = config(inputs, action_dim=4, **settings)
    policy = DiffusionPolicy(cfg, dataset_stats=statistics(cfg))
    finish(policy)
    policy.save_pretrained(folder / "checkpoint")
    fixture = Fixture(folder, facts(policy, "statistics in the weights"))
    obs = observations(cfg, 2, cfg.n_obs_steps, seed=200)
    chunk(
        fixture,
        policy,
        obs,
        policy.normalize_inputs,
        lambda a: policy.unnormalize_outputs({"action": a})["action"],
        True,
    )
    fixture.write()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in CASES:
        if name in sys.argv[2:]:
            make(name, Path(sys.argv[1]) / name)
