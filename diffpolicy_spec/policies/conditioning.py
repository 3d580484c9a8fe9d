"""How a denoiser is told the observations: as its condition, or as known coordinates of the plan."""

from __future__ import annotations

import torch
from torch import Tensor

from diffpolicy_spec.inpainting import Inpainting
from diffpolicy_spec.policies.config import PolicyConfig

__all__ = ["condition", "over_plan"]


def condition(features: Tensor, config: PolicyConfig) -> tuple[Tensor, Inpainting | None]:
    """Features of the observations as the network takes them.

        global      c = (f_1, ..., f_To)
        local       c = (f_1, ..., f_To, 0, ..., 0), a step's features beside each of the T actions
        inpainting  a step of the plan is (action, features); the first To steps' features are known, c is empty

    Args:
        features: (B, To, Do), normalised, oldest first.

    Returns:
        (B, C), and for inpainting what is known of the plans (B, T, D).
    """
    B, To, Do = features.shape
    if config.conditioning == "global":
        return features.flatten(1), None
    beside = torch.cat([features, features.new_zeros(B, config.horizon - To, Do)], dim=1)
    if config.conditioning == "local":
        return beside.flatten(1), None
    values = torch.cat([features.new_zeros(B, config.horizon, config.action_dim), beside], dim=2)
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[:, :To, config.action_dim :] = True
    return features.new_zeros(B, 0), Inpainting(mask, values)


def over_plan(known: Inpainting | None, given: Inpainting | None, config: PolicyConfig) -> Inpainting | None:
    """What a policy knows of its plans (B, T, D), and what its user gives of the actions (B, T, Da), together.

    Raises:
        ValueError: what is given does not fit chunks (B, T, Da), or is not finite.
    """
    if given is not None:
        given.check((len(given.mask), config.horizon, config.action_dim))
    if known is None or given is None:
        return known if given is None else given
    if len(given.mask) != len(known.mask):
        raise ValueError(f"inpainting is of {len(given.mask)} chains, the observations are of {len(known.mask)}")
    beside = slice(config.action_dim, None)
    mask = torch.cat([given.mask.to(known.mask.device), known.mask[:, :, beside]], dim=2)
    values = torch.cat([given.values.to(known.values), known.values[:, :, beside]], dim=2)
    return Inpainting(mask, values)
