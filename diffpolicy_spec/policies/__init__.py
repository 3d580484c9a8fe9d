"""Policies: observations -> action chunk."""

from diffpolicy_spec.policies.config import PolicyConfig, UnetConfig
from diffpolicy_spec.policies.diffusion import DiffusionPolicy, PolicyOutput
from diffpolicy_spec.policies.errors import NormalizationError, ObservationError
from diffpolicy_spec.policies.normalizer import LinearNormalizer
from diffpolicy_spec.policies.unet import ConditionalUnet1D

__all__ = [
    "ConditionalUnet1D",
    "DiffusionPolicy",
    "LinearNormalizer",
    "NormalizationError",
    "ObservationError",
    "PolicyConfig",
    "PolicyOutput",
    "UnetConfig",
]
