"""Gains that act in a subspace, the same one for all steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .matrices import Matrices
from .shrinkage import shrink

__all__ = ["LowRank", "in_subspace"]


@dataclass(frozen=True, eq=False)
class LowRank(Matrices):
    """G_k = c_k I + U S_k U': what a step does beside a scalar, in R directions that all steps share.

    The gain of a Gaussian chunk has the same eigenvectors, its principal components, at every step; what changes from
    step to step is how far each is trusted. D R + K R^2 numbers for K D^2.

    Attributes:
        c: (K,).
        U: (D, R), orthonormal columns.
        S: (K, R, R).
    """

    name: ClassVar[str] = "lowrank"
    prefix: ClassVar[str] = "gains.lowrank."

    c: Tensor
    U: Tensor
    S: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.S.shape[0], self.U.shape[0], self.U.shape[0]

    def multiply(self, rows: Tensor, low: int, high: int) -> Tensor:
        return self.c[low:high, None, None] * rows + torch.bmm(rows @ self.U, self.S[low:high]) @ self.U.T

    def check(self) -> None:
        dims = (self.c.dim(), self.U.dim(), self.S.dim()) == (1, 2, 3)
        if not dims or tuple(self.S.shape) != (len(self.c), self.U.shape[1], self.U.shape[1]):
            raise ValueError(
                f"lowrank gains must be c (K,), U (D, R) and S (K, R, R), got {self._shapes()}: calibrate again"
            )

    @staticmethod
    def bytes_stored(K: int, D: int, rank: int) -> int:
        """Size of a file."""
        return 2 * (K + D * rank + K * rank**2)


def in_subspace(G: Tensor, U: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """c and S of the c I + U S U' next to G: (D, D), noise taken out of S; U: (D, R) with R < D.

    c is G's mean over the directions outside U. noise: standard error of an entry of G.
    """
    D, R = U.shape
    inside = U.T @ G @ U
    c = (G.trace() - inside.trace()) / (D - R)
    u, s, vh = torch.linalg.svd(inside - c * torch.eye(R, device=G.device))
    return c, (u * shrink(s, inside.shape, noise)) @ vh
