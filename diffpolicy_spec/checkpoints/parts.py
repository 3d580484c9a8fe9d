"""What every checkpoint reader returns, and the policy made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.normalizer import LinearNormalizer

__all__ = ["Parts"]


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
