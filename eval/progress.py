"""Progress bars, one per cell, with the successes and the latency so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from diffpolicy_spec.eval.records import ChunkRecord, EpisodeRecord
from diffpolicy_spec.optional import require

__all__ = ["ProgressBar"]

RECENT = 1000  # chunks whose median latency is shown: a running one over all would cost more and more


class ProgressBar:
    """A tqdm bar over the episodes of a cell.

    Args:
        label: of the cell.
        total: episodes of the run.
        done: of these, finished earlier.
        successes: among them.
    """

    def __init__(self, label: str, total: int, done: int = 0, successes: int = 0) -> None:
        tqdm = require("tqdm", extra="sim", needed_by="the progress bar").tqdm
        self._bar = tqdm(total=total, initial=done, desc=label, unit="episode", dynamic_ncols=True)
        self._successes, self._ms = successes, deque[float](maxlen=RECENT)
        self._show(done)

    def episode(self, record: EpisodeRecord, chunks: Iterable[ChunkRecord]) -> None:
        """Count a finished episode."""
        self._successes += record.success
        self._ms.extend(chunk.latency_ms for chunk in chunks)
        self._show(self._bar.n + 1)
        self._bar.update()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _show(self, episodes: int) -> None:
        latency = f", p50 {np.median(self._ms):.1f} ms" if self._ms else ""
        self._bar.set_postfix_str(f"success {self._successes}/{episodes}{latency}", refresh=False)
