"""What of a noisy matrix is signal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["shrink"]


def shrink(s: Tensor, shape: Sequence[int], noise: float) -> Tensor:
    """Singular values (descending) of a signal, from those of signal + noise of independent entries.

    With m >= n, beta = n / m, y = s / (noise sqrt(m)): sqrt((y^2 - beta - 1)^2 - 4 beta) / y above y = 1 + sqrt(beta),
    0 below, in units of noise sqrt(m): the least Frobenius error (Gavish and Donoho 2017, arXiv 1405.7511).
    """
    if noise <= 0:
        return s
    m, n = max(shape), min(shape)
    beta, unit = n / m, noise * m**0.5
    y = s / unit
    inner = ((y**2 - beta - 1) ** 2 - 4 * beta).clamp(min=0).sqrt()
    return torch.where(y > 1 + beta**0.5, unit * inner / y, 0.0)
