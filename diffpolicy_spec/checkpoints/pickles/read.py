"""Checkpoints that torch.save pickled, read as data: nothing in them is imported, called or instantiated.

The pickle is described by its opcodes (`opcodes.decode`). What it names must stand on a short list (`vocabulary`) of
what the checkpoints of diffusion_policy and robomimic hold: tensors, dicts, NumPy values and OmegaConf's containers,
which become plain dicts and lists. Anything else is refused by name. Tensors stay in the file until asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.pickles.archive import open_archive
from diffpolicy_spec.checkpoints.pickles.opcodes import decode
from diffpolicy_spec.checkpoints.pickles.vocabulary import ALLOWED, plain

__all__ = ["read_pickled"]


def read_pickled(path: str | Path) -> dict[str, Any]:
    """Read a file of torch.save without unpickling it.

    Returns:
        The pickled dict as plain data: dicts, lists, tuples, str, numbers, bytes (never looked into), NumPy values,
        and `StoredTensor`s where tensors were. OmegaConf's containers are plain too, their interpolations unresolved.

    Raises:
        CheckpointError: truncated, damaged, or of another format; or it names something that no checkpoint needs
            ("posix.system"): then nothing of it was imported or run.
    """
    archive = open_archive(path)
    try:
        value = plain(decode(archive.pickle, ALLOWED), archive)
    except CheckpointError as error:
        raise CheckpointError(f"{archive.path} is not read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{archive.path} holds a {type(value).__name__}; a checkpoint is a dict")
    return value
