"""The device that a command was asked to run on."""

from __future__ import annotations

import torch

__all__ = ["parse_device"]


def parse_device(name: str) -> torch.device:
    """A device by its name: "cpu", "cuda", "cuda:1".

    Raises:
        ValueError: no such kind of device, or this machine does not have it.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={name}: {error}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name}: use cpu or cuda")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"{count} CUDA devices" if count else "no CUDA device"
        raise ValueError(f"device={name}: PyTorch finds {found} here; use device=cpu")
    return device
