"""What a run needs to go on after it was killed."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec.atomic import write_atomically

__all__ = ["TrainingError", "TrainingState", "load_state", "save_state"]


class TrainingError(ValueError):
    """A run that cannot start or go on as asked."""


@dataclass(frozen=True)
class TrainingState:
    """A run after `step` optimiser steps.

    Random numbers need no state: they are a function of the seed and the step (`batches`).

    Attributes:
        identity: what makes it this run and no other: settings and the data's fingerprint, plain data.
        step: optimiser steps made.
        network: the state dict being trained.
        ema: averaged parameters, in the order of the network's, then the encoder's.
        optimizer: the optimiser's state dict.
        wall_s: seconds of training so far, over all parts of the run.
        encoder: the image encoder's state dict; {} without cameras.
    """

    identity: Mapping[str, Any]
    step: int
    network: dict[str, Tensor]
    ema: list[Tensor]
    optimizer: dict[str, Any]
    wall_s: float
    encoder: dict[str, Tensor] = field(default_factory=dict)


def save_state(state: TrainingState, path: Path) -> None:
    """Write it so that a kill at any time leaves this state or the one before."""
    write_atomically(path, lambda temporary: torch.save(vars(state), temporary))


def load_state(path: Path, identity: Mapping[str, Any], device: torch.device | str) -> TrainingState | None:
    """The state in `path` if there is one.

    Raises:
        TrainingError: it belongs to a run with other settings or data, or cannot be read.
    """
    if not path.exists():
        return None
    try:
        state = TrainingState(**torch.load(path, map_location=device, weights_only=True))
    except (RuntimeError, TypeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path} is not a readable training state: {error}") from error
    different = [k for k in sorted({*identity, *state.identity}) if identity.get(k) != state.identity.get(k)]
    if different:
        changes = "; ".join(f"{k}: {state.identity.get(k)} there, {identity.get(k)} now" for k in different)
        raise TrainingError(
            f"{path.parent} holds a run with other settings ({changes}): choose another output, or overwrite=true"
        )
    return state
