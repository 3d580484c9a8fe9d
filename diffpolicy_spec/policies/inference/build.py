"""Which layout a network has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffpolicy_spec.policies.inference.transformer import InferenceTransformer
from diffpolicy_spec.policies.inference.unet import InferenceUnet
from diffpolicy_spec.policies.transformer import TransformerForDiffusion
from diffpolicy_spec.policies.unet import ConditionalUnet1D
from diffpolicy_spec.runtime.network import InferenceNetwork

__all__ = ["inference_network"]


def inference_network(
    network: nn.Module, num_train_timesteps: int, dtype: torch.dtype | None = None
) -> InferenceNetwork:
    """A trained network laid out for being called often; one that we have no layout for is called as it is.

    Args:
        network: network(x: (N, T, D), t: (N,), condition: (N, C)) -> (N, T, D). It stays the owner of the weights.
        num_train_timesteps: of the training chain: how many rows per-timestep tables have.
        dtype: of weights and activations: float32 (the default), bfloat16 or float16.

    Raises:
        ValueError: another dtype, or one other than float32 for a network without a layout.
    """
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"a network runs in float32, bfloat16 or float16, not in {dtype}")
    if isinstance(network, ConditionalUnet1D):
        return InferenceUnet(network, num_train_timesteps, dtype)
    if isinstance(network, TransformerForDiffusion) and not isinstance(network.encoder, nn.TransformerEncoder):
        return InferenceTransformer(network, num_train_timesteps, dtype)
    if dtype != torch.float32:
        raise ValueError(f"{type(network).__name__} has no layout for inference: it runs in float32, not in {dtype}")
    return _AsItIs(network)


class _AsItIs:
    """A network without a layout; its features are the condition."""

    dtype, nbytes = torch.float32, 0

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def features(self, condition: Tensor) -> Tensor:
        return condition

    def __call__(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
        return self.network(x, t, features)
