"""Calibrated gains: a matrix per step that predicts how x0 moves when the state moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import Schedule, StepTables
from .window import Window

__all__ = ["Gains"]


@dataclass(frozen=True, eq=False)
class Gains:
    """G_k ~ E[d x0_k / d x], fitted once per checkpoint by `calibrate`.

    Attributes:
        G: (K, D, D) float32, D = Tp Da; x0 moves by dx @ G_k (rows: inputs: the product streams through memory).
        timesteps: (K,) long, the timesteps they were fitted for.
    """

    G: Tensor
    timesteps: Tensor

    def fit(self, schedule: Schedule | StepTables) -> bool:
        """Whether they were fitted for these timesteps."""
        return torch.equal(self.timesteps.cpu(), schedule.timesteps.cpu())

    def check(self, tables: StepTables, D: int) -> None:
        """Raise ValueError if the gains were not fitted for these timesteps and this chunk size."""
        if self.G.shape[1] != D or not self.fit(tables):
            raise ValueError(
                f"gains were fitted for D = {self.G.shape[1]} and {len(self.timesteps)} timesteps, the sampler has "
                f"D = {D} and {len(tables.timesteps)}: calibrate again, or sample without gains"
            )

    def apply(self, window: Window, dx: Tensor) -> Tensor:
        """dx @ G_k for each row. dx: (b, N, D) -> (b, N, D).

        The matrices are read in place: one chain's rows are a slice of G; the rows of several are laid out by step.
        """
        b, n, D = dx.shape
        low = int(window.start.min())
        high = min(int(window.start.max()) + n, self.G.shape[0])
        if b == 1:
            return torch.bmm(dx.transpose(0, 1), self.G[low:high]).transpose(0, 1)
        rows = high - low
        row, chain = window.steps - low, torch.arange(b, device=dx.device)[:, None].expand(b, n)
        by_step = dx.new_zeros(rows + 1, b, D)
        by_step[torch.where(window.valid, row, rows), chain] = dx  # padding goes to a row of its own
        return torch.bmm(by_step[:rows], self.G[low:high])[row.clamp(max=rows - 1), chain]

    def to(self, device: torch.device | str) -> Gains:
        """The gains on another device."""
        return Gains(G=self.G.to(device), timesteps=self.timesteps.to(device))

    def state_dict(self) -> dict[str, Tensor]:
        """What is stored beside a checkpoint: gains in float16."""
        return {"gains.G": self.G.to(torch.float16), "gains.timesteps": self.timesteps}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Gains | None:
        """Read `state_dict`; None where it has no gains.

        Raises:
            ValueError: gains that are incomplete, of another shape, or not finite.
        """
        if "gains.G" not in state:
            return None
        G, timesteps = state["gains.G"].to(torch.float32), state.get("gains.timesteps")
        if G.dim() != 3 or G.shape[1] != G.shape[2] or timesteps is None or tuple(timesteps.shape) != G.shape[:1]:
            found = None if timesteps is None else tuple(timesteps.shape)
            raise ValueError(
                f"gains must be G (K, D, D) with timesteps (K,), got {tuple(G.shape)} and {found}: calibrate again"
            )
        if not torch.isfinite(G).all():
            raise ValueError("gains have NaN or infinite values: calibrate again")
        return cls(G=G, timesteps=timesteps)
