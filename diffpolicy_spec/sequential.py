"""Step by step: one network call for every step of the chain."""

from __future__ import annotations

import torch
from torch import Tensor

from .chains import Chains
from .networks import Networks
from .noise import Generator, Noise
from .window import Turn

__all__ = ["Sequential"]


class Sequential(Chains):
    """x_{k+1} = A_k m_k(x_k) + B_k x_k + sigma_k xi_k, for all chains at once."""

    drafts = False
    lockstep = True

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        (B, D), K = self.x.shape, self.schedule.num_steps
        self._xi = torch.zeros(K, B, D, device=networks.device)

    def load(self, noise: Noise, generator: Generator, warm_start: Tensor | None) -> None:
        self._xi.copy_(noise.steps.flatten(2))

    def round(self, turn: Turn) -> None:
        assert turn.low is not None
        k, t = turn.low, self.tables
        m = self.networks.predict_x0(self.x, torch.full_like(turn.chain, k), turn.chain)
        self.x.copy_(t.A[k] * m + t.B[k] * self.x + t.sigma[k] * self._xi[k])
        self.networks.clock.lap("verify")
