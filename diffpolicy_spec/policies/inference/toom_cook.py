"""Toom-Cook's short convolutions: m outputs of an r-tap filter for m + r - 1 products instead of m r.

Winograd, "Arithmetic Complexity of Computations", 1980; Lavin & Gray, arXiv 1509.09308 (F(m, r) in their notation).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

__all__ = ["toom_cook"]

# In the order of the rounding error they bring; infinity comes last, by itself.
_POINTS = [Fraction(p) for p in ("0", "1", "-1", "2", "-2", "1/2", "-1/2")]


def toom_cook(m: int, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices with y = A [(G w) * (B x)] for the correlation y_i = sum_k w_k x_{i+k}, i < m, k < r.

    With E_k the values of polynomials of k coefficients at n = m + r - 1 points, the product of polynomials is
    E_n^-1 [(E_r w) * (E_m z)]; the correlation is its transpose in z (Tellegen): A = E_m', G = E_r, B = E_n^-T. Rows of
    G are scaled to unit sum of magnitudes, and B the other way, so that G w is of the size of w.

    Returns:
        A: (m, n), G: (n, r), B: (n, n), float64, exact up to their rounding.

    Raises:
        ValueError: n - 1 points are more than there are.
    """
    n = m + r - 1
    if n - 1 > len(_POINTS):
        raise ValueError(f"F({m}, {r}) needs {n - 1} points and there are {len(_POINTS)}: use shorter tiles")
    points = _POINTS[: n - 1]
    inverse = _inverse(_values(points, n))
    scale = [sum(abs(v) for v in row) for row in _values(points, r)]
    G = [[v / s for v in row] for row, s in zip(_values(points, r), scale, strict=True)]
    B = [[inverse[j][i] * scale[i] for j in range(n)] for i in range(n)]
    return _tensor(_values(points, m)).T.contiguous(), _tensor(G), _tensor(B)


def _values(points: Sequence[Fraction], k: int) -> list[list[Fraction]]:
    """(n, k): powers 0 .. k-1 of every point; at infinity, the leading coefficient."""
    return [[p**i for i in range(k)] for p in points] + [[Fraction(i == k - 1) for i in range(k)]]


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """Gauss and Jordan, exactly."""
    n = len(matrix)
    rows = [[*row, *(Fraction(i == j) for j in range(n))] for i, row in enumerate(matrix)]
    for c in range(n):
        pivot = next(i for i in range(c, n) if rows[i][c])
        rows[c], rows[pivot] = rows[pivot], rows[c]
        rows[c] = [v / rows[c][c] for v in rows[c]]
        for i in range(n):
            if i != c:
                rows[i] = [v - rows[i][c] * w for v, w in zip(rows[i], rows[c], strict=True)]
    return [row[n:] for row in rows]


def _tensor(rows: list[list[Fraction]]) -> Tensor:
    return torch.tensor([[float(v) for v in row] for row in rows], dtype=torch.float64)
