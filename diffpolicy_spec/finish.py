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


@torch.no_grad()
def finish(chains: Chains, which: Tensor, steps: int = DEFAULT_FINISH_STEPS) -> None:
    """Bring chains to their end in `steps` network calls, whatever is left of them (fewer where less is left).

    DDIM with eta = 0 (Song et al. 2021, eq. 12) jumps from step i to step j of the chain,

        x_j = sqrt(abar_j) x0 + sqrt(1 - abar_j) eps,    eps = (x_i - sqrt(abar_i) x0') / sqrt(1 - abar_i)

    with x0' the prediction at x_i and x0 the same, clipped as the scheduler clips it; the last jump ends at x0. The
    calls are spread evenly: of n, number i is at step k + i (K - k) / n. From k = 0 this is the DDIM sampler of
    diffusers with "trailing" timesteps. Inpainted coordinates stay as they are given.

    The chains stand at step K then, `finished_at` says where they were left, and the calls are counted.

    Args:
        chains: under way.
        which: (b,) long, each chain once; those that are done already stay as they are.
        steps: calls at most.

    Raises:
        ValueError: steps below 1.
    """
    if steps < 1:
        raise ValueError(f"a chain is finished by at least 1 step, got {steps}")
    K, at, x = chains.schedule.num_steps, chains.k[which], chains.x[which]
    left = K - at
    n = left.clamp(max=steps)
    abar = chains.tables.abar
    for i in range(int(n.max())):
        live = i < n
        here, there = ((at + _part(left, j, n)).clamp(max=K) for j in (i, i + 1))
        here = here.clamp(max=K - 1)
        x0, raw = chains.networks.predict_clean(x, here, which, live)
        a, b = (abar[k.clamp(max=K - 1)].unsqueeze(-1) for k in (here, there))
        eps = (x - a.sqrt() * raw) / (1 - a).sqrt()
        jumped = torch.where((there == K).unsqueeze(-1), x0, b.sqrt() * x0 + (1 - b).sqrt() * eps)
        x = torch.where(live.unsqueeze(-1), jumped, x)
        chains.record(which, here, live.long(), torch.zeros_like(at), torch.zeros_like(at))
    chains.x[which] = x
    chains.finished_at[which] = torch.where(left > 0, at, chains.finished_at[which])
    chains.stand(which, torch.full_like(at, K))
    chains.networks.clock.lap("verify")


def _part(left: Tensor, i: int, n: Tensor) -> Tensor:
    """i / n of what is left, to the nearest step."""
    n = n.clamp(min=1)
    return torch.div(2 * i * left + n, 2 * n, rounding_mode="floor")
