"""What a sampler reports about one call: frozen dataclasses whose fields carry their shapes and units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Sample", "SampleStats", "TimeSplit"]


@dataclass(frozen=True)
class TimeSplit:
    """Seconds of one sampler call for the whole batch, on the device's clock. Of a captured graph only total is known.

    Attributes:
        total: from the first to the last line of the sampler.
        network: inside `denoise`.
        draft: choosing the window, draft means and drafted states.
        verify: acceptance tests, corrections and what is remembered for later drafts.
        sync: the host learning where the chains are and preparing the next round.
    """

    total: float = 0.0
    network: float = 0.0
    draft: float = 0.0
    verify: float = 0.0
    sync: float = 0.0

    @property
    def other(self) -> float:
        """Seconds of bookkeeping outside network, draft, verify and sync."""
        return self.total - self.network - self.draft - self.verify - self.sync

    @property
    def overhead(self) -> float:
        """(total - network) / total: the share of the time that is not the network's."""
        return (self.total - self.network) / self.total if self.total > 0 else 0.0


@dataclass(frozen=True)
class SampleStats:
    """Counts per chain of a batch of B chains with K denoising steps.

    A *test* compares one drafted step with the true step; the last row of a round needs none, because nothing was
    drafted beyond it. Hence committed steps K = accepted + rejected + untested, and calls <= K.

    Attributes:
        timesteps: (K,) long, the training timestep of step k, in sampling order (largest first).
        calls: (B,) long, sequential network calls the chain took part in.
        evaluations: (B,) long, rows evaluated by the network.
        drafted: (B,) long, drafted steps that were sent to verification.
        accepted: (B,) long, drafted steps that were committed as drafted.
        rejected: (B,) long, drafted steps that were tested, failed and were corrected (one a round at most).
        draft_calls: (B,) long, sequential calls of a draft network the chain took part in; 0 without one.
        accepted_lengths: (B, K + 1) long, rounds by the number of drafted steps they committed.
        tested_at: (B, K) long, tests whose outcome counted, by step.
        accepted_at: (B, K) long, tests passed, by step.
        time: the time split of the whole batch.
        finished_at: (B,) long, the step from which on the chain was finished by DDIM to keep a deadline (`finish`); K
            where it was not. Its calls and evaluations are counted, its steps are neither accepted nor rejected.
    """

    timesteps: Tensor
    calls: Tensor
    evaluations: Tensor
    drafted: Tensor
    accepted: Tensor
    rejected: Tensor
    draft_calls: Tensor
    accepted_lengths: Tensor
    tested_at: Tensor
    accepted_at: Tensor
    time: TimeSplit
    finished_at: Tensor

    @property
    def inexact(self) -> Tensor:
        """(B,) bool, whether the chain was finished by DDIM: it is not a draw from the sampler's law."""
        return self.finished_at < self.num_steps

    @property
    def num_steps(self) -> int:
        """K, the denoising steps of the chain."""
        return int(self.timesteps.shape[0])

    @property
    def algorithmic_speedup(self) -> Tensor:
        """(B,) float, K / calls."""
        return self.num_steps / self.calls.to(torch.float64)

    @property
    def acceptance_rate(self) -> Tensor:
        """(B,) float, accepted / tests that counted; NaN where nothing was tested."""
        return self.accepted.to(torch.float64) / (self.accepted + self.rejected).to(torch.float64)

    @property
    def wasted(self) -> Tensor:
        """(B,) long, rows evaluated for drafted states that were then dropped: a call keeps its first row and those
        accepted."""
        return (self.evaluations - self.calls - self.accepted).clamp(min=0)

    @property
    def rejection_waste(self) -> Tensor:
        """(B,) float, rows evaluated for drafted states that were then dropped / rows evaluated."""
        return self.wasted.to(torch.float64) / self.evaluations.to(torch.float64)


@dataclass(frozen=True)
class Sample:
    """Action chunks and what they cost.

    Attributes:
        x0: (B, Tp, Da) float32, the samples, in the network's (normalised) units.
        stats: counts and times.
    """

    x0: Tensor
    stats: SampleStats
