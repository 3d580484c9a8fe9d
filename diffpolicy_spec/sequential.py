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
    """x_{k+1} = A_k m_k(x_k) + B_k x_k + sigma_k xi_k.

    A turn that knows its step (`low`) moves all chains on from there; one that does not, its chains each from its own.
    """

    drafts = False
    lockstep = True

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        (B, D), K = self.x.shape, self.schedule.num_steps
        self._xi = torch.zeros(K, B, D, device=networks.device)

    def load(
        self, noise: Noise, generator: Generator, warm_start: Tensor | None, chain: Tensor | None
    ) -> None:  # fmt: skip
        self._xi[:, slice(None) if chain is None else chain] = noise.steps.flatten(2)

    def round(self, turn: Turn) -> None:
        k, t = turn.low, self.tables
        if k is None:
            self._round_apart(turn.chain)
            return
        m = self.networks.predict_x0(self.x, torch.full_like(turn.chain, k), turn.chain)
        self.x.copy_(t.A[k] * m + t.B[k] * self.x + t.sigma[k] * self._xi[k])
        self.networks.clock.lap("verify")

    def _round_apart(self, chain: Tensor) -> None:
        """A round of chains each at a step of its own."""
        k, t, nothing = self.k[chain], self.tables, torch.zeros_like(chain)
        m = self.networks.predict_x0(self.x[chain], k, chain)
        A, B, sigma = (table[k].unsqueeze(-1) for table in (t.A, t.B, t.sigma))
        self.x[chain] = A * m + B * self.x[chain] + sigma * self._xi[k, chain]
        self.advance(chain, k, nothing + 1, nothing, nothing)
