"""What a rollout tells whoever listens, and the listeners that record episodes, chunks and progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from diffpolicy_spec.eval.records import ChunkRecord, EpisodeRecord
from diffpolicy_spec.optional import require

__all__ = ["ChunkEvent", "EpisodeStart", "EpisodeWriter", "ProgressBar", "Recorder", "StepEvent", "Subscriber"]


@dataclass(frozen=True)
class EpisodeStart:
    """An episode was reset.

    Attributes:
        seed: of the episode.
        order: its place in the list of seeds.
        env: the gymnasium environment it runs in; look, do not step.
        observation: the first observation.
    """

    seed: int
    order: int
    env: Any
    observation: dict[str, np.ndarray]


@dataclass(frozen=True)
class ChunkEvent:
    """The policy returned a chunk.

    Attributes:
        record: what it cost.
        action: (Ta, Da) the actions about to be executed, in the environment's units.
        plan: (T, Da) the whole predicted horizon, in the same units.
    """

    record: ChunkRecord
    action: np.ndarray
    plan: np.ndarray


@dataclass(frozen=True)
class StepEvent:
    """The environment took a step.

    Attributes:
        seed: of the episode.
        step: index of the step in the episode.
        action: (Da,) what was executed.
        observation: what followed.
        reward: of the step.
        env: the gymnasium environment; look, do not step.
    """

    seed: int
    step: int
    action: np.ndarray
    observation: dict[str, np.ndarray]
    reward: float
    env: Any


class Subscriber:
    """Base of the listeners: every method may be left as it is. None is called while the policy is timed."""

    def on_episode_start(self, event: EpisodeStart) -> None:
        """After reset, before the first chunk."""

    def on_chunk(self, event: ChunkEvent) -> None:
        """After each policy call, once per episode that takes part."""

    def on_step(self, event: StepEvent) -> None:
        """After each environment step."""

    def on_episode_end(self, record: EpisodeRecord) -> None:
        """After the last step of an episode."""

    def close(self) -> None:
        """After the last episode, or after a crash."""


class Recorder(Subscriber):
    """Keeps the records of all episodes and chunks in memory."""

    def __init__(self) -> None:
        self.episodes: list[EpisodeRecord] = []
        self.chunks: list[ChunkRecord] = []

    def on_chunk(self, event: ChunkEvent) -> None:
        self.chunks.append(event.record)

    def on_episode_end(self, record: EpisodeRecord) -> None:
        self.episodes.append(record)


class EpisodeWriter(Subscriber):
    """Appends each finished episode to a jsonl file at once, so that a crash loses none."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("w")

    def on_episode_end(self, record: EpisodeRecord) -> None:
        self._file.write(record.to_json() + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class ProgressBar(Subscriber):
    """A tqdm bar over episodes with the successes so far."""

    def __init__(self, label: str, total: int) -> None:
        tqdm = require("tqdm", extra="sim", needed_by="the progress bar").tqdm
        self._bar = tqdm(total=total, desc=label, unit="episode", dynamic_ncols=True)
        self._successes = 0

    def on_episode_end(self, record: EpisodeRecord) -> None:
        self._successes += record.success
        self._bar.set_postfix_str(f"success {self._successes}/{self._bar.n + 1}", refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()
