"""Kolmogorov-Smirnov on one-dimensional views of a chunk: random projections, principal components, extremes."""

from __future__ import annotations

import torch
from torch import Tensor

from diffpolicy_spec.seeds import hashed_generator

from .pool import Pool
from .score import Score

__all__ = ["extremes_test", "kolmogorov_p", "ks_distances", "projections_test"]

_RANDOM, _PRINCIPAL = 12, 4


def projections_test(pool: Pool, permutations: int) -> Score:
    """KS on random projections: 12 of standardised and 12 of whitened chunks, and on 4 principal components."""
    views = {}
    for name, x in (("projection", pool.z), ("whitened projection", pool.w)):
        directions = torch.randn(x.shape[-1], _RANDOM, generator=hashed_generator(17, x.shape[-1]))
        for i, view in enumerate((x @ directions).unbind(-1)):
            views[f"{name} {i}"] = view
    for i, view in enumerate(pool.w[..., :_PRINCIPAL].unbind(-1)):
        views[f"principal component {i}"] = view
    return _most_different(views, pool.n)


def extremes_test(pool: Pool, permutations: int) -> Score:
    """KS on the largest and smallest coordinate, two norms, and the largest step from one action to the next.

    Coordinates and steps are standardised ones. The whitened norm is sensitive to noise in directions in which chunks
    hardly vary, as an unfinished iteration leaves it.
    """
    actions = pool.z.view(pool.chunks.shape)  # (O, N, Tp, Da)
    views = {
        "maximum": pool.z.amax(-1),
        "minimum": pool.z.amin(-1),
        "norm": torch.linalg.vector_norm(pool.z, dim=-1),
        "whitened norm": torch.linalg.vector_norm(pool.w, dim=-1),
    }
    if actions.shape[2] > 1:
        views["largest step"] = torch.linalg.vector_norm(actions.diff(dim=2), dim=-1).amax(-1)
    return _most_different(views, pool.n)


def _most_different(views: dict[str, Tensor], n: int) -> Score:
    """The smallest p of all views (O, N), times their number (Bonferroni).

    A view is standardised per observation, then observations are merged. With equal numbers of both samples in each
    observation the difference of the two empirical laws varies less than without: the p-value errs to the large side.
    """
    values = torch.stack(list(views.values()))  # (V, O, N)
    sd, mean = torch.std_mean(values, dim=-1, keepdim=True, correction=0)
    values = (values - mean) / sd.clamp(min=1e-6)
    distances = ks_distances(values[..., :n].flatten(1), values[..., n:].flatten(1))
    largest = int(distances.argmax())
    distance, size = float(distances[largest]), values[0, ..., :n].numel()
    p = min(1.0, len(views) * kolmogorov_p(distance, size, size))
    return Score(distance, p, f"KS distance {distance:.3f} in {list(views)[largest]}, largest of {len(views)} views")


def ks_distances(a: Tensor, b: Tensor) -> Tensor:
    """(V,) two-sample KS distances sup |F_a - F_b| of samples a: (V, n) and b: (V, m); ties are handled."""
    both, order = torch.cat([a, b], dim=1).sort(dim=1)
    rise, fall = (torch.full_like(x, 1 / x.shape[1], dtype=torch.float64) for x in (a, b))
    step = torch.cat([rise, -fall], dim=1)
    difference = step.gather(1, order).cumsum(1)
    last_of_tie = torch.ones_like(both, dtype=torch.bool)
    last_of_tie[:, :-1] = both[:, 1:] != both[:, :-1]
    return (difference.abs() * last_of_tie).amax(1)


def kolmogorov_p(distance: float, n: int, m: int) -> float:
    """P(KS distance >= distance) of equal laws, asymptotic (Kolmogorov 1933; Smirnov 1939).

    p = 2 sum_j (-1)^(j-1) exp(-2 j^2 x^2),    x = distance sqrt(n m / (n + m))
    """
    x = distance * (n * m / (n + m)) ** 0.5
    if x < 0.2:  # 1 - p < 1e-12 there, and the series converges slowly
        return 1.0
    j = torch.arange(1, 101, dtype=torch.float64)
    terms = torch.exp(-2 * j.square() * x * x)
    return float((2 * (terms[::2].sum() - terms[1::2].sum())).clamp(0, 1))
