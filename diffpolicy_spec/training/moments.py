"""Moments of demonstrations as a robot would meet them: what it sees, and what it planned one chunk earlier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffpolicy_spec.choice.timing import Moments
from diffpolicy_spec.data import DataError, Episode, read_dataset
from diffpolicy_spec.policies import DiffusionPolicy
from diffpolicy_spec.seeds import hashed_generator

__all__ = ["draw_moments", "moments_of"]

_ORDER, _PLANS = 3, 4  # streams of what is drawn


def draw_moments(policy: DiffusionPolicy, dataset: Path, count: int, filter_key: str | None, seed: int) -> Moments:
    """`count` moments drawn from demonstrations.

    Raises:
        DataError: the dataset does not have what the policy observes.
    """
    config = policy.config
    episodes = read_dataset(dataset, config.obs_dims, action_repr=config.action_repr, filter_key=filter_key)
    return moments_of(policy, episodes, count, seed)


def moments_of(policy: DiffusionPolicy, episodes: Sequence[Episode], count: int, seed: int) -> Moments:
    """`count` moments of these episodes, each at most once while there are enough.

    The plan before a moment is drawn by the policy from what was seen Ta steps earlier; a moment of the first Ta steps
    has none. So as many chunks draft from a previous plan as do in closed loop.

    Raises:
        DataError: no episodes.
    """
    config = policy.config
    where = [(e, frame) for e, episode in enumerate(episodes) for frame in range(len(episode))]
    if not where:
        raise DataError("no demonstrations to draw observations from")
    order = torch.randperm(len(where), generator=hashed_generator(_ORDER, seed))
    chosen = [where[int(order[i % len(where)])] for i in range(count)]
    earlier = [(e, max(frame - config.n_action_steps, 0)) for e, frame in chosen]
    plans = policy.predict_action(_observe(policy, episodes, earlier), generator=hashed_generator(_PLANS, seed)).plan
    none_before = torch.tensor([frame < config.n_action_steps for _, frame in chosen], device=plans.device)
    plans = plans.masked_fill(none_before[:, None, None], torch.nan)
    return Moments(_observe(policy, episodes, chosen), plans)


def _observe(
    policy: DiffusionPolicy, episodes: Sequence[Episode], where: Sequence[tuple[int, int]]
) -> dict[str, Tensor]:
    """key -> (n, To, d): the To frames up to each (episode, frame); the first one repeats before it."""
    back = np.arange(1 - policy.config.n_obs_steps, 1)
    return {
        key: torch.from_numpy(np.stack([episodes[e].obs[key][np.maximum(frame + back, 0)] for e, frame in where]))
        for key in policy.config.obs_keys
    }
