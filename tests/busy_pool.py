"""A pool that is never at rest: chains join and leave at random while others are under way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from diffpolicy_spec import Schedule, draw_noise
from diffpolicy_spec.chains import Chains
from diffpolicy_spec.networks import Denoise, Networks
from diffpolicy_spec.pool import Pool, Share

Make = Callable[[Networks], Chains]


@dataclass(frozen=True)
class Served:
    """x0: (n, D) of the chains that were to stay, in the order they began; tenants: slot -> their numbers in turn."""

    x0: Tensor
    tenants: dict[int, list[int]]

    def successors(self) -> tuple[Tensor, Tensor]:
        """(m, D) samples, and those of the next chain in the same slot."""
        pairs = [pair for chain in self.tenants.values() for pair in pairwise(chain)]
        first, second = torch.tensor(pairs).T
        return self.x0[first], self.x0[second]


class AnyRows(Share):
    """Rows by a die of its own: exact, whatever it shows."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, at, most):
        return [int(self._rng.integers(1, n + 1)) for n in most]

    def saw(self, at, rows, committed):
        assert all(1 <= c <= n for n, c in zip(rows, committed, strict=True))


def pool_of(
    make: Make, denoise: Denoise, schedule: Schedule, dim: int, slots: int, *, draft: Denoise | None = None,
    share: Share | None = None,
) -> Pool:  # fmt: skip
    return Pool(make, Networks(denoise, schedule, (slots, dim, 1), torch.device("cpu"), draft=draft), share)


def serve(pool: Pool, schedule: Schedule, dim: int, n: int, seed: int, *, leavers: float = 0.2) -> Served:
    """n chains that stay to their end, and others that leave after a few rounds.

    Who leaves, and when, is settled before a chain begins: had it to do with how long a chain takes, what is left would
    not have the law.
    """
    rng, g = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    x0, tenants, stays, patience = torch.zeros(n, dim), defaultdict(list), dict[int, int](), dict[int, int]()
    begun = done = total = 0
    while done < n:
        b = min(int(rng.integers(0, pool.free + 1)), n - begun)
        if b:
            own = [torch.Generator().manual_seed(10**6 * seed + total + i) for i in range(b)]
            slots = pool.join(draw_noise((b, dim, 1), schedule, g), own)
            total += b
            for slot in slots:
                if rng.random() < leavers:
                    patience[slot] = int(rng.integers(1, 4))
                else:
                    stays[slot], begun = begun, begun + 1
                    tenants[slot].append(stays[slot])
        through = pool.round()
        staying = [slot for slot in through if slot in stays]
        if staying:
            sample = pool.sample(staying)
            x0[[stays.pop(slot) for slot in staying]] = sample.x0.flatten(1)
            done += len(staying)
        patience = {slot: left - 1 for slot, left in patience.items() if slot not in through}
        tired = [slot for slot, left in patience.items() if left == 0]
        for slot in tired:
            del patience[slot]
        pool.leave([*through, *tired])
    return Served(x0, dict(tenants))


