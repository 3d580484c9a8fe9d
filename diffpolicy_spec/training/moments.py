"""Moments of demonstrations as a robot would meet them: what it sees, and what it planned one chunk earlier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffpolicy_spec.choice.timing import Moments
from diffpolicy_spec.data import DataError, Episode
from diffpolicy_spec.data.frames import FrameTable
from diffpolicy_spec.policies import DiffusionPolicy
from diffpolicy_spec.seeds import hashed_generator
from diffpolicy_spec.training.observations import Names, episodes_for

__all__ = ["draw_moments", "moments_of", "observe"]

_ORDER, _PLANS = 3, 4  # streams of what is drawn


def draw_moments(
    policy: DiffusionPolicy, dataset: Path, count: int, filter_key: str | None, seed: int, names: Names | None = None
) -> Moments:
    """`count` moments drawn from demonstrations; `names`: what they call what the policy observes.

    Raises:
        DataError: the dataset does not have what the policy observes.
    """
    return moments_of(policy, episodes_for(policy, dataset, filter_key, names), count, seed)


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
    plans = policy.predict_action(observe(policy, episodes, earlier), generator=hashed_generator(_PLANS, seed)).plan
    none_before = torch.tensor([frame < config.n_action_steps for _, frame in chosen], device=plans.device)
    plans = plans.masked_fill(none_before[:, None, None], torch.nan)
    return Moments(observe(policy, episodes, chosen), plans)


def observe(
    policy: DiffusionPolicy, episodes: Sequence[Episode], where: Sequence[tuple[int, int]]
) -> dict[str, Tensor]:
    """What a policy observes at each (episode, frame): the To frames up to it; the first one repeats before it.

    Returns:
        key -> (n, To, d) float32, camera -> (n, To, C, H, W) uint8.

    Raises:
        DataError: images that cannot be read, or episodes without those of a camera.
    """
    back = np.arange(1 - policy.config.n_obs_steps, 1)
    frames = [(e, np.maximum(frame + back, 0)) for e, frame in where]
    obs = {
        key: torch.from_numpy(np.stack([episodes[e].obs[key][rows] for e, rows in frames]))
        for key in policy.config.obs_dims
    }
    begins = np.cumsum([0, *(len(episode) for episode in episodes)])
    of_all = np.stack([begins[e] + rows for e, rows in frames])
    for camera in policy.config.image_shapes:
        blind = next((episode.name for episode in episodes if camera not in episode.images), None)
        if blind is not None:
            raise DataError(f"{blind} has no images of '{camera}', which the policy observes")
        images = FrameTable([episode.images[camera] for episode in episodes]).read(of_all.ravel())
        obs[camera] = torch.from_numpy(images).unflatten(0, of_all.shape).movedim(-1, 2)
    return obs
