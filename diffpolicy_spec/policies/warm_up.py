"""The first chunks of a policy, drawn for nobody: kernels, graphs and memory are chosen in them."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from diffpolicy_spec.policies.committed import inpainting_of
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.samplers import BoundSampler

__all__ = ["middle_observation", "warm_up"]


def middle_observation(policy: DiffusionPolicy) -> dict[str, NDArray[np.generic]]:
    """One observation (1, To, ...) that the normaliser maps to 0, the middle of its range; cameras see grey, uint8."""
    config, steps = policy.config, policy.config.n_obs_steps
    obs: dict[str, NDArray[np.generic]] = {}
    for key, dim in config.obs_dims.items():
        middle = policy.normalizer.unnormalize(key, torch.zeros(dim, device=policy.device)).cpu().numpy()
        obs[key] = np.tile(middle, (1, steps, 1))
    for camera, shape in config.image_shapes.items():
        obs[camera] = np.full((1, steps, *shape), 127, np.uint8)
    return obs


def warm_up(
    policy: DiffusionPolicy,
    sampler: BoundSampler | None = None,
    chunks: int = 2,
    *,
    finish_steps: int | None = None,
    inpainted: bool = False,
) -> None:
    """Draw chunks and forget them; what rounds and finishing calls take is known then, which deadlines need.

    Args:
        chunks: how many; 0: none at all.
        finish_steps: draw another one, finished by so many DDIM steps; None: not.
        inpainted: draw another one with known actions, which runtimes keep a piece of work of its own for.

    Raises:
        FloatingPointError: the network returned NaN or infinite values.
        ValueError: the sampler does not fit the policy.
    """
    obs, config = middle_observation(policy), policy.config
    for number in range(chunks):
        generator = torch.Generator().manual_seed(number)
        policy.predict_action(obs, sampler=sampler, generator=generator, deadline=math.inf)
    if chunks and finish_steps is not None:
        late = -math.inf
        generator = torch.Generator().manual_seed(0)
        policy.predict_action(obs, sampler=sampler, generator=generator, deadline=late, finish_steps=finish_steps)
    if chunks and inpainted:
        middle = policy.normalizer.unnormalize("action", torch.zeros(1, config.action_dim, device=policy.device))
        generator = torch.Generator().manual_seed(0)
        policy.predict_action(obs, sampler=sampler, generator=generator, inpaint=inpainting_of(policy, middle.cpu()))
