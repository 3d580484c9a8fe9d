"""Classifier two-sample test: can a classifier tell the samplers apart on chunks it has not seen?"""

from __future__ import annotations

import torch
from torch import Tensor

from diffpolicy_spec.seeds import hashed_generator

from .permutation import labels, permutation_p
from .pool import Pool
from .score import Score

__all__ = ["classifier_test", "features"]

_COSINES = 128
_RIDGE = 0.01  # of features whose squares sum to 4 per chunk


def features(pool: Pool) -> Tensor:
    """(O, N, F): four groups; F = D + 2 q + 128.

        z, the standardised chunk;    w, the whitened one;    w^2;
        cos(<a, z> / sqrt(D) + <b, condition> / sqrt(C) + c),    a, b ~ N(0, I), c ~ Uniform[0, 2 pi): 128 of them

    Centred within each observation, each group of mean square 1 in all: a classifier on them needs no offset, and its
    ridge prefers large common differences (z) without being blind to small directions (w).
    """
    D, C = pool.z.shape[-1], pool.conditions.shape[-1]
    generator = hashed_generator(19, D)
    a = torch.randn(D, _COSINES, generator=generator) / D**0.5
    b = torch.randn(C, _COSINES, generator=generator) / C**0.5
    c = 2 * torch.pi * torch.rand(_COSINES, generator=generator)
    cosines = torch.cos(pool.z @ a + (pool.conditions @ b + c).unsqueeze(1))
    groups = []
    for group in (pool.z, pool.w, pool.w.square(), cosines):
        centred = group - group.mean(1, keepdim=True)
        groups.append(centred / centred.square().sum(-1).mean().sqrt().clamp(min=1e-6))
    return torch.cat(groups, dim=-1)


def classifier_test(pool: Pool, permutations: int) -> Score:
    """C2ST (Lopez-Paz and Oquab 2017) with a ridge classifier, fitted on either half and scored on the other.

        g_A = Phi_A' s_A,   W_A = (Phi_A' Phi_A + ridge |A| I)^-1,   statistic = g_B' W_A g_A + g_A' W_B g_B

    the held-out margins, mean of both directions per chunk. Classifiers are fitted anew under every permutation of the
    labels: the p-value is exact. The held-out accuracy is reported to be read, not tested.
    """
    phi, n = features(pool), pool.n
    half = n // 2
    one = torch.cat([torch.arange(half), n + torch.arange(half)])
    other = torch.cat([half + torch.arange(half), n + half + torch.arange(half)])
    folds = torch.stack([phi[:, one], phi[:, other]])  # (2, O, 2 half, F)
    groups, F = 2 * phi.shape[0], phi.shape[-1]
    rows = folds.transpose(0, 1).reshape(groups, 2 * half, F)  # groups: observation by observation, both folds of each

    def inverse(x: Tensor) -> Tensor:
        flat = x.reshape(-1, F).double()
        return torch.linalg.inv(flat.T @ flat + _RIDGE * len(flat) * torch.eye(F, dtype=torch.float64)).float()

    W = [inverse(fold) for fold in folds]
    both, size = W[0] + W[1], half * groups

    def moments(signs: Tensor) -> tuple[Tensor, Tensor]:
        g = torch.einsum("bgn,gnf->gbf", signs, rows)
        return g[0::2].sum(0), g[1::2].sum(0)  # (b, F) of fold A and of fold B

    def statistic(signs: Tensor) -> Tensor:
        g_a, g_b = moments(signs)
        return ((g_a @ both) * g_b).sum(-1) / (2 * size)

    observed, p = permutation_p(statistic, half, groups, permutations)
    s = labels(half)
    g_a, g_b = moments(s.expand(1, groups, -1))
    margins = torch.stack([folds[1] @ (W[0] @ g_a[0]), folds[0] @ (W[1] @ g_b[0])]) * s
    accuracy = float((margins > 0).double().mean())
    return Score(observed, p, f"held-out accuracy {100 * accuracy:.1f} % of {2 * size} chunks (50 % is chance)")
