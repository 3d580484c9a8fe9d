"""Finishing chains early: a few DDIM steps from where they stand to x0. Not exact; it is what keeps a deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .chains import Chains

__all__ = ["DEFAULT_FINISH_STEPS", "finish"]

DEFAULT_FINISH_STEPS = 4
"""Network calls that finish a chain where nothing else is asked for."""

NOTHING_BELOW = 0.05
"""Where abar is below this, predictions of x0 are next to nothing but the network's error, divided by sqrt(abar)."""


@torch.no_grad()
def finish(chains: Chains, which: Tensor, steps: int = DEFAULT_FINISH_STEPS) -> int:
    """Bring chains to their end in `steps` network calls, whatever is left of them (fewer where less is left).

    DDIM with eta = 0 (Song et al. 2021, eq. 12) jumps from step i to step j of the chain,

        x_j = sqrt(abar_j) x0 + sqrt(1 - abar_j) eps,    eps = (x_i - sqrt(abar_i) x0') / sqrt(1 - abar_i)

    with x0' the prediction at x_i and x0 the same, clipped as the scheduler clips it; the last jump ends at x0. Of n
    calls number i is at step k + i (K - k) / (n - 1/2): jumps of equal length, the last one half as long. From states
    of nothing but noise a jump with x0 = 0, the middle of the normalised range, costs no call. Of a few ways to spread
    few calls this one was nearest to the exact law (benchmarks/deadlines.py measures it). Inpainted coordinates stay as
    they are given.

    The chains stand at step K then, `finished_at` says where they were left, and the calls are counted.

    Args:
        chains: under way.
        which: (b,) long, each chain once; those that are done already stay as they are.
        steps: calls at most.

    Returns:
        the calls it took.

    Raises:
        ValueError: steps below 1.
    """
    if steps < 1:
        raise ValueError(f"a chain is finished by at least 1 step, got {steps}")
    schedule, tables, left_at, x = chains.schedule, chains.tables, chains.k[which], chains.x[which]
    K, none = schedule.num_steps, torch.zeros_like(left_at)
    some = (schedule.abar >= NOTHING_BELOW).nonzero()
    k = torch.where(left_at < K, left_at.clamp(min=int(some[0]) if len(some) else K - 1), K)
    of_noise = ((1 - _at(tables.abar, k)) / (1 - _at(tables.abar, left_at))).sqrt()  # x0 = 0, eps = x / sqrt(1 - abar)
    x = torch.where((left_at < k).unsqueeze(-1), of_noise * x, x)
    n = (K - k).clamp(max=steps)
    calls = int(n.max())
    for i in range(calls):
        live, here = i < n, (k + _part(K - k, i, n)).clamp(max=K - 1)
        there = k + _part(K - k, i + 1, n)
        x0, raw = chains.networks.predict_clean(x, here, which, live)
        a, b = _at(tables.abar, here), _at(tables.abar, there)
        eps = (x - a.sqrt() * raw) / (1 - a).sqrt()
        jumped = torch.where((n == i + 1).unsqueeze(-1), x0, b.sqrt() * x0 + (1 - b).sqrt() * eps)
        x = torch.where(live.unsqueeze(-1), jumped, x)
        chains.record(which, here, live.long(), none, none)
    chains.x[which] = x
    chains.finished_at[which] = torch.where(left_at < K, left_at, chains.finished_at[which])
    chains.stand(which, torch.full_like(left_at, K))
    chains.networks.clock.lap("verify")
    return calls


def _at(table: Tensor, k: Tensor) -> Tensor:
    """(b, 1) of a table (K,) at steps k: (b,); at the last one for those beyond it."""
    return table[k.clamp(max=len(table) - 1)].unsqueeze(-1)


def _part(left: Tensor, i: int, n: Tensor) -> Tensor:
    """i / (n - 1/2) of what is left, to the nearest step."""
    n = 2 * n.clamp(min=1) - 1
    return torch.div(4 * i * left + n, 2 * n, rounding_mode="floor")
