"""Policies: observations -> action chunk."""

from diffpolicy_spec.policies.build import build_encoder, build_network
from diffpolicy_spec.policies.config import EncoderConfig, PolicyConfig, TransformerConfig, UnetConfig
from diffpolicy_spec.policies.diffusion import DiffusionPolicy, PolicyOutput
from diffpolicy_spec.policies.errors import ConditioningError, NormalizationError, ObservationError
from diffpolicy_spec.policies.normalizer import LinearNormalizer
from diffpolicy_spec.policies.transformer import TransformerForDiffusion
from diffpolicy_spec.policies.unet import ConditionalUnet1D
from diffpolicy_spec.policies.vision import ImageEncoder

__all__ = [
    "ConditionalUnet1D",
    "ConditioningError",
    "DiffusionPolicy",
    "EncoderConfig",
    "ImageEncoder",
    "LinearNormalizer",
    "NormalizationError",
    "ObservationError",
    "PolicyConfig",
    "PolicyOutput",
    "TransformerConfig",
    "TransformerForDiffusion",
    "UnetConfig",
    "build_encoder",
    "build_network",
]
