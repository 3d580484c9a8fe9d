"""Settings of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["PRECISIONS", "TrainConfig"]

PRECISIONS = ("float32", "bf16")
"""What a network may be called in, see `TrainConfig.precision`."""


@dataclass(frozen=True)
class TrainConfig:
    """How a policy is fitted; the defaults are diffusion_policy's where it has them.

    Attributes:
        max_steps: optimiser steps; the learning rate reaches zero at the last one.
        batch_size: sequences a step.
        lr: peak learning rate; betas, weight_decay, eps: of AdamW.
        encoder_weight_decay: of the image encoder; None: weight_decay.
        warmup_steps: steps of linear warm-up, then a cosine to zero.
        grad_clip: largest norm of the gradient; None: no limit.
        precision: "float32", or "bf16": network and encoder are called under autocast, weights and loss stay float32.
        ema_power, ema_max: averaging of the weights with decay min(ema_max, 1 - (1 + step) ** -ema_power).
        seed: of the initial weights, the order of the data, timesteps and noise.
        log_every, val_every, checkpoint_every, snapshot_every: steps between a point of the loss curve, a validation,
            a state to resume from, and a policy to keep.
        val_sequences: validation sequences used, spread evenly over those there are.
    """

    max_steps: int = 20000
    batch_size: int = 256
    lr: float = 3e-4
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    eps: float = 1e-8
    encoder_weight_decay: float | None = None
    warmup_steps: int = 500
    grad_clip: float | None = None
    precision: str = "float32"
    ema_power: float = 0.75
    ema_max: float = 0.9999
    seed: int = 0
    log_every: int = 100
    val_every: int = 500
    checkpoint_every: int = 1000
    snapshot_every: int = 5000
    val_sequences: int = 2048

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
        positive = ("max_steps", "batch_size", "lr", "log_every", "val_every", "checkpoint_every", "snapshot_every")
        for name in (*positive, "val_sequences"):
            if not getattr(self, name) > 0:
                raise ValueError(f"training: {name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.warmup_steps < self.max_steps:
            raise ValueError(f"training: warmup_steps must be in [0, max_steps), got {self.warmup_steps}")

        if self.precision not in PRECISIONS:
            raise ValueError(f"training: precision must be {' or '.join(PRECISIONS)}, got {self.precision!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Raises ValueError for unknown names and values that do not fit."""
        unknown = sorted(set(data) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"training: unknown {', '.join(unknown)}")
        return cls(**data)
