"""Gains of all steps, fitted once per checkpoint, whatever their structure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor

from diffpolicy_spec.schedule import Schedule, StepTables
from diffpolicy_spec.window import Window

from .kronecker import Kronecker
from .lowrank import LowRank
from .matrices import Dense, Matrices

__all__ = ["STRUCTURES", "Gains"]

STRUCTURES: dict[str, type[Matrices]] = {kind.name: kind for kind in (Dense, Kronecker, LowRank)}
"""Structures by name."""

_TIMESTEPS = "gains.timesteps"


class Gains:
    """G_k ~ E[d x0_k / d x], fitted by `calibrate`: x0 moves by dx @ G_k (rows are inputs).

    Args:
        G: the matrices, or (K, D, D) float32 for dense ones.
        timesteps: (K,) long, the timesteps they were fitted for.
    """

    def __init__(self, G: Tensor | Matrices, timesteps: Tensor) -> None:
        self.matrices = Dense(G) if isinstance(G, Tensor) else G
        self.timesteps = timesteps

    @property
    def G(self) -> Tensor:
        """(K, D, D): the matrices written out."""
        return self.matrices.explicit()

    @property
    def structure(self) -> str:
        """Name of the structure: "dense", "kronecker" or "lowrank"."""
        return self.matrices.name

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, D, D)."""
        return self.matrices.shape

    @property
    def bytes_stored(self) -> int:
        """Bytes of the matrices in a file (float16)."""
        return sum(2 * value.numel() for value in self.matrices.tensors())

    def __repr__(self) -> str:
        K, D, _ = self.shape
        return f"Gains({self.structure}, K={K}, D={D}, {self.bytes_stored / 1e6:.1f} MB stored)"

    def fit(self, schedule: Schedule | StepTables) -> bool:
        """Whether they were fitted for these timesteps."""
        return torch.equal(self.timesteps.cpu(), schedule.timesteps.cpu())

    def check(self, tables: StepTables, D: int) -> None:
        """Raise ValueError if the gains were not fitted for these timesteps and this chunk size."""
        if self.shape[1] != D or not self.fit(tables):
            raise ValueError(
                f"gains were fitted for D = {self.shape[1]} and {len(self.timesteps)} timesteps, the sampler has "
                f"D = {D} and {len(tables.timesteps)}: calibrate again, or sample without gains"
            )

    def apply(self, window: Window, dx: Tensor) -> Tensor:
        """dx @ G_k for each row. dx: (b, N, D) -> (b, N, D)."""
        return self.matrices.apply(window, dx)

    def to(self, device: torch.device | str) -> Gains:
        """The gains on another device."""
        return Gains(self.matrices.to(device), self.timesteps.to(device))

    def state_dict(self) -> dict[str, Tensor]:
        """What is stored beside a checkpoint: gains in float16."""
        return self.matrices.state_dict() | {_TIMESTEPS: self.timesteps}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Gains | None:
        """Read `state_dict`; None where it has no gains.

        Raises:
            ValueError: gains that are incomplete, of an unknown structure, of another shape, or not finite.
        """
        names = [name for name in state if name.startswith("gains.") and name != _TIMESTEPS]
        if not names:
            return None
        # Dense gains have the prefix of all gains, for files written before there were others: they come last.
        others: tuple[type[Matrices], ...] = (Kronecker, LowRank)
        kinds = [kind for kind in others if any(name.startswith(kind.prefix) for name in names)]
        if not kinds and f"{Dense.prefix}G" in names:
            kinds = [Dense]
        known = [kind.prefix + field.name for kind in kinds for field in fields(kind)]
        if len(kinds) != 1 or not set(names) <= set(known):
            raise ValueError(
                f"gains of an unknown structure: {', '.join(sorted(names))}; this release reads one of "
                f"{', '.join(STRUCTURES)}: calibrate again"
            )
        matrices, timesteps = kinds[0].from_state_dict(state), state.get(_TIMESTEPS)
        if timesteps is None or tuple(timesteps.shape) != matrices.shape[:1]:
            found = None if timesteps is None else tuple(timesteps.shape)
            raise ValueError(
                f"gains of K = {matrices.shape[0]} steps need timesteps (K,), got {found}: calibrate again"
            )
        return cls(matrices, timesteps)
