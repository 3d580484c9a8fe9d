"""Energy distance: sees any difference of two laws, given enough samples."""

from __future__ import annotations

import torch
from torch import Tensor

from .permutation import permutation_p
from .pool import Pool
from .score import Score

__all__ = ["energy_test"]


def energy_test(pool: Pool, permutations: int) -> Score:
    """Energy distance (Szekely and Rizzo 2013) of standardised chunks, mean over observations, by permutation.

        E = 2 mean|X - Y| - mean|X - X'| - mean|Y - Y'| = -s' M s / n^2,    M_ij = |z_i - z_j| / sqrt(D),  s = +-1

    M is centred in rows and columns first, which changes nothing (s sums to zero) but the rounding.
    """
    distances = torch.cdist(pool.z, pool.z) / pool.z.shape[-1] ** 0.5
    rows, columns = distances.mean(1, keepdim=True), distances.mean(2, keepdim=True)
    M = distances - rows - columns + distances.mean((1, 2), keepdim=True)

    def statistic(signs: Tensor) -> Tensor:
        s = signs.transpose(0, 1)  # (O, b, N)
        return -((s @ M) * s).sum(-1).mean(0) / pool.n**2

    observed, p = permutation_p(statistic, pool.n, len(M), permutations)
    return Score(observed, p, f"energy distance {observed:.2e}, mean of {len(M)} observations")
