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
    """Whether the parameters of a network have been replaced, or written to in place.

    The last seen tensors are kept alive, so that the allocator cannot give their address to others. Writes that torch
    does not count are not seen: `p.data.mul_(2)` (write `p.mul_(2)` under no_grad), and writes to tensors made in
    inference mode.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._seen: list[tuple[Tensor, int]] = []

    def changed(self) -> bool:
        """Whether anything has changed since this was asked last; True the first time."""
        now = [(p.detach(), -1 if p.is_inference() else p._version) for p in self._network.parameters()]
        same = len(now) == len(self._seen) and all(
            v == w and p.data_ptr() == q.data_ptr() for (p, v), (q, w) in zip(now, self._seen, strict=True)
        )
        self._seen = now
        return not same
