"""Episodes cut into training sequences, all in memory: a batch is one index into two tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffpolicy_spec.data.episodes import Episode
from diffpolicy_spec.data.errors import DataError

__all__ = ["Sequences", "cut_sequences", "sequence_frames"]


@dataclass(frozen=True)
class Sequences:
    """S training sequences in their own units.

    Attributes:
        obs: (S, To, Do) float32, the first To observations, keys concatenated in the order asked for.
        actions: (S, T, Da) float32.
    """

    obs: Tensor
    actions: Tensor

    def __len__(self) -> int:
        return self.obs.shape[0]


def sequence_frames(length: int, horizon: int, n_obs_steps: int, n_action_steps: int) -> NDArray[np.int64]:
    """Which frames of an episode each of its sequences holds.

    diffusion_policy's padding: a sequence may begin To - 1 frames before the episode and end Ta - 1 frames after it;
    frames outside repeat the first or last one. So every frame is once the newest observation, and the last Ta actions
    of an episode are trained in every position in which they are executed.

    Returns:
        (S, horizon) int64 frame numbers; S = 0 for an episode too short (length < horizon - To - Ta + 2).
    """
    starts = np.arange(-(n_obs_steps - 1), length - horizon + n_action_steps)
    return np.clip(starts[:, None] + np.arange(horizon)[None, :], 0, length - 1)


def cut_sequences(
    episodes: Sequence[Episode], obs_keys: Sequence[str], *, horizon: int, n_obs_steps: int, n_action_steps: int
) -> Sequences:
    """All sequences of all episodes.

    Raises:
        DataError: no episodes, or none long enough for one sequence.
    """
    obs, actions = [], []
    for episode in episodes:
        frames = sequence_frames(len(episode), horizon, n_obs_steps, n_action_steps)
        joined = np.concatenate([episode.obs[key] for key in obs_keys], axis=1)
        obs.append(joined[frames[:, :n_obs_steps]])
        actions.append(episode.actions[frames])
    if sum(len(a) for a in actions) == 0:
        raise DataError(
            f"no training sequences: {len(episodes)} episodes, "
            f"each needs at least {horizon - n_obs_steps - n_action_steps + 2} steps"
        )
    return Sequences(torch.from_numpy(np.concatenate(obs)), torch.from_numpy(np.concatenate(actions)))
