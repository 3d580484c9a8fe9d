"""Fixtures of LeRobot 0.4.4's diffusion policies: statistics in the processors' files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from fixture import Fixture, allow_torchvision

allow_torchvision()

from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy  # noqa: E402
from lerobot.policies.factory import make_pre_post_processors  # noqa: E402
from lerobot_common import chunk, config, facts, finish, observations, statistics  # noqa: E402

STATE, ENV = "observation.state", "observation.environment_state"
TOP, WRIST = "observation.images.top", "observation.images.wrist"

# name -> inputs, settings
CASES: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "lerobot_state_env": ({STATE: (7,), ENV: (10,)}, {}),
    "lerobot_few_steps": (
        {STATE: (2,), ENV: (16,)},
        {"num_inference_steps": 20, "n_obs_steps": 3, "n_action_steps": 6, "STATE": "MEAN_STD", "ACTION": "MEAN_STD",
         "clip_sample_range": 2.0},
    ),
    "lerobot_ddim": (
        {STATE: (9,), ENV: (5,)},
        {"noise_scheduler_type": "DDIM", "num_inference_steps": 10, "use_film_scale_modulation": False,
         "STATE": "IDENTITY"},
    ),
    "lerobot_images_shared": ({WRIST: (3, 40, 48), STATE: (7,), TOP: (3, 40, 48)}, {"crop_shape": (36, 44)}),
    "lerobot_images_separate": (
        {STATE: (7,), TOP: (3, 48, 64), WRIST: (3, 48, 64), ENV: (4,)},
        {"use_separate_rgb_encoder_per_camera": True, "use_group_norm": False, "resize_shape": (40, 40),
         "crop_ratio": 0.9, "horizon": 8, "n_action_steps": 4},
    ),
}  # fmt: skip
# LeRobot's own sizes, of its Push-T policy, for compare.py.
PUBLISHED: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "published_lerobot_pusht": (
        {"observation.image": (3, 96, 96), STATE: (2,)},
        {"crop_shape": (84, 84), "down_dims": (512, 1024, 2048), "diffusion_step_embed_dim": 128,
         "spatial_softmax_num_keypoints": 32},
    ),
}  # fmt: skip


def make(name: str, folder: Path) -> None:
    """Build, save and run one policy."""
    inputs, settings = (CASES | PUBLISHED)[name]
    cfg = config(inputs, action_dim=7, **settings)
    policy = DiffusionPolicy(cfg)
    finish(policy)
    before, after = make_pre_post_processors(policy_cfg=cfg, dataset_stats=statistics(cfg))
    for part in (policy, before, after):
        part.save_pretrained(folder / "checkpoint")
    fixture = Fixture(folder, facts(policy, "processors"))
    obs = observations(cfg, 2, cfg.n_obs_steps, seed=200)
    chunk(fixture, policy, obs, before, after, inside=False)
    fixture.write()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in CASES | PUBLISHED:
        if name in sys.argv[2:]:
            make(name, Path(sys.argv[1]) / name)
