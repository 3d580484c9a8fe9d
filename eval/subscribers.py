"""What a rollout tells whoever listens, and the listener that keeps episodes and chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffpolicy_spec.eval.records import ChunkRecord, EpisodeRecord

__all__ = ["ChunkEvent", "EpisodeStart", "Finished", "Recorder", "StepEvent", "Subscriber"]


@dataclass(frozen=True)
class EpisodeStart:
    """An episode was reset.

    Attributes:
        seed: of the episode.
        order: its place in the list of seeds.
        observation: the first observation.
        frame: (H, W, 3) uint8, where the episode is filmed; else None.
    """

    seed: int
    order: int
    observation: dict[str, np.ndarray]
    frame: np.ndarray | None


@dataclass(frozen=True)
class ChunkEvent:
    """The policy returned a chunk.

    Attributes:
        record: what it cost.
        action: (N, Da) the actions about to be executed, in the environment's units: Ta of the chunk, or, where the
            world does not wait, what is done until it is there and what is left of it then.
        plan: (T, Da) the whole predicted horizon, in the same units.
    """

    record: ChunkRecord
    action: np.ndarray
    plan: np.ndarray


@dataclass(frozen=True)
class StepEvent:
    """The environment took a step. A slice of actions is executed in one go: its steps are told after the last.

    Attributes:
        seed: of the episode.
        step: index of the step in the episode.
        action: (Da,) what was executed.
        observation: what followed; images only where the policy looks.
        reward: of the step.
        frame: (H, W, 3) uint8, where the episode is filmed; else None.
    """

    seed: int
    step: int
    action: np.ndarray
    observation: dict[str, np.ndarray]
    reward: float
    frame: np.ndarray | None


class Subscriber:
    """Base of the listeners: every method may be left as it is. None is called while the policy is timed."""

    def on_episode_start(self, event: EpisodeStart) -> None:
        """After reset, before the first chunk."""

    def on_chunk(self, event: ChunkEvent) -> None:
        """After each policy call, once per episode that takes part."""

    def on_step(self, event: StepEvent) -> None:
        """After each environment step."""

    def on_episode_lost(self, seed: int) -> None:
        """The episode's environment is gone; what was told of it does not count, it begins anew later."""

    def on_episode_end(self, record: EpisodeRecord) -> None:
        """After the last step of an episode."""


Finished = Callable[[EpisodeRecord, tuple[ChunkRecord, ...]], None]
"""Takes a finished episode and its chunks."""


class Recorder(Subscriber):
    """Keeps the records of finished episodes and of their chunks.

    Args:
        finished: called with each finished episode and its chunks.

    Attributes:
        episodes: in the order in which they ended.
        chunks: in the same order, each episode's in its own.
    """

    def __init__(self, finished: Finished | None = None) -> None:
        self.episodes: list[EpisodeRecord] = []
        self.chunks: list[ChunkRecord] = []
        self._under_way: dict[int, list[ChunkRecord]] = {}
        self._finished = finished

    def on_chunk(self, event: ChunkEvent) -> None:
        self._under_way.setdefault(event.record.seed, []).append(event.record)

    def on_episode_lost(self, seed: int) -> None:
        self._under_way.pop(seed, None)

    def on_episode_end(self, record: EpisodeRecord) -> None:
        chunks = self._under_way.pop(record.seed, [])
        self.episodes.append(record)
        self.chunks += chunks
        if self._finished is not None:
            self._finished(record, tuple(chunks))
