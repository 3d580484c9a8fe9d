"""Gains as a sum of Kronecker products, time x action."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .matrices import Matrices
from .shrinkage import shrink

__all__ = ["Kronecker", "nearest_kronecker", "recompose"]


@dataclass(frozen=True, eq=False)
class Kronecker(Matrices):
    """G_k = sum_r T_kr (x) A_kr: how a change spreads over time, times how it spreads over the joints.

        (dx G)[t, c] = sum_r sum_s sum_a T_r[s, t] dx[s, a] A_r[a, c]

    R (Tp^2 + Da^2) numbers a step for D^2 = Tp^2 Da^2.

    Attributes:
        T: (K, Tp, Tp, R), T[k, t, s, r] from time s to time t.
        A: (K, Da, R, Da), A[k, a, r, c] from action dimension a to c.
    """

    name: ClassVar[str] = "kronecker"
    prefix: ClassVar[str] = "gains.kronecker."

    T: Tensor
    A: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        D = self.T.shape[1] * self.A.shape[1]
        return self.T.shape[0], D, D

    def multiply(self, rows: Tensor, low: int, high: int) -> Tensor:
        (n, b, D), (_, Tp, _, R), Da = rows.shape, self.T.shape, self.A.shape[1]
        x = rows.reshape(n, b, Tp, Da).transpose(1, 2).reshape(n, Tp * b, Da)
        x = torch.bmm(x, self.A[low:high].flatten(2)).view(n, Tp, b, R, Da)
        x = x.transpose(2, 3).reshape(n, Tp * R, b * Da)
        x = torch.bmm(self.T[low:high].flatten(2), x)
        return x.view(n, Tp, b, Da).transpose(1, 2).reshape(n, b, D)

    def check(self) -> None:
        T, A = self.T.shape, self.A.shape
        square = self.T.dim() == self.A.dim() == 4 and T[1] == T[2] and A[1] == A[3]
        if not square or T[0] != A[0] or T[3] != A[2]:
            raise ValueError(
                f"kronecker gains must be T (K, Tp, Tp, R) and A (K, Da, R, Da), got {self._shapes()}: calibrate again"
            )

    @staticmethod
    def bytes_stored(K: int, Tp: int, Da: int, terms: int) -> int:
        """Size of a file."""
        return 2 * K * terms * (Tp**2 + Da**2)


def nearest_kronecker(G: Tensor, Tp: int, noise: float, terms: int) -> tuple[Tensor, Tensor]:
    """The sum of at most `terms` Kronecker products next to G: (D, D) in the Frobenius norm, noise taken out.

    G rearranged, M[(s, t), (a, c)] = G[(s, a), (t, c)], makes a Kronecker product a matrix of rank one, so the answer
    is a singular value decomposition (Van Loan and Pitsianis 1993). For perturbations with sum dx' dx = n s^2 I it is
    also the least-squares fit to the pairs (dx, dm): the alternating one has nothing left to do.

    Args:
        noise: standard error of an entry of G; singular values are shrunk by what it adds to them.

    Returns:
        T (Tp, Tp, R) and A (Da, R, Da) with R = min(terms, Tp^2, Da^2), as in `Kronecker`; unused terms are 0.
    """
    D = G.shape[0]
    Da = D // Tp
    M = G.view(Tp, Da, Tp, Da).permute(0, 2, 1, 3).reshape(Tp**2, Da**2)
    u, s, vh = torch.linalg.svd(M, full_matrices=False)
    R = min(terms, len(s))
    root = shrink(s, M.shape, noise)[:R].sqrt()
    T = (u[:, :R] * root).view(Tp, Tp, R).transpose(0, 1)
    A = (root[:, None] * vh[:R]).view(R, Da, Da).transpose(0, 1)
    return T.contiguous(), A.contiguous()


def recompose(T: Tensor, A: Tensor) -> Tensor:
    """(D, D) from T (Tp, Tp, R) and A (Da, R, Da)."""
    Tp, _, R = T.shape
    Da = A.shape[0]
    M = T.transpose(0, 1).reshape(Tp**2, R) @ A.transpose(0, 1).reshape(R, Da**2)
    return M.view(Tp, Tp, Da, Da).permute(0, 2, 1, 3).reshape(Tp * Da, Tp * Da)
