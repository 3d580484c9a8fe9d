"""Agreement of mode choice: do both samplers choose the same ways of doing it, equally often?"""

from __future__ import annotations

import torch
from torch import Tensor

from .permutation import permutation_p
from .pool import Pool
from .score import Score

__all__ = ["find_modes", "modes_test"]

_COMPONENTS, _LARGEST, _SWEEPS = 8, 4, 25


def find_modes(points: Tensor) -> Tensor:
    """(N,) cluster numbers of points (N, d): k-means with the k in 2 ... 4 of the best variance ratio.

    The criterion is Calinski and Harabasz's (1974): (between / (k - 1)) / (within / (N - k)). k-means starts from
    quantiles of the first coordinate and, as a second try, from points far from each other; the tighter result counts.
    Starts do not depend on the order of the points, so the clusters do not know the samplers.
    """
    N = len(points)
    total = float((points - points.mean(0)).square().sum())
    best, found = -1.0, torch.zeros(N, dtype=torch.long)
    for k in range(2, min(_LARGEST, N - 1) + 1):
        tries = [_k_means(points, start) for start in (_quantile_start(points, k), _spread_start(points, k))]
        within, clusters = min(tries, key=lambda result: result[0])
        ratio = ((total - within) / (k - 1)) / max(within / (N - k), 1e-12)
        if ratio > best:
            best, found = ratio, clusters
    return found


def _quantile_start(points: Tensor, k: int) -> Tensor:
    groups = points[points[:, 0].argsort()].tensor_split(k)
    return torch.stack([group.mean(0) for group in groups])


def _spread_start(points: Tensor, k: int) -> Tensor:
    centres = [points[(points - points.mean(0)).square().sum(1).argmax()]]
    while len(centres) < k:
        nearest = torch.cdist(points, torch.stack(centres)).amin(1)
        centres.append(points[nearest.argmax()])
    return torch.stack(centres)


def _k_means(points: Tensor, centres: Tensor) -> tuple[float, Tensor]:
    """Lloyd's iterations: the sum of squared distances to the centres, and each point's cluster."""
    for _ in range(_SWEEPS):
        member = torch.nn.functional.one_hot(torch.cdist(points, centres).argmin(1), len(centres)).to(points.dtype)
        counts = member.sum(0).unsqueeze(1)
        moved = torch.where(counts > 0, member.T @ points / counts.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    nearest, clusters = torch.cdist(points, centres).min(1)
    return float(nearest.square().sum()), clusters


def modes_test(pool: Pool, permutations: int) -> Score:
    """Chi-square of mode counts, summed over observations, by permutation.

        chi2 = sum over observations and modes of (x - y)^2 / (x + y),   x and y the counts of the two samplers

    Modes are clusters of the pooled chunks in the plane of their leading principal components. Where an observation
    has one mode only, the clusters cut it into parts: still a valid test, of a coarser kind.
    """
    flat = pool.z.flatten(0, 1)
    _, _, axes = torch.linalg.svd(flat.T @ flat)  # axes of z, not whitened: modes lie along large variance
    points = pool.z @ axes[:_COMPONENTS].T
    clusters = torch.stack([find_modes(observation) for observation in points])
    member = torch.nn.functional.one_hot(clusters, _LARGEST).float()  # (O, N, 4)
    counts = member.sum(1).clamp(min=1)

    def statistic(signs: Tensor) -> Tensor:
        difference = signs.transpose(0, 1) @ member  # (O, b, 4)
        return (difference.square() / counts.unsqueeze(1)).sum((0, 2))

    observed, p = permutation_p(statistic, pool.n, len(member), permutations)
    share = member[:, : pool.n].mean(1) - member[:, pool.n :].mean(1)
    sizes = sorted(set((clusters.amax(1) + 1).tolist()))
    found = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return Score(
        observed, p,
        f"chi-square {observed:.1f}; {found} clusters an observation; largest difference of a share "
        f"{100 * float(share.abs().max()):.1f} %",
    )  # fmt: skip
