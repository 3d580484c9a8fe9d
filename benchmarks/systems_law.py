"""How far a system's chunks are from the sequential sampler's law, next to how far the sequential sampler's own are."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SequentialLaw"]

# Of the root mean square standard deviation of all coordinates: nearly fixed ones must not outweigh the others.
FLOOR = 0.01
SPLITS, AT_ONCE = 1999, 250
LEVEL = 0.001


class SequentialLaw:
    """Energy distances to independent sequential chunks, pooled over observations.

        E = 2 mean|X - Y| - mean|X - X'| - mean|Y - Y'| = -w' M w,    M_ij = |z_i - z_j| / sqrt(D)

    (Szekely and Rizzo 2013; `diffpolicy_spec.certify.energy`), w = 1/#X for the system's chunks, -1/#Y for sequential
    ones. z: a chunk less the mean under its observation, in standard deviations of its coordinates; both estimated from
    sequential chunks that are used for nothing else, so z of an exact system and of the reference have one law. Pairs
    i = j count 0, so E of equal laws is above 0 by what so few chunks make it.

    Whether a system is told apart: its labels and the reference's are permuted within each observation. Under equal
    laws P(p <= a) <= a. What equal laws look like: sequential chunks in the system's place, permuted in the same way.

    Args:
        draws: (O, M + R + n, D) sequential chunks by observation.
        moments: M, chunks of an observation for mean and standard deviation.
        reference: R, chunks of an observation that systems are compared with; n are left, as many as a system has.

    Attributes:
        null: (SPLITS,) sorted, distances of sequential chunks from sequential chunks.
    """

    def __init__(self, draws: Tensor, moments: int, reference: int) -> None:
        draws = draws.double()
        known = draws[:, :moments]
        self._mean = known.mean(dim=1, keepdim=True)
        sd = known.var(dim=1).mean(dim=0).sqrt()
        self._sd = sd.clamp(min=FLOOR * float(sd.square().mean().sqrt()))
        others = self._standardise(draws[:, moments:])
        self._reference, n = others[:, :reference], others.shape[1] - reference
        labels = torch.cat([torch.ones(n), torch.zeros(reference)]).bool()
        order = torch.rand(SPLITS, len(draws), n + reference, generator=torch.Generator().manual_seed(20_505))
        splits = torch.cat([labels.expand(1, len(draws), -1), labels[order.argsort(dim=2)]])  # the true one first
        high, low = 1 / (len(draws) * n), -1 / (len(draws) * reference)
        self._weights = torch.where(splits, high, low).flatten(1).to(draws)
        self.null = self._distances(others[:, reference:])[1:].sort().values

    def distance(self, x: Tensor) -> tuple[float, float]:
        """E of a system's chunks x: (n O, D), chain j under observation j mod O, and its permutation p-value."""
        split = self._distances(self._standardise(x.double().view(-1, len(self._mean), x.shape[1]).transpose(0, 1)))
        exceeded = int((split[1:] >= split[0] * (1 - 1e-9)).sum())
        return float(split[0]), (1 + exceeded) / len(split)

    @property
    def levels(self) -> dict[str, float]:
        """Where equal laws lie: the middle 99 % and the median."""
        return {name: float(self.null.quantile(q)) for name, q in (("low", 0.005), ("median", 0.5), ("high", 0.995))}

    def _standardise(self, x: Tensor) -> Tensor:
        """x: (O, n, D)."""
        return (x - self._mean) / self._sd

    def _distances(self, z: Tensor) -> Tensor:
        """(1 + SPLITS,) E of z: (O, n, D) against the reference: as it is, then permuted."""
        both = torch.cat([z, self._reference], dim=1).flatten(0, 1)
        M = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist") / both.shape[1] ** 0.5
        parts = [-((w @ M) * w).sum(dim=1) for w in self._weights.split(AT_ONCE)]
        return torch.cat(parts).cpu()
