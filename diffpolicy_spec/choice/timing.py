"""Whole policy calls of several samplers, timed side by side for one robot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffpolicy_spec.clock import clock
from diffpolicy_spec.samplers import BoundSampler
from diffpolicy_spec.seeds import hashed_generator

if TYPE_CHECKING:
    from diffpolicy_spec.policies import DiffusionPolicy

__all__ = ["Moments", "Timed", "is_faster", "time_samplers"]

_STREAM = 7  # of the noise of timed chunks


@dataclass(frozen=True)
class Moments:
    """What the robot sees at n moments, and what it planned before.

    Attributes:
        obs: key -> (n, To, d), in their own units.
        previous_plan: (n, T, Da) normalised, NaN for moments that begin an episode.
    """

    obs: Mapping[str, Tensor]
    previous_plan: Tensor

    def __len__(self) -> int:
        return self.previous_plan.shape[0]

    def at(self, i: int) -> Moments:
        """Moment i alone."""
        return Moments({key: value[i : i + 1] for key, value in self.obs.items()}, self.previous_plan[i : i + 1])


@dataclass(frozen=True)
class Timed:
    """Policy calls of one sampler.

    Attributes:
        seconds: (n,) a whole policy call of each chunk, the quicker of its repeats.
        parts: (n, 4) seconds of it in the network, drafting, verifying, and the host learning how to go on; NaN where
            rounds are captured.
        calls: (n,) network calls.
        rows: (n,) rows of these calls.
    """

    seconds: NDArray[np.float64]
    parts: NDArray[np.float64]
    calls: NDArray[np.float64]
    rows: NDArray[np.float64]

    @property
    def overhead(self) -> NDArray[np.float64]:
        """(n,) seconds outside the network; NaN where they are not known."""
        return self.seconds - self.parts[:, 0]


def time_samplers(
    policy: DiffusionPolicy,
    samplers: Sequence[BoundSampler],
    moments: Moments,
    chunks: Iterable[int],
    *,
    repeats: int = 2,
) -> list[Timed]:
    """Draw the chunks with every sampler, one observation at a time, in turns.

    Each chunk is drawn `repeats` times from the same noise: the work is the same, so the quicker time is the one with
    less of whatever else the machine did. Turns go forwards, then backwards; samplers with as many threads follow each
    other. Torch is left with the threads of the last one.
    """
    order = sorted(range(len(samplers)), key=lambda s: _threads(samplers[s]) or 0)
    for s in order:  # warm-up: tables, kernels, caches
        _draw(policy, samplers[s], moments.at(0), 0)
    best: list[list[_Call]] = [[] for _ in samplers]
    for i in chunks:
        moment = moments.at(i % len(moments))
        drawn: list[list[_Call]] = [[] for _ in samplers]
        for _ in range(repeats):
            for s in order:
                drawn[s].append(_draw(policy, samplers[s], moment, i))
            order.reverse()
        for calls, again in zip(best, drawn, strict=True):
            calls.append(min(again))
    return [Timed(*(np.array(column, dtype=np.float64) for column in zip(*calls, strict=True))) for calls in best]


class _Call(NamedTuple):
    """A policy call: seconds, those by part, network calls, rows."""

    seconds: float
    parts: tuple[float, float, float, float]
    calls: int
    rows: int


def _draw(policy: DiffusionPolicy, sampler: BoundSampler, moment: Moments, seed: int) -> _Call:
    generator = hashed_generator(_STREAM, seed)
    threads = _threads(sampler)
    if threads is not None:  # changing their number is no part of a chunk
        torch.set_num_threads(threads)
    begin = clock(policy.device)
    output = policy.predict_action(moment.obs, sampler=sampler, generator=generator, previous_plan=moment.previous_plan)
    took = clock(policy.device) - begin
    stats, time = output.sample.stats, output.sample.stats.time
    parts = (time.network, time.draft, time.verify, time.sync)
    return _Call(took, parts, int(stats.calls), int(stats.evaluations))


def _threads(sampler: BoundSampler) -> int | None:
    return None if sampler.config.runtime is None else sampler.config.runtime.threads


def is_faster(seconds: NDArray[np.float64], reference: NDArray[np.float64]) -> bool:
    """Whether chunks take less time than the same ones by the reference, beyond what chance would show.

    The mean saving per chunk must exceed twice its standard error (paired). (n,) seconds each.
    """
    saving = reference - seconds
    error = saving.std(ddof=1) / len(saving) ** 0.5 if len(saving) > 1 else 0.0
    return bool(saving.mean() > 2 * error)
