"""Inputs of the couplings' property tests: extreme means and scales, with the seed of every draw."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st

ROWS = 4_000
properties = settings(derandomize=True, deadline=None, database=None, max_examples=60)
laws = settings(properties, max_examples=30)  # of ROWS draws each

dtypes = st.sampled_from([torch.float32, torch.float64])
dims = st.one_of(st.sampled_from([1, 2, 512]), st.integers(1, 512))
distances = st.one_of(st.just(0.0), st.floats(-12.0, 6.0).map(lambda p: 10.0**p))
directions = st.sampled_from(["random", "one coordinate", "one huge coordinate", "all equal"])
seeds = st.integers(0, 2**31 - 1)


def unit(direction: str, dim: int, generator: torch.Generator) -> torch.Tensor:
    """(D,) float64 of norm 1; "one huge coordinate" outweighs the others by 1e6."""
    e = torch.randn(dim, generator=generator, dtype=torch.float64)
    if direction == "one coordinate":
        e = torch.zeros_like(e)
        e[dim // 2] = -1.0
    elif direction == "one huge coordinate":
        e[dim // 2] = 1e6
    elif direction == "all equal":
        e = torch.ones_like(e)
    return e / e.norm()


def draws(rows: int, dim: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """xi: (rows, D) and u: (rows,), the ends of [0, 1) among them."""
    xi = torch.randn(rows, dim, generator=generator, dtype=dtype)
    u = torch.rand(rows, generator=generator, dtype=dtype)
    u[0], u[1] = 0.0, 1 - torch.finfo(dtype).eps / 2
    return xi, u


def unit_rows(v: torch.Tensor) -> torch.Tensor:
    """(..., D) float64 v / |v|, scaled first so that nothing under- or overflows."""
    scaled = v.double() / v.double().abs().amax(-1, keepdim=True)
    return scaled / scaled.norm(dim=-1, keepdim=True)
