"""Checkpoints that come with the package, and the one function that loads any."""

from __future__ import annotations

from pathlib import Path

import torch

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.formats import look, read_parts
from diffpolicy_spec.checkpoints.native import CONFIG, load_native
from diffpolicy_spec.checkpoints.parts import build_policy
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


def load_policy(
    path_or_name: str | Path, device: torch.device | str = "cpu", *, weights: str = "auto"
) -> DiffusionPolicy:
    """Load a policy: a shipped one by its name ("lift"), or a checkpoint of any format that is read.

    This package's own folders, LeRobot's policy folders, diffusion_policy's .ckpt and robomimic's .pth files; which of
    them it is is seen from the content. None of these projects is needed, and nothing in a file is run. What was
    assumed of a foreign checkpoint stands in the policy's `notes`.

    A folder in the working directory with a shipped name is reached as "./lift".

    Args:
        device: where it is put.
        weights: for files that hold several: "ema_model" (the running average), "model" (those that were trained), or
            "auto": the average where there is one.

    Raises:
        CheckpointError: no such checkpoint; one that is damaged, of no known format, or that carries code; or a
            setting that has no counterpart here: the message names it.
    """
    found = look(resolve(path_or_name))
    if found.format == "native" and weights == "auto":
        return load_native(found.path, device)
    return build_policy(read_parts(found, weights), found.path).to(device)
