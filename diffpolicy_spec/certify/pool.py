"""Two samples per observation, pooled and brought to common units. Every test of the battery reads this.

All that is computed here is a symmetric function of the pooled chunks: it does not know which sampler a chunk is from.
So if both samplers draw from one law, the labels "reference" and "candidate" are exchangeable given everything here,
and a statistic may be compared with itself under permuted labels (or, for ranks, with its known law).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RESOLUTION", "Pool", "make_pool"]

RESOLUTION = 2.0**-14
"""Chunks are rounded to multiples of this before any test (normalised action units, whose range is [-1, 1]).

A clipped coordinate is an atom of the law; unrounded, the last bits of another batch size would look like another atom.
"""


@dataclass(frozen=True)
class Pool:
    """O observations, N = 2n chunks of each; the first n are the reference's, the others the candidate's.

    Attributes:
        chunks: (O, N, Tp, Da) float32, rounded to RESOLUTION.
        z: (O, N, D) chunks with mean 0 and standard deviation 1 per observation and coordinate, D = Tp * Da.
        w: (O, N, q) the leading q principal components of z within observations, each scaled to standard deviation 1.
        conditions: (O, C) conditions, standardised over the observations.
    """

    chunks: Tensor
    z: Tensor
    w: Tensor
    conditions: Tensor

    @property
    def n(self) -> int:
        """Chunks per observation and sampler."""
        return self.z.shape[1] // 2


def make_pool(reference: Tensor, candidate: Tensor, conditions: Tensor) -> Pool:
    """Pool the chunks (O, n, Tp, Da) of both samplers under conditions (O, C).

    q = min(D, O N / 8): principal components that so many chunks determine.

    Raises:
        ValueError: shapes do not fit, fewer than 8 chunks, or values that are not finite.
    """
    if reference.shape != candidate.shape or reference.dim() != 4:
        raise ValueError(
            f"reference and candidate must both be (O, n, Tp, Da), got {tuple(reference.shape)} and "
            f"{tuple(candidate.shape)}"
        )
    if conditions.shape[:1] != reference.shape[:1] or conditions.dim() != 2:
        raise ValueError(f"expected {len(reference)} conditions (O, C), got shape {tuple(conditions.shape)}")
    if reference.shape[1] < 8:
        raise ValueError(f"at least 8 chunks per observation and sampler are needed, got {reference.shape[1]}")
    both = torch.cat([reference, candidate], dim=1).to(torch.float32)
    if not torch.isfinite(both).all():
        raise ValueError("chunks have NaN or infinite values")
    chunks = (both / RESOLUTION).round() * RESOLUTION
    z = _standardise(chunks.flatten(2), dim=1, floor=RESOLUTION)
    return Pool(chunks=chunks, z=z, w=_whiten(z), conditions=_standardise(conditions.float(), dim=0, floor=1e-6))


def _standardise(x: Tensor, dim: int, floor: float) -> Tensor:
    sd, mean = torch.std_mean(x, dim=dim, keepdim=True, correction=0)
    return (x - mean) / sd.clamp(min=floor)


def _whiten(z: Tensor) -> Tensor:
    """Principal components of z (O, N, D), scaled to unit variance: small-variance directions count like large ones."""
    flat = z.flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    q = max(1, min(z.shape[-1], len(flat) // 8))
    values, vectors = values[-q:].flip(0), vectors[:, -q:].flip(1)
    scale = values.clamp(min=1e-6 * float(values[0]) + 1e-12).sqrt()
    return (flat @ vectors / scale).float().view(*z.shape[:2], q)
