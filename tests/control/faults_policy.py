"""A tiny policy for the robot of `faults_robot`, as a checkpoint: random weights, 10 denoising steps."""

from __future__ import annotations

import numpy as np
import torch
from faults_robot import AXES, KEYS

SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 10,
    "beta_start": 0.01,
    "beta_end": 0.3,
    "beta_schedule": "linear",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}


def make_policy(seed: int = 0, reach: float = 0.5, axes: int = AXES, keys: dict[str, int] | None = None):
    """Actions within `reach` of 0 on every axis."""
    from diffpolicy_spec.policies import DiffusionPolicy
    from diffpolicy_spec.policies.config import PolicyConfig, UnetConfig
    from diffpolicy_spec.policies.diffusion import build_network
    from diffpolicy_spec.policies.normalizer import LinearNormalizer, fit_limits

    keys = KEYS if keys is None else keys
    unet = UnetConfig(down_dims=(8, 16), kernel_size=3, n_groups=4, diffusion_step_embed_dim=8)
    config = PolicyConfig(keys, axes, "raw", unet=unet)
    params = {key: fit_limits(np.stack([-np.ones(d), np.ones(d)])) for key, d in keys.items()}
    params["action"] = fit_limits(np.stack([-reach * np.ones(axes), reach * np.ones(axes)]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(config)
    return DiffusionPolicy(config, network, LinearNormalizer(params), SCHEDULER)


def save_policy(path, **kwargs):
    make_policy(**kwargs).save(path)
    return path
