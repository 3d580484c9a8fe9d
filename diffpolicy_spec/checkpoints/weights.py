"""Weights put into a network that was built without any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.policies.transformer import TransformerForDiffusion, masks

__all__ = ["assign", "is_finite", "some"]


def assign(network: nn.Module, weights: Mapping[str, Tensor], where: Path, prefix: str) -> None:
    """Make tensors the parameters and buffers of a network, which may be on the meta device.

    float32 tensors are taken as they are, without a copy; other floating-point ones are converted one by one.

    Args:
        where, prefix: the file, and what stands before the names in it; for messages.

    Raises:
        CheckpointError: names or shapes do not fit the network, or values are not finite numbers.
    """
    expected = network.state_dict()
    missing, unexpected = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or unexpected:
        what = (("lacks", missing), ("has unexpected", unexpected))
        told = "; it ".join(f"{verb}: {some(prefix + n for n in names)}" for verb, names in what if names)
        raise CheckpointError(f"{where} does not fit its config; it {told}")
    fixed = _masks(network)
    state = {}
    for name, value in weights.items():
        wanted = expected[name]
        if value.shape != wanted.shape:
            raise CheckpointError(
                f"{where}: '{prefix}{name}' has shape {tuple(value.shape)}, its config asks for {tuple(wanted.shape)}"
            )
        if not wanted.is_floating_point():  # how many batches a batch normalisation has seen
            if value.is_floating_point() or value.is_complex():
                raise CheckpointError(f"{where}: '{prefix}{name}' must hold whole numbers, got {value.dtype}")
            state[name] = value.to(wanted.dtype)
            continue
        if name in fixed:
            if not torch.equal(value.to(torch.float32), fixed[name]):
                raise CheckpointError(f"{where}: '{prefix}{name}' is not the mask of its config's attention")
        elif not value.is_floating_point() or not is_finite(value):
            raise CheckpointError(f"{where}: '{prefix}{name}' is not of finite floating-point numbers")
        state[name] = value.detach().to(torch.float32).contiguous()
    network.load_state_dict(state, assign=True)


def is_finite(value: Tensor) -> bool:
    """Whether all of a floating-point tensor is finite, without anything of its size beside it."""
    if value.numel() == 0 or value.is_meta:  # left in its file, see `shapes_only`
        return True
    low, high = torch.aminmax(value)  # both NaN if anything is
    return bool(torch.isfinite(low) and torch.isfinite(high))


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more


def _masks(network: nn.Module) -> dict[str, Tensor]:
    """What is no weight though stored among them: -inf in it is meant."""
    if not isinstance(network, TransformerForDiffusion) or network.mask is None:
        return {}
    made = zip(("mask", "memory_mask"), masks(network.horizon, network.obs_tokens), strict=True)
    return {name: mask for name, mask in made if mask is not None}
