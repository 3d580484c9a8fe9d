"""One episode to run, what a worker must know for it, and what comes of it; all of it goes between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from diffpolicy_spec.eval.cells import Cell
from diffpolicy_spec.eval.records import ChunkRecord, EpisodeRecord
from diffpolicy_spec.runtime import RuntimeConfig
from diffpolicy_spec.samplers import SamplerConfig

if TYPE_CHECKING:
    from diffpolicy_spec.envs.config import EnvConfig

__all__ = ["Done", "Job", "Listener", "Work"]


@dataclass(frozen=True)
class Work:
    """What a worker must know to run episodes of a cell; picklable.

    Attributes:
        cell: what is held fixed.
        label: the cell's name in bars and messages.
        policy: a shipped policy's name or an absolute path.
        weights: which of the checkpoint's, see `load_policy`.
        env: its environment.
        sampler: its configuration, with everything decided.
        runtime: how the policy runs.
        device: of the policy.
        num_threads: torch threads.
        warmup_calls: policy calls that a process makes before its first episode of the cell; not counted.
        video: whether environments are made so that they can render.
    """

    cell: Cell
    label: str
    policy: str
    weights: str
    env: EnvConfig
    sampler: SamplerConfig
    runtime: RuntimeConfig
    device: str
    num_threads: int
    warmup_calls: int
    video: bool


@dataclass(frozen=True)
class Job:
    """One episode to run: the cell's id, the seed, and whether it is filmed."""

    cell: str
    seed: int
    film: bool = False


@dataclass(frozen=True)
class Done:
    """A finished episode.

    Attributes:
        job: what was asked.
        record, chunks: what came of it.
        environment: what it ran on, see `results.environment`.
        video: contents of an mp4; None where it was not filmed.
    """

    job: Job
    record: EpisodeRecord
    chunks: tuple[ChunkRecord, ...]
    environment: dict[str, Any] = field(repr=False)
    video: bytes | None = field(default=None, repr=False)


class Listener(Protocol):
    """Who is told how a run goes, in the process that drives it."""

    def dealt(self, job: Job) -> None:
        """A job is about to be taken up."""

    def finished(self, done: Done) -> None:
        """An episode is over."""
