"""Networks laid out for being called often."""

from diffpolicy_spec.policies.inference.build import inference_network
from diffpolicy_spec.policies.inference.protocol import InferenceNetwork

__all__ = ["InferenceNetwork", "inference_network"]
