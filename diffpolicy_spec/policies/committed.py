"""Actions that will be executed whatever comes, as known coordinates of the next chunk (real-time chunking)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffpolicy_spec.inpainting import Inpainting
from diffpolicy_spec.policies.diffusion import DiffusionPolicy

__all__ = ["inpainting_of"]


def inpainting_of(policy: DiffusionPolicy, committed: NDArray[np.floating] | Tensor) -> Inpainting:
    """The inpainting that makes a chunk continue these actions.

    While a chunk is made its first actions are executed from the chunk before: they are frozen, and the rest is drawn
    to fit (Black et al. 2025, "Real-Time Execution of Action Chunking Flow Policies", arXiv 2506.07339; the hard mask
    only). The chunk is exact then for the chain whose known actions are overwritten before every call, as
    diffusion_policy inpaints; that is not the policy's law given these actions.

    Args:
        committed: (n, Da), or (B, n, Da), in the action's own units, from the newest observation on: they stand at
            indices first ... first + n - 1 of the plan.

    Returns:
        Of a plan's actions, (1, T, Da) or (B, T, Da), normalised: `inpaint` of `predict_action`.

    Raises:
        ValueError: another shape, more actions than a plan has from `first` on, or none, or values that are not finite.
    """
    config = policy.config
    actions = torch.as_tensor(np.asarray(committed), dtype=torch.float32)
    if actions.dim() == 2:
        actions = actions[None]
    usable = config.horizon - config.first
    if actions.dim() != 3 or actions.shape[2] != config.action_dim or not 1 <= actions.shape[1] <= usable:
        raise ValueError(
            f"committed actions must be (n, Da) with 1 to {usable} actions of {config.action_dim} dimensions, got "
            f"{tuple(np.shape(committed))}"
        )
    if not torch.isfinite(actions).all():
        raise ValueError("committed actions hold NaN or infinity")
    actions = actions.to(policy.device)
    values = torch.zeros(len(actions), config.horizon, config.action_dim, device=policy.device)
    frozen = slice(config.first, config.first + actions.shape[1])
    values[:, frozen] = policy.normalizer.normalize("action", actions)
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[:, frozen] = True
    return Inpainting(mask, values)
