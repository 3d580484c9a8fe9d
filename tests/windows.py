"""Windows as the loop makes them, for tests of what works on one."""

from __future__ import annotations

import torch

from diffpolicy_spec.window import Turn, Window, make_window


def window_at(
    starts: list[int], sizes: list[int], K: int, *, opening: bool = False, fixed: int | None = None
) -> Window:
    """Rows of chains 0, 1, ... at these steps; `fixed`: padded to so many rows, the host knows nothing else."""
    sizes = [min(n, K - k) for n, k in zip(sizes, starts, strict=True)]
    chain, n = torch.arange(len(starts)), max(sizes)
    n_opening = len(starts) if opening else 0
    if fixed is None:
        high = max(k + n for k, n in zip(starts, sizes, strict=True))
        turn = Turn(chain, n, min(starts), high, padded=min(sizes) < n, dense=False, opening=n_opening)
    else:
        turn = Turn(chain, fixed, opening=n_opening)
    return make_window(turn, torch.tensor(starts), torch.tensor(sizes), K)
