"""What every checkpoint reader returns, and the policy made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.weights import assign
from diffpolicy_spec.choice.record import Choice
from diffpolicy_spec.policies.build import build_encoder, build_network
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.policies.errors import NormalizationError
from diffpolicy_spec.policies.normalizer import LinearNormalizer
from diffpolicy_spec.policies.vision import ImageEncoder
from diffpolicy_spec.schedule import Schedule

__all__ = ["Parts", "build_networks", "build_policy"]


@dataclass(frozen=True)
class Parts:
    """A policy taken out of a file, in this package's terms.

    Attributes:
        config: shapes and conventions.
        network: weights by the names of `policies.build_network(config)`.
        encoder: weights by the names of `policies.ImageEncoder`; {} without cameras.
        normalizer: for every observation key (cameras: (C,)) and "action".
        scheduler: config of the diffusers scheduler the policy is used with, `_class_name` included.
        origin: where it comes from, as plain data: "format" ("diffusion_policy", "lerobot", "robomimic"), "class",
            "weights" (e.g. "ema_model"), and whatever else is worth telling.
        notes: what a user should know: assumptions made, settings that have no counterpart here; sentences.
    """

    config: PolicyConfig
    network: dict[str, Tensor]
    encoder: dict[str, Tensor]
    normalizer: LinearNormalizer
    scheduler: Mapping[str, Any]
    origin: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())


def build_policy(
    parts: Parts,
    where: Path,
    *,
    speculation: Mapping[str, Tensor] | None = None,
    choices: Sequence[Choice] = (),
) -> DiffusionPolicy:
    """The policy of these parts, on the CPU. float32 weights become its parameters as they are, without a copy.

    Args:
        where: the file they were read from, for messages.
        speculation, choices: as in `DiffusionPolicy`.

    Raises:
        CheckpointError: names, shapes or statistics do not fit the config, values are not finite, or the scheduler is
            not supported.
    """
    network, encoder = build_networks(parts, where)
    try:
        Schedule.from_diffusers(parts.scheduler, parts.config.num_inference_steps)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{where} does not describe a policy: {error}") from error
    try:
        return DiffusionPolicy(
            parts.config, network, parts.normalizer, parts.scheduler, speculation, choices, encoder=encoder,
            origin=parts.origin, notes=parts.notes,
        )  # fmt: skip
    except NormalizationError as error:
        raise CheckpointError(f"{where}: {error}") from error


def build_networks(parts: Parts, where: Path) -> tuple[nn.Module, ImageEncoder | None]:
    """The network and the image encoder of these parts, with their weights. Those left in their file stay meta tensors.

    Raises:
        CheckpointError: names or shapes do not fit the config, or values are not finite; `where` names the file.
    """
    try:
        with torch.device("meta"):
            network, encoder = build_network(parts.config), build_encoder(parts.config)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:  # torch: sizes that no memory has
        raise CheckpointError(f"{where} does not describe a policy: {error}") from error
    assign(network, parts.network, where, "model.")
    if encoder is not None:
        assign(encoder, parts.encoder, where, "encoder.")
    elif parts.encoder:
        raise CheckpointError(f"{where} has an image encoder, and its config no cameras")
    return network, encoder
