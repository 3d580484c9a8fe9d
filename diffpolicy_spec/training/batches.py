"""From episodes to what the network sees at a step, which is a function of (seed, step) alone.

Nothing about the order of the data, the timesteps or the noise has to be saved to continue a run exactly: step n draws
the same numbers whether the run got there in one go or was killed on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy_spec.data.episodes import Episode, stack_actions, stack_obs
from diffpolicy_spec.data.sequences import Sequences
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.normalizer import LinearNormalizer, fit_limits, identity_columns
from diffpolicy_spec.seeds import hashed_generator

__all__ = ["Batch", "Batches", "fit_normalizer", "normalize_sequences"]


@dataclass(frozen=True)
class Batch:
    """condition: (N, To * Do), x0: (N, T, Da), noise: (N, T, Da), t: (N,) long."""

    condition: Tensor
    x0: Tensor
    noise: Tensor
    t: Tensor


def fit_normalizer(episodes: Sequence[Episode], config: PolicyConfig) -> LinearNormalizer:
    """Limits to [-1, 1] for every key; the rotation columns of absolute_rot6d actions stay as they are.

    Those are rows of rotation matrices: within [-1, 1] already, and scaling them one by one would skew them.
    """
    params = {key: fit_limits(stack_obs(episodes, key)) for key in config.obs_dims}
    action = fit_limits(stack_actions(episodes))
    if config.action_repr == "absolute_rot6d":
        action = identity_columns(action, [10 * arm + i for arm in range(config.action_dim // 10) for i in range(3, 9)])
    return LinearNormalizer({**params, "action": action})


def normalize_sequences(
    sequences: Sequences, obs_dims: dict[str, int], normalizer: LinearNormalizer
) -> tuple[Tensor, Tensor]:
    """(condition: (S, To * Do), x0: (S, T, Da)): all sequences as the network takes them."""
    parts = torch.split(sequences.obs, list(obs_dims.values()), dim=-1)
    normalized = [normalizer.normalize(key, part) for key, part in zip(obs_dims, parts, strict=True)]
    return torch.cat(normalized, dim=-1).flatten(1), normalizer.normalize("action", sequences.actions)


class Batches:
    """Random batches; each epoch goes through all sequences once, in its own order.

    The last, incomplete batch of an epoch is left out; with fewer sequences than a batch, the batch is all of them.
    """

    def __init__(self, condition: Tensor, x0: Tensor, *, batch_size: int, num_timesteps: int, seed: int) -> None:
        self.condition, self.x0 = condition, x0
        self.batch_size = min(batch_size, len(x0))
        self.num_timesteps, self.seed = num_timesteps, seed
        self.steps_per_epoch = max(len(x0) // self.batch_size, 1)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def at(self, step: int) -> Batch:
        """The batch of step number `step`, on the data's device."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(len(self.x0), generator=hashed_generator(self.seed, 0, epoch))
        rows = self._order[position * self.batch_size : (position + 1) * self.batch_size]
        return self.draw(rows, hashed_generator(self.seed, 1, step))

    def draw(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """Timesteps and noise for some sequences."""
        device = self.x0.device
        rows = rows.to(device)
        x0 = self.x0[rows]
        # Drawn on the CPU whatever the device, so that a run does not depend on it.
        noise = torch.randn(x0.shape, generator=generator).to(device)
        t = torch.randint(self.num_timesteps, (len(rows),), generator=generator).to(device)
        return Batch(self.condition[rows], x0, noise, t)

    def evenly(self, count: int, chunk: int) -> list[Batch]:
        """At most `count` sequences spread evenly, with noise and timesteps that are the same at every call."""
        total = len(self.x0)
        rows = torch.linspace(0, total - 1, min(count, total), dtype=torch.float64).round().long()
        return [self.draw(part, hashed_generator(self.seed, 2, i)) for i, part in enumerate(rows.split(chunk))]
