"""A policy of Lift's shapes with a small random network, and observations for it."""

from __future__ import annotations

import numpy as np
import torch

from diffpolicy_spec.policies import DiffusionPolicy, LinearNormalizer, PolicyConfig, UnetConfig
from diffpolicy_spec.policies.diffusion import build_network
from diffpolicy_spec.policies.normalizer import fit_limits, identity_columns

OBS_DIMS = {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 100,
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "prediction_type": "epsilon",
}


def tiny_config(**changes):
    values = {
        "task": "lift",
        "obs_dims": OBS_DIMS,
        "action_dim": 10,
        "action_repr": "absolute_rot6d",
        "unet": UnetConfig(down_dims=(8, 16), diffusion_step_embed_dim=8),
    }
    return PolicyConfig(**values | changes)


def tiny_policy(seed: int = 0, speculation=None, **changes) -> DiffusionPolicy:
    config = tiny_config(**changes)
    rng = np.random.default_rng(seed)
    params = {k: fit_limits(rng.normal(2, 3, size=(50, d))) for k, d in config.obs_dims.items()}
    action = identity_columns(fit_limits(rng.normal(1, 0.5, size=(50, config.action_dim))), range(3, 9))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(config)
    return DiffusionPolicy(config, network, LinearNormalizer({**params, "action": action}), SCHEDULER, speculation)


def tiny_obs(batch: int = 3, seed: int = 0, steps: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {key: rng.normal(2, 3, size=(batch, steps, dim)) for key, dim in OBS_DIMS.items()}
