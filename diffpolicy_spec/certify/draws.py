"""Drawing many chunks of a few observations with one sampler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec.noise import draw_noise
from diffpolicy_spec.samplers import BoundSampler
from diffpolicy_spec.seeds import hashed_generator

__all__ = ["Cost", "draw_chunks"]


@dataclass(frozen=True)
class Cost:
    """What the chunks of one sampler cost.

    Attributes:
        chunks: how many were drawn.
        calls, rows: sequential network calls and rows evaluated, mean of a chunk.
        seconds: wall-clock of all of them, in batches.
    """

    chunks: int
    calls: float
    rows: float
    seconds: float


def draw_chunks(
    policy: Any,
    sampler: BoundSampler,
    conditions: Tensor,
    count: int,
    *,
    seed: tuple[int, ...],
    batch: int = 256,
    plans: Tensor | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> tuple[Tensor, Cost]:
    """`count` chunks of each of the conditions (O, C): (O, count, Tp, Da) float32 on the CPU, and what they cost.

    Args:
        policy: a `DiffusionPolicy`.
        seed: numbers that name this stream of noise; another tuple is independent of it.
        batch: chains per call of the sampler, of several observations at once.
        plans: (O, P, Tp, Da) x0 to warm-start with. Every second chain gets one of them, in turn; the others get none.
        progress: wraps the batches, for a progress bar.
    """
    shape = (policy.config.horizon, policy.config.action_dim)
    owner = torch.arange(len(conditions)).repeat_interleave(count)
    number = torch.arange(count).repeat(len(conditions))
    chunks, calls, rows = [], 0, 0
    begin = time.perf_counter()
    for i in progress(range(0, len(owner), batch)):
        who, which = owner[i : i + batch], number[i : i + batch]
        generator = hashed_generator(*seed, i)
        noise = draw_noise((len(who), *shape), sampler.schedule, generator, device=policy.device)
        warm = None
        if plans is not None:
            warm = plans[who, (which // 2) % plans.shape[1]].clone()
            warm[which % 2 == 0] = torch.nan
            warm = warm.to(policy.device)
        condition = conditions[who].to(policy.device)
        draft = policy.drafter(condition) if sampler.uses_draft else None
        sample = sampler(policy.denoiser(condition), noise, generator=generator, warm_start=warm, draft=draft)
        chunks.append(sample.x0.to("cpu", torch.float32))
        calls, rows = calls + int(sample.stats.calls.sum()), rows + int(sample.stats.evaluations.sum())
    cost = Cost(len(owner), calls / len(owner), rows / len(owner), time.perf_counter() - begin)
    return torch.cat(chunks).view(len(conditions), count, *shape), cost
