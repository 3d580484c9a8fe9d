"""Networks laid out for being called often."""

from diffpolicy_spec.policies.inference.build import inference_network

__all__ = ["inference_network"]
