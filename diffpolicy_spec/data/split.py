"""Which episodes are kept for validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["FIXED_SPLIT", "split_by_seed"]

FIXED_SPLIT = 0
"""Seed of the split of datasets that name no validation episodes: one for training, calibration and certificates."""


def split_by_seed(seeds: Sequence[int], seed: int, valid_fraction: float = 0.1) -> tuple[list[int], list[int]]:
    """Indices into `seeds` for training and validation.

    Episodes are ranked by a number drawn from (seed, their own seed), so the split does not depend on their order.

    Returns:
        (train, valid), sorted; valid has round(valid_fraction * len(seeds)) entries, but one at least of two.
    """
    rank = [np.random.default_rng([seed, episode_seed]).random() for episode_seed in seeds]
    size = max(round(valid_fraction * len(seeds)), 1 if len(seeds) > 1 else 0)  # dps-train reads both parts
    valid = set(np.argsort(rank, kind="stable")[:size].tolist())
    return [i for i in range(len(seeds)) if i not in valid], sorted(valid)
