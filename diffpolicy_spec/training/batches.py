"""From episodes to what the network sees at a step, which is a function of (seed, step) alone.

Nothing about the order of the data, the timesteps, the noise or the crops has to be saved to continue a run exactly:
step n draws the same numbers whether the run got there in one go or was killed on the way, and whether one process
takes the whole batch or several take parts of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffpolicy_spec.data.episodes import Episode, stack_actions, stack_obs
from diffpolicy_spec.data.sequences import Sequences, cut_sequences
from diffpolicy_spec.policies.conditioning import condition
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.normalizer import Fields, LinearNormalizer, fit_limits, identity_columns
from diffpolicy_spec.seeds import hashed_generator
from diffpolicy_spec.training.order import Order, Share

__all__ = ["Batch", "Batches", "TrainingData", "cut_for", "fit_normalizer", "prepare"]


@dataclass(frozen=True)
class Batch:
    """N sequences with noise and timesteps.

    Attributes:
        condition: (N, C) what the network is told; with cameras (N, To * d), the low-dimensional observations of each
            step, normalised, to which the encoder's features are joined.
        x0, noise: (N, T, D).
        t: (N,) long.
        known: (T, D) bool, what the network is given of every plan; None: nothing.
        frames: (N, To) long, where the images are; None without cameras.
        images: camera -> (N, To, H, W, C) uint8.
        crops: seeds of what each sequence's crops are drawn from.
    """

    condition: Tensor
    x0: Tensor
    noise: Tensor
    t: Tensor
    known: Tensor | None = None
    frames: Tensor | None = None
    images: Mapping[str, Tensor] = field(default_factory=dict)
    crops: Sequence[int] = ()


@dataclass(frozen=True)
class TrainingData:
    """All S sequences as the network takes them; `condition`, `x0`, `known`, `frames` as in `Batch`."""

    condition: Tensor
    x0: Tensor
    known: Tensor | None
    frames: Tensor | None

    def __len__(self) -> int:
        return len(self.x0)

    def to(self, device: torch.device | str) -> TrainingData:
        """The numbers on a device; frames stay where files are read."""
        known = None if self.known is None else self.known.to(device)
        return TrainingData(self.condition.to(device), self.x0.to(device), known, self.frames)


def fit_normalizer(episodes: Sequence[Episode], config: PolicyConfig) -> LinearNormalizer:
    """Limits to [-1, 1] for every key; the rotation columns of absolute_rot6d actions stay as they are.

    Those are rows of rotation matrices: within [-1, 1] already, and scaling them one by one would skew them. Images go
    from [0, 1] to [-1, 1].
    """
    params = {key: fit_limits(stack_obs(episodes, key)) for key in config.obs_dims}
    action = fit_limits(stack_actions(episodes))
    if config.action_repr == "absolute_rot6d":
        action = identity_columns(action, [10 * arm + i for arm in range(config.action_dim // 10) for i in range(3, 9)])
    images = {camera: _image_range(shape[0]) for camera, shape in config.image_shapes.items()}
    return LinearNormalizer({**params, **images, "action": action})


def _image_range(channels: int) -> Fields:
    return {"scale": torch.full((channels,), 2.0), "offset": torch.full((channels,), -1.0)}


def cut_for(config: PolicyConfig, episodes: Sequence[Episode]) -> Sequences:
    """The sequences that a policy of this config is trained on.

    Raises:
        DataError: see `cut_sequences`.
    """
    return cut_sequences(
        episodes,
        [key for key in config.feature_order if key in config.obs_dims],
        horizon=config.horizon,
        n_obs_steps=config.n_obs_steps,
        n_action_steps=config.n_action_steps,
        first_action=config.first,
        # The plans of inpainting hold an observation a step.
        obs_steps=config.horizon if config.conditioning == "inpainting" else None,
    )


def prepare(sequences: Sequences, config: PolicyConfig, normalizer: LinearNormalizer) -> TrainingData:
    """All sequences of `cut_for`, normalised."""
    keys = [key for key in config.feature_order if key in config.obs_dims]
    parts = torch.split(sequences.obs, [config.obs_dims[key] for key in keys], dim=-1)
    normalized = [normalizer.normalize(key, part) for key, part in zip(keys, parts, strict=True)]
    obs = torch.cat(normalized or [sequences.obs], dim=-1)
    x0 = normalizer.normalize("action", sequences.actions)
    if config.image_shapes:
        return TrainingData(obs.flatten(1), x0, None, sequences.frames)
    if config.conditioning != "inpainting":
        return TrainingData(condition(obs, config)[0], x0, None, None)
    x0 = torch.cat([x0, obs], dim=-1)
    known = torch.zeros(x0.shape[1:], dtype=torch.bool)
    known[: config.n_obs_steps, config.action_dim :] = True
    return TrainingData(x0.new_zeros(len(x0), 0), x0, known, None)


class Batches:
    """Random batches; each epoch goes through all sequences once, in its own order.

    The last, incomplete batch of an epoch is left out; with fewer sequences than a batch, the batch is all of them.

    Args:
        data: the sequences; batches are on its device.
        share: which part of each batch is this process's.
    """

    def __init__(
        self, data: TrainingData, *, batch_size: int, num_timesteps: int, seed: int, share: Share | None = None
    ) -> None:
        self.data, self.num_timesteps, self.seed = data, num_timesteps, seed
        self.share = Share() if share is None else share
        self.order = Order(len(data), batch_size, seed)

    def at(self, step: int) -> Batch:
        """The batch of step number `step`, without its images."""
        return self.draw(self.order.rows(step), hashed_generator(self.seed, 1, step), self.share)

    def draw(self, rows: Tensor, generator: torch.Generator, share: Share | None = None) -> Batch:
        """Timesteps, noise and crops for some sequences; of these, the part that `share` says."""
        data, device = self.data, self.data.x0.device
        part = slice(None) if share is None else share.of(len(rows))
        # Drawn on the CPU whatever the device, and for all rows whatever the part, so that a run depends on neither.
        noise = torch.randn((len(rows), *data.x0.shape[1:]), generator=generator)[part].to(device)
        t = torch.randint(self.num_timesteps, (len(rows),), generator=generator)[part].to(device)
        frames, crops = None, []
        if data.frames is not None:
            frames = data.frames[rows[part]]
            crops = torch.randint(2**62, (len(rows),), generator=generator)[part].tolist()
        rows = rows[part].to(device)
        return Batch(data.condition[rows], data.x0[rows], noise, t, data.known, frames, crops=crops)

    def evenly(self, count: int, chunk: int) -> list[Batch]:
        """At most `count` sequences spread evenly, with noise and timesteps that are the same at every call."""
        total = len(self.data)
        rows = torch.linspace(0, total - 1, min(count, total), dtype=torch.float64).round().long()
        return [self.draw(part, hashed_generator(self.seed, 2, i)) for i, part in enumerate(rows.split(chunk))]
