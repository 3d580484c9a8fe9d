"""Fitting each structure, step after step, to pairs (dx, dm): only dense gains ever take K D^2 numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .kronecker import Kronecker, nearest_kronecker, recompose
from .lowrank import LowRank, in_subspace
from .matrices import Dense, Matrices

__all__ = ["DenseFit", "Estimate", "Fit", "KroneckerFit", "LowRankFit", "Perturbations", "estimate", "least_squares"]

MAX_TERMS = 8
"""Kronecker terms at most: what more of them gained in calls was not seen, what they cost was."""


class Perturbations:
    """Directions that cover R^D evenly: rows of a randomly turned orthonormal basis, each of length sqrt(D).

    Every row has mean 0 and covariance I; D of them together have sum dx' dx = D I exactly, where independent normal
    ones leave an error of relative size sqrt(D / n) in every estimate made from n of them.
    """

    def __init__(self, D: int, generator: torch.Generator | None, device: torch.device) -> None:
        self._generator, self._device = generator, device
        self._source = device if generator is None else generator.device
        normal = torch.randn((D, D), generator=generator, device=self._source)
        q, r = torch.linalg.qr(normal)
        self._basis = q * r.diagonal().sign()  # uniform over the orthogonal group (Mezzadri 2007)

    def draw(self, n: int) -> Tensor:
        """(n, D). The basis is shuffled and mirrored anew for each D rows."""
        D, blocks = len(self._basis), []
        for first in range(0, n, D):
            rows, columns = (torch.randperm(D, generator=self._generator, device=self._source) for _ in range(2))
            signs = 2 * torch.randint(0, 2, (D,), generator=self._generator, device=self._source) - 1
            blocks.append(self._basis[rows[: n - first]][:, columns] * (signs * D**0.5))
        return torch.cat(blocks).to(self._device)


@dataclass(frozen=True)
class Estimate:
    """What the pairs of one step say about its gain.

    Attributes:
        G: (D, D), made more symmetric where the pairs do not speak against it.
        noise: standard error of an entry.
    """

    G: Tensor
    noise: float


def least_squares(dx: Tensor, dm: Tensor, ridge: float) -> Tensor:
    """(D, D) (sum dx' dx + ridge n s^2 I)^-1 sum dx' dm, from pairs (n, D); s^2: mean square of dx."""
    n, D = dx.shape
    penalty = ridge * n * float(dx.square().mean()) * torch.eye(D, device=dx.device)
    return torch.linalg.solve(dx.T @ dx + penalty, dx.T @ dm)


def estimate(dx: Tensor, dm: Tensor, ridge: float) -> Estimate:
    """The gain of one step from pairs (n, D) whose halves each cover R^D evenly.

    The halves' estimates differ by their noise: |G_1 - G_2| / 2 D is the standard error of an entry of the mean. An
    exact x0 has a symmetric derivative (Tweedie: sqrt(abar) / (1 - abar) Cov[x0 | x]); a network's is nearly so. The
    antisymmetric part counts as far as the halves agree about it: <N_1, N_2> / |N|^2 of it, the share that is no noise.
    """
    half = len(dx) // 2
    first, second = (_one(dx[part], dm[part], ridge) for part in (slice(half), slice(half, None)))
    (even1, odd1), (even2, odd2) = ((C / 2 + C.T / 2, C / 2 - C.T / 2) for C in (first, second))
    odd = (odd1 + odd2) / 2
    keep = ((odd1 * odd2).sum() / odd.square().sum().clamp(min=1e-30)).clamp(0, 1)
    difference = (even1 - even2) + keep * (odd1 - odd2)
    return Estimate((even1 + even2) / 2 + keep * odd, float(difference.norm()) / (2 * len(odd)))


def _one(dx: Tensor, dm: Tensor, ridge: float) -> Tensor:
    """Least squares where there are pairs enough, else the unbiased moment: E[dx' dm] = s^2 G for even dx."""
    n, D = dx.shape
    if n >= D:
        return least_squares(dx, dm, ridge)
    return dx.T @ dm / (n * float(dx.square().mean()) * (1 + ridge))


def _fit_to_pairs(
    dx: Tensor, dm: Tensor, ridge: float, nearest: Callable[[Estimate], tuple[tuple[Tensor, Tensor], Tensor]]
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """A structure's least squares: `nearest` turns an estimate into the structure's tensors and the (D, D) they mean.

    Where half of the pairs leaves directions of R^D out, an estimate has an error of the size of the gain itself.
    Estimating what the pairs have beyond the structure's first answer, and adding that, leaves one of the size of the
    rest: one round of iterative hard thresholding (Jain, Meka and Dhillon 2010, arXiv 0909.5457). More gained nothing.
    """
    step, G = nearest(estimate(dx, dm, ridge))
    if len(dx) // 2 < dx.shape[1]:
        beyond = estimate(dx, dm - dx @ G, ridge)
        step, G = nearest(Estimate(G + beyond.G, beyond.noise))
    return step, G


class Fit(Protocol):
    """A structure being fitted."""

    def add(self, dx: Tensor, dm: Tensor, ridge: float) -> Tensor:
        """Take the next step's pairs (n, D), made as for `estimate`; returns the step's gain as it will be, (D, D)."""

    def result(self) -> Matrices:
        """The matrices of all steps."""


class DenseFit:
    """Ridge regression over all pairs."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def add(self, dx: Tensor, dm: Tensor, ridge: float) -> Tensor:
        self._steps.append(least_squares(dx, dm, ridge))
        return self._steps[-1]

    def result(self) -> Dense:
        return Dense(torch.stack(self._steps))


class _NearestFit:
    """A fit that takes, step by step, what its structure has nearest to the estimate (`_nearest`)."""

    def __init__(self) -> None:
        self._steps: list[tuple[Tensor, Tensor]] = []

    def _nearest(self, found: Estimate) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """What is kept of the step, and the matrix it stands for."""
        raise NotImplementedError

    def add(self, dx: Tensor, dm: Tensor, ridge: float) -> Tensor:
        step, G = _fit_to_pairs(dx, dm, ridge, self._nearest)
        self._steps.append(step)
        return G


class KroneckerFit(_NearestFit):
    """As many Kronecker terms as stand out of the noise at any step, and fit into `max_bytes`."""

    def __init__(self, K: int, Tp: int, Da: int, max_bytes: int) -> None:
        each = Kronecker.bytes_stored(K, Tp, Da, 1)
        if each > max_bytes:
            raise ValueError(f"kronecker gains need {each / 1e6:.1f} MB a term, max_bytes is {max_bytes / 1e6:.1f} MB")
        super().__init__()
        self._Tp, self._terms = Tp, min(max_bytes // each, MAX_TERMS)

    def _nearest(self, found: Estimate) -> tuple[tuple[Tensor, Tensor], Tensor]:
        step = nearest_kronecker(found.G, self._Tp, found.noise, self._terms)
        return step, recompose(*step)

    def result(self) -> Kronecker:
        T, A = (torch.stack(part) for part in zip(*self._steps, strict=True))
        used = max(1, int((A.abs().amax((0, 1, 3)) > 0).sum()))  # terms are sorted: what no step uses is at the end
        return Kronecker(T[..., :used].contiguous(), A[:, :, :used].contiguous())


class LowRankFit(_NearestFit):
    """A scalar and a matrix in the subspace U: (D, R)."""

    def __init__(self, U: Tensor) -> None:
        super().__init__()
        self._U = U

    def _nearest(self, found: Estimate) -> tuple[tuple[Tensor, Tensor], Tensor]:
        c, S = in_subspace(found.G, self._U, found.noise)
        return (c, S), c * torch.eye(len(self._U), device=c.device) + self._U @ S @ self._U.T

    def result(self) -> LowRank:
        c, S = (torch.stack(part) for part in zip(*self._steps, strict=True))
        return LowRank(c, self._U, S)
