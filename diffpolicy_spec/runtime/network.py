"""What a network laid out for inference is, and how it notices that the weights have changed."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["InferenceNetwork", "Watch"]


class InferenceNetwork(Protocol):
    """A trained network laid out for being called often.

    What depends on the timestep alone is in tables, what depends on the condition is computed once a chunk.

    Attributes:
        dtype: of weights and activations; x, features and the output stay float32.
        nbytes: held beside the network's own parameters: weights laid out anew, and tables.
    """

    dtype: torch.dtype

    @property
    def nbytes(self) -> int: ...

    def features(self, condition: Tensor) -> Tensor:
        """(B, C) -> (B, F) float32. Once a chunk, outside any captured graph.

        Looks whether the weights have changed since, and if so refreshes what was made from them, in place: graphs that
        were captured before go on reading the same tensors. After a move to another device the tensors are new ones.
        """
        ...

    def __call__(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """x: (N, T, Da) float32, t: (N,) long, features: (N, F) -> (N, T, Da) float32. Rows do not see each other."""
        ...


class Watch:
    """Whether the parameters of a network have been replaced, or written to in place. 0.1 ms for 150 parameters.

    Modules that are put in the place of others are not looked for. Nor are writes seen that torch does not count:
    `p.data.mul_(2)` (write `p.mul_(2)` under no_grad), and writes to tensors made in inference mode.
    """

    def __init__(self, network: nn.Module) -> None:
        self._parameters = [module._parameters for module in network.modules() if module._parameters]
        self._seen: list[tuple[int, int]] = []
        self._kept: list[Tensor] = []

    def places(self) -> list[int]:
        """Addresses of the parameters."""
        return [p.data_ptr() for p in self._all()]

    def _all(self) -> list[Tensor]:
        return [p for of_module in self._parameters for p in of_module.values() if p is not None]

    def changed(self) -> bool:
        """Whether anything has changed since this was asked last; True the first time."""
        parameters = self._all()
        now = [(p.data_ptr(), -1 if p.is_inference() else p._version) for p in parameters]
        if now == self._seen:
            return False
        self._seen = now
        # What was seen stays alive, so that the allocator cannot give its address to other weights.
        self._kept = [p.detach() for p in parameters]
        return True
