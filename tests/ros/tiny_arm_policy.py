"""A policy for an arm: a small random network whose actions are near a pose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tiny_policy import SCHEDULER, tiny_config

from diffpolicy_spec.policies import DiffusionPolicy, EncoderConfig, LinearNormalizer, build_encoder, build_network
from diffpolicy_spec.policies.normalizer import fit_limits

__all__ = ["save_arm_policy"]


def save_arm_policy(
    path: Path,
    obs_dims: dict[str, int],
    pose: list[float],
    reach: float = 0.2,
    image_shapes: dict[str, tuple[int, int, int]] | None = None,
) -> Path:
    """Save a policy of absolute joint positions.

    Args:
        path: a folder. obs_dims: key -> d. pose: (Da,). reach: actions are within pose +- reach.
        image_shapes: camera -> (C, H, W).

    Returns:
        The path.
    """
    changes = {"obs_dims": obs_dims, "action_dim": len(pose), "action_repr": "raw", "task": None}
    if image_shapes:
        crop = tuple(int(0.875 * side) for side in next(iter(image_shapes.values()))[1:])
        changes |= {"image_shapes": image_shapes, "encoder": EncoderConfig(crop=crop, keypoints=4, features=6)}
    config = tiny_config(**changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, encoder = build_network(config), build_encoder(config)
    ends = np.array([np.array(pose) - reach, np.array(pose) + reach])
    params = {key: fit_limits(np.array([[-3.0] * d, [3.0] * d])) for key, d in obs_dims.items()}
    for camera, shape in config.image_shapes.items():  # [0, 1] -> [-1, 1]
        params[camera] = {"scale": torch.full((shape[0],), 2.0), "offset": torch.full((shape[0],), -1.0)}
    normalizer = LinearNormalizer({**params, "action": fit_limits(ends)})
    DiffusionPolicy(config, network, normalizer, SCHEDULER, None, encoder=encoder).save(path)
    return path
