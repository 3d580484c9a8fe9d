"""The processes of a run: one, or one a GPU, started by `accelerate launch` or torchrun, that share every batch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffpolicy_spec.optional import require
from diffpolicy_spec.training.order import Share

__all__ = ["Processes", "first_process", "join_processes"]


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        device: of this process.
        share: its part of a batch.
        accelerator: Hugging Face's, None for a run of one process.
    """

    device: torch.device
    share: Share = field(default_factory=Share)
    accelerator: Any = None

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.share.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as it is to be called: its gradients are then those of all processes' rows."""
        return model if self.accelerator is None else self.accelerator.prepare_model(model)

    def mean(self, value: Tensor) -> Tensor:
        """Over all processes; a scalar."""
        return value if self.accelerator is None else self.accelerator.reduce(value, reduction="mean")

    def wait(self) -> None:
        """Until all processes are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def leave(self) -> None:
        """The run is over."""
        if self.accelerator is not None:
            self.accelerator.end_training()


def first_process() -> bool:
    """Whether this is the process that speaks for a run."""
    return os.environ.get("RANK", "0") == "0"


def join_processes(device: torch.device, *, unused: bool = False) -> Processes:
    """The processes that this one was started among: those of `accelerate launch` or torchrun, or it alone.

    Args:
        device: asked for; with several processes "cuda" means a GPU for each.
        unused: the network has weights that no call uses.

    Raises:
        ImportError: several processes, and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes(device)
    accelerate = require("accelerate", extra="train", needed_by="training in several processes")
    options = accelerate.DistributedDataParallelKwargs(find_unused_parameters=unused)
    accelerator = accelerate.Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",
        kwargs_handlers=[options],  # precision is the run's own affair
    )
    share = Share(accelerator.process_index, accelerator.num_processes)
    return Processes(accelerator.device, share, accelerator)
