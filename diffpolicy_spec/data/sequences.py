"""Episodes cut into training sequences: numbers in memory, images as numbers of frames."""

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
        frames: (S, To) int64, at which step each observation was made, counted through all episodes.
    """

    obs: Tensor
    actions: Tensor
    frames: Tensor

    def __len__(self) -> int:
        return self.obs.shape[0]


def sequence_frames(
    length: int,
    horizon: int,
    n_obs_steps: int,
    n_action_steps: int,
    first_action: int | None = None,
    obs_steps: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which frames of an episode each of its sequences holds.

    diffusion_policy's padding: a sequence may begin To - 1 frames before the episode and end Ta - 1 frames after it;
    frames outside repeat the first or last one. So every frame is once the newest observation, and the last Ta actions
    of an episode are trained in every position in which they are executed.

    Args:
        length: steps of the episode.
        horizon, n_obs_steps, n_action_steps: T, To, Ta.
        first_action: which action of a sequence belongs to the newest observation; None: To - 1, observations and
            actions begin together.
        obs_steps: observations of a sequence; None: To.

    Returns:
        Observations' frames (S, obs_steps) and actions' (S, T), int64; S = 0 for an episode too short.
    """
    shift = 0 if first_action is None else n_obs_steps - 1 - first_action
    starts = np.arange(-(n_obs_steps - 1), length - horizon + n_action_steps - shift)[:, None]
    seen = starts + np.arange(n_obs_steps if obs_steps is None else obs_steps)
    done = starts + shift + np.arange(horizon)
    return np.clip(seen, 0, length - 1), np.clip(done, 0, length - 1)


def cut_sequences(
    episodes: Sequence[Episode],
    obs_keys: Sequence[str],
    *,
    horizon: int,
    n_obs_steps: int,
    n_action_steps: int,
    first_action: int | None = None,
    obs_steps: int | None = None,
) -> Sequences:
    """All sequences of all episodes; sizes as in `sequence_frames`.

    Raises:
        DataError: no episodes, or none long enough for one sequence.
    """
    obs, actions, frames, before = [], [], [], 0
    for episode in episodes:
        seen, done = sequence_frames(len(episode), horizon, n_obs_steps, n_action_steps, first_action, obs_steps)
        columns = [episode.obs[key] for key in obs_keys] or [np.empty((len(episode), 0), dtype=np.float32)]
        obs.append(np.concatenate(columns, axis=1)[seen])
        actions.append(episode.actions[done])
        frames.append(before + seen)
        before += len(episode)
    if sum(len(a) for a in actions) == 0:
        raise DataError(
            f"no training sequences: {len(episodes)} episodes, "
            f"each needs at least {horizon - n_obs_steps - n_action_steps + 2} steps"
        )
    return Sequences(*(torch.from_numpy(np.concatenate(part)) for part in (obs, actions, frames)))
