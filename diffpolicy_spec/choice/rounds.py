"""The rounds of a sampler, chain by chain, seen from outside: which rows the network was called with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffpolicy_spec.networks import Denoise
from diffpolicy_spec.noise import Noise
from diffpolicy_spec.samplers import BoundSampler
from diffpolicy_spec.stats import Sample

__all__ = ["Rounds", "Watched"]

_BLOCK = 256  # rows the network is given at once: many chains' rounds would fill the memory


@dataclass(frozen=True)
class Rounds:
    """R rounds of B chains with K steps, in the order in which they ran.

    Attributes:
        chain: (R,) which chain.
        start: (R,) the step it stood at.
        rows: (R,) rows of this chain in the call.
        committed: (R,) steps the round went forward.
        num_steps: K.
    """

    chain: NDArray[np.int64]
    start: NDArray[np.int64]
    rows: NDArray[np.int64]
    committed: NDArray[np.int64]
    num_steps: int

    @property
    def num_chains(self) -> int:
        """B."""
        return int(self.chain.max()) + 1

    def total(self, of_rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """(B,) sum over a chain's rounds of a value per round, of_rows: (R,)."""
        return np.bincount(self.chain, weights=of_rows, minlength=self.num_chains).astype(np.float64)

    @property
    def calls(self) -> NDArray[np.float64]:
        """(B,) network calls of each chain."""
        return self.total(np.ones(len(self.chain)))

    @property
    def evaluations(self) -> NDArray[np.float64]:
        """(B,) rows of each chain."""
        return self.total(self.rows.astype(np.float64))


class Watched:
    """A bound sampler that notes its network calls; goes wherever a `BoundSampler` goes."""

    def __init__(self, bound: BoundSampler) -> None:
        self._bound, self._calls = bound, list[tuple[Tensor, Tensor]]()

    def __call__(self, denoise: Denoise, noise: Noise | Tensor, **given: Any) -> Sample:
        """Draw as the sampler does; arguments are its own."""

        def noted(x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
            self._calls.append((t, chain))
            parts = zip(*(whole.split(_BLOCK) for whole in (x, t, chain)), strict=True)
            return torch.cat([denoise(*part) for part in parts])

        self._calls.clear()
        return self._bound(noted, noise, **given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bound, name)

    def rounds(self) -> Rounds:
        """The rounds of the last call.

        A call's rows of one chain are one round; it starts at their noisiest step, and went forward to where the next
        round of this chain starts.
        """
        schedule = self._bound.schedule
        K = schedule.num_steps
        step_of = {t: k for k, t in enumerate(schedule.timesteps.tolist())}
        chain, start, rows = [], [], []
        for t, belongs in self._calls:
            steps = np.array([step_of[value] for value in t.tolist()])
            present, index, counts = np.unique(belongs.cpu().numpy(), return_inverse=True, return_counts=True)
            first = np.full(len(present), K)
            np.minimum.at(first, index, steps)
            chain.append(present)
            start.append(first)
            rows.append(counts)
        chains, starts = np.concatenate(chain).astype(np.int64), np.concatenate(start)
        committed = np.empty_like(starts)
        upcoming = np.full(int(chains.max()) + 1, K)
        for i in range(len(chains) - 1, -1, -1):
            committed[i] = upcoming[chains[i]] - starts[i]
            upcoming[chains[i]] = starts[i]
        return Rounds(chains, starts, np.concatenate(rows).astype(np.int64), committed, K)
