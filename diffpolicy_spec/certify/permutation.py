"""p-values by permuting labels within each observation."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from diffpolicy_spec.seeds import hashed_generator

__all__ = ["labels", "permutation_p"]

_BLOCK = 500
# Exceedances after which a p-value is known well enough: it is then above ENOUGH / permutations, far from rejection.
_ENOUGH = 100
_SEED = 20_505


def labels(n: int) -> Tensor:
    """(2n,) float32: +1 for the n chunks of the reference, -1 for the candidate's."""
    return torch.cat([torch.ones(n), -torch.ones(n)])


def permutation_p(statistic: Callable[[Tensor], Tensor], n: int, groups: int, permutations: int) -> tuple[float, float]:
    """The observed statistic and its one-sided permutation p-value, (1 + #{permuted >= observed}) / (1 + #permuted).

    Labels are permuted within groups (observations, or folds of them) of n + n chunks. Exact: under equal laws
    P(p <= a) <= a at every a the test can reject at. Counting stops early once 100 permutations have exceeded
    (Besag and Clifford 1991), which can only happen far above any threshold used here.

    Args:
        statistic: (b, groups, 2n) labels of +-1 -> (b,) values, large where the two samples differ.
        permutations: at most so many.
    """
    observed = float(statistic(labels(n).expand(1, groups, -1))[0])
    columns = _columns(n, groups)
    # Equal up to rounding counts as exceeded: the sums of a permutation that changes nothing differ in the last bits.
    bar = observed - 1e-6 * abs(observed)
    exceeded = done = 0
    while done < permutations and exceeded < _ENOUGH:
        size = min(_BLOCK, permutations - done)
        signs = _signs(n, done // _BLOCK)[:size]
        exceeded += int((statistic(signs[:, columns]) >= bar).sum())
        done += size
    return observed, (1 + exceeded) / (1 + done)


@functools.lru_cache(maxsize=64)
def _signs(n: int, block: int) -> Tensor:
    """(500, 2n) balanced labels; the same for every call, so that repeated batteries do not draw them anew."""
    order = torch.rand(_BLOCK, 2 * n, generator=hashed_generator(_SEED, n, block)).argsort(dim=1)
    return labels(n)[order]


@functools.lru_cache(maxsize=16)
def _columns(n: int, groups: int) -> Tensor:
    """(groups, 2n): each group reads a row of labels in an order of its own, so groups are permuted differently."""
    generator = hashed_generator(_SEED, n, groups, 1)
    return torch.stack([torch.randperm(2 * n, generator=generator) for _ in range(groups)])
