"""Checkpoints that come with the package, and the one function that loads any."""

from __future__ import annotations

from pathlib import Path

import torch

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.native import CONFIG, load_native
from diffpolicy_spec.policies.diffusion import DiffusionPolicy

__all__ = ["SHIPPED", "load_policy", "resolve", "shipped_names"]

SHIPPED = Path(__file__).resolve().parent.parent / "shipped"
"""Folder of the checkpoints that come with the package."""


def shipped_names() -> list[str]:
    """Names that `load_policy` knows without a path."""
    return sorted(p.parent.name for p in SHIPPED.glob(f"*/{CONFIG}"))


def resolve(path_or_name: str | Path) -> Path:
    """The folder meant: a shipped policy's by its name, otherwise the path itself.

    Raises:
        CheckpointError: neither; the message lists the shipped names.
    """
    path, names = Path(path_or_name), shipped_names()
    # A bare name means the shipped policy even if the working directory has a folder called the same; a Path does not.
    if isinstance(path_or_name, str) and path_or_name in names:
        return SHIPPED / path_or_name
    if path.exists():
        return path
    if str(path) in names:
        return SHIPPED / path
    shipped = ", ".join(names) or "none"
    raise CheckpointError(f"'{path_or_name}' is neither an existing path nor a shipped policy (shipped: {shipped})")


def load_policy(path_or_name: str | Path, device: torch.device | str = "cpu") -> DiffusionPolicy:
    """Load a policy by the name of a shipped checkpoint ("lift") or from a checkpoint folder.

    A folder in the working directory with a shipped name is reached as "./lift".

    Raises:
        CheckpointError: no such checkpoint, or one that is damaged or of another format.
    """
    return load_native(resolve(path_or_name), device)
