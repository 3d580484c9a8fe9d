"""A live network called as it is, with rows of several steps in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["AsItIs", "Call", "flat"]

# call(network, x: (N, Tp, Da), t: (N,), parts of the condition by name, (N, ...) each) -> (N, Tp, Da)
Call = Callable[[nn.Module, Tensor, Tensor, Mapping[str, Tensor]], Tensor]


def flat(parts: Mapping[str, Tensor], rows: int, device: torch.device) -> Tensor:
    """The parts of a condition, (B, ...) each, as one vector a row: (B, C) float32."""
    none = torch.zeros(rows, 0, device=device)
    return torch.cat([none, *(part.detach().reshape(rows, -1).to(device, torch.float32) for part in parts.values())], 1)


class AsItIs(nn.Module):
    """A live network as network(x: (N, Tp, Da), t: (N,), condition: (N, C)) -> (N, Tp, Da), float32 outside.

    Args:
        live: the network, in whatever mode and dtype it is.
        call: how it is called.
        shapes: name -> shape of a row of each part of the condition, as `flat` joins them.
        autocast: dtype that its calls are autocast to; None: they are not.
    """

    def __init__(
        self, live: nn.Module, call: Call, shapes: Mapping[str, torch.Size], autocast: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.live, self._call, self._shapes, self._autocast = live, call, dict(shapes), autocast

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        dtype = next((p.dtype for p in self.live.parameters() if p.is_floating_point() and p.numel()), torch.float32)
        sizes = [shape.numel() for shape in self._shapes.values()]
        pieces = condition.to(dtype).split(sizes, dim=1)
        parts = {n: p.unflatten(1, s) for (n, s), p in zip(self._shapes.items(), pieces, strict=True)}
        enabled = self._autocast is not None
        with torch.autocast(x.device.type, dtype=self._autocast, enabled=enabled, cache_enabled=False):
            return self._call(self.live, x.to(dtype), t, parts).to(torch.float32)
