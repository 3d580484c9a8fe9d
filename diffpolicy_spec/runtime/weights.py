"""Weights by name, and whether two processes hold the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["digest", "layout", "tensors_of"]


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, in the module's own order."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def layout(module: nn.Module) -> bytes:
    """SHA-256 (32 bytes) of names, dtypes and shapes."""
    told = (f"{name} {tensor.dtype} {tuple(tensor.shape)};" for name, tensor in tensors_of(module))
    return hashlib.sha256("".join(told).encode()).digest()


def digest(module: nn.Module) -> bytes:
    """SHA-256 (32 bytes) of layout and bits: equal for equal weights, wherever they are."""
    found = hashlib.sha256(layout(module))
    for _, tensor in tensors_of(module):
        found.update(tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()
