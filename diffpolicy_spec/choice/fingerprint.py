"""Whether a policy's tensors are those that something was measured with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["fingerprint"]

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


def fingerprint(network: nn.Module, speculation: Mapping[str, Tensor] | None) -> str:
    """16 hex digits of a policy's weights and of what is stored with them for speculation.

    Of names, shapes and, for each tensor, the sum of its elements' bits as whole numbers: the same on every device and
    for any order of summation, and nothing is copied to the host but the sums. Made to notice training and calibration,
    not forgery.
    """
    tensors = {**{f"network.{name}": value for name, value in network.state_dict().items()}, **(speculation or {})}
    sums = [v.detach().contiguous().view(_INTEGERS[v.element_size()]).sum(dtype=torch.int64) for v in tensors.values()]
    text = [
        f"{name} {v.dtype} {tuple(v.shape)} {int(total)}"
        for (name, v), total in zip(tensors.items(), _on_host(sums), strict=True)
    ]
    return hashlib.sha256("\n".join(sorted(text)).encode()).hexdigest()[:16]


def _on_host(sums: list[Tensor]) -> list[int]:
    return [] if not sums else torch.stack(sums).tolist()
