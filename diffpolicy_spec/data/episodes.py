"""Demonstrations in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.data.frames import Frames

__all__ = ["Episode", "fingerprint", "stack_actions", "stack_obs"]


@dataclass(frozen=True)
class Episode:
    """One demonstration of N steps.

    Attributes:
        name: as in the file, e.g. "demo_3"; for messages.
        obs: key -> (N, d) float32; `obs[k][i]` is what was seen before `actions[i]`.
        actions: (N, Da) float32, in the policy's representation.
        images: camera -> N images, left in their file.

    Raises:
        DataError: no steps, arrays of different lengths, or values that are not finite.
    """

    name: str
    obs: Mapping[str, NDArray[np.float32]]
    actions: NDArray[np.float32]
    images: Mapping[str, Frames] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.actions) == 0:
            raise DataError(f"{self.name} has no steps")
        for key, values in {**self.obs, "actions": self.actions}.items():
            if values.ndim != 2 or len(values) != len(self):
                raise DataError(f"{self.name}: '{key}' has shape {values.shape}, expected ({len(self)}, d)")
            if not np.isfinite(values).all():
                row = int(np.argmin(np.isfinite(values).all(axis=1)))
                raise DataError(f"{self.name}: '{key}' holds NaN or infinity, first at step {row}")
        for camera, frames in self.images.items():
            if len(frames) != len(self):
                raise DataError(f"{self.name}: '{camera}' has {len(frames)} images, expected {len(self)}")

    def __len__(self) -> int:
        return len(self.actions)


def stack_obs(episodes: Sequence[Episode], key: str) -> NDArray[np.float32]:
    """(sum of N, d): one observation key of all episodes, one after the other."""
    return np.concatenate([episode.obs[key] for episode in episodes])


def stack_actions(episodes: Sequence[Episode]) -> NDArray[np.float32]:
    """(sum of N, Da)."""
    return np.concatenate([episode.actions for episode in episodes])


def fingerprint(episodes: Sequence[Episode]) -> str:
    """SHA-256 over all arrays, and of images their shapes and each episode's first.

    Tells whether two runs saw the same data, wherever the file lay.

    Raises:
        DataError: images that cannot be read.
    """
    digest = hashlib.sha256()
    for episode in episodes:
        for name, values in [*episode.obs.items(), ("actions", episode.actions)]:
            digest.update(f"{name}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        for camera, frames in episode.images.items():
            digest.update(f"{camera}{len(frames)}{frames.shape}".encode())
            digest.update(np.ascontiguousarray(frames.read([0])).tobytes())
    return digest.hexdigest()
