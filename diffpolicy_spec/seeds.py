"""Sources of random numbers that are a function of a few numbers, whatever was drawn before."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["hashed_generator"]


def hashed_generator(*numbers: int) -> torch.Generator:
    """A CPU generator for (seed, stream, ...); SeedSequence hashes: neighbouring numbers give unrelated states."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)  # manual_seed takes a signed 64-bit integer
