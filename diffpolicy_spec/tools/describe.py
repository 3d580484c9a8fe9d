"""Any file or folder of this field, described."""

from __future__ import annotations

from pathlib import Path

from diffpolicy_spec.checkpoints.shipped import SHIPPED, shipped_names
from diffpolicy_spec.tools.describe_checkpoint import describe_checkpoint
from diffpolicy_spec.tools.describe_dataset import describe_dataset, describe_lerobot_dataset
from diffpolicy_spec.tools.kinds import kind_of
from diffpolicy_spec.tools.report import Report

__all__ = ["describe"]


def describe(path: str | Path, *, every_weight: bool = False) -> Report:
    """What a checkpoint or a dataset is; nothing in it is run, and weights stay in their file.

    Args:
        path: a file, a folder, or the name of a shipped policy.
        every_weight: read all weights of a checkpoint, too, and check that they are finite.

    Raises:
        FileNotFoundError, PermissionError: it is not there, or may not be read.
        CheckpointError, DataError: it cannot be read; the message names the file and what is wrong.
        ImportError: what reads it is not installed.
    """
    if isinstance(path, str) and path in shipped_names():
        path = SHIPPED / path
    path = Path(path)
    kind = kind_of(path)
    if kind == "lerobot dataset":
        return describe_lerobot_dataset(path)
    if kind != "checkpoint":
        return describe_dataset(path, kind)
    return describe_checkpoint(path, every_weight=every_weight)
