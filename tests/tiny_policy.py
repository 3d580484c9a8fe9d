"""A policy of Lift's shapes with a small random network, and observations for it."""

from __future__ import annotations

import numpy as np
import torch

from diffpolicy_spec.policies import (
    DiffusionPolicy,
    EncoderConfig,
    LinearNormalizer,
    PolicyConfig,
    TransformerConfig,
    UnetConfig,
    build_encoder,
    build_network,
)
from diffpolicy_spec.policies.normalizer import fit_limits, identity_columns

OBS_DIMS = {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
TRANSFORMER = {"unet": None, "transformer": TransformerConfig(n_layer=2, n_head=2, n_emb=16)}
CAMERAS = {
    "image_shapes": {"front": (3, 40, 40), "wrist": (3, 38, 40)},
    "encoder": EncoderConfig(crop=(36, 36), keypoints=4, features=6),
}
"""Changes of the config for a Transformer, and for two cameras."""

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


def tiny_policy(seed: int = 0, speculation=None, scheduler=SCHEDULER, **changes) -> DiffusionPolicy:
    config = tiny_config(**changes)
    rng = np.random.default_rng(seed)
    params = {k: fit_limits(rng.normal(2, 3, size=(50, d))) for k, d in config.obs_dims.items()}
    action = identity_columns(fit_limits(rng.normal(1, 0.5, size=(50, config.action_dim))), range(3, 9))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network, encoder = build_network(config), build_encoder(config)
    for camera, shape in config.image_shapes.items():  # [0, 1] -> [-1, 1]
        params[camera] = {"scale": torch.full((shape[0],), 2.0), "offset": torch.full((shape[0],), -1.0)}
    normalizer = LinearNormalizer({**params, "action": action})
    return DiffusionPolicy(config, network, normalizer, scheduler, speculation, encoder=encoder)


def obs_for(config: PolicyConfig, batch: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Observations for any policy: images float in [0, 1]."""
    rng = np.random.default_rng(seed)
    lead = batch, config.n_obs_steps
    obs = {key: rng.normal(2, 3, size=(*lead, dim)) for key, dim in config.obs_dims.items()}
    return obs | {key: rng.random((*lead, *shape), dtype=np.float32) for key, shape in config.image_shapes.items()}


def tiny_obs(batch: int = 3, seed: int = 0, steps: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {key: rng.normal(2, 3, size=(batch, steps, dim)) for key, dim in OBS_DIMS.items()}
