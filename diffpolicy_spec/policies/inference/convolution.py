"""1-D convolutions over a few positions as matrix products, on activations (L, N, C): position, row, channel.

With positions first a shift in time is a slice, what is added per row and channel is contiguous, and tiles are views.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from diffpolicy_spec.policies.inference.matrix import Made, Matrix
from diffpolicy_spec.policies.inference.toom_cook import toom_cook

__all__ = ["Convolution", "Down", "Up"]

_TILE = 4
# Below these sizes Toom-Cook's transforms cost as many passes over activations as its products save.
_TILES_FROM_ROWS, _TILES_FROM_CHANNELS = 6, 96


class Convolution:
    """nn.Conv1d that keeps the length: (L, N, I) -> (L, N, O).

    One product of the columns (L, N, k I) with the whole weight, which reads it once; on CPU in float32, for many rows,
    tiles of 4 positions by Toom-Cook (F(4, 5): 8 products for 20).
    """

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        self.kernel = conv.kernel_size[0]
        self.columns = _columns(conv, dtype)
        self.tiles = _Tiles(conv) if dtype == torch.float32 and _suits_tiles(conv) else None
        self.parts: list[Made | Matrix] = [self.columns, *(() if self.tiles is None else self.tiles.parts)]

    def __call__(self, x: Tensor) -> Tensor:
        if self.kernel == 1:
            return self.columns(x)
        length, rows, _ = x.shape
        x = pad(x, (0, 0, 0, 0, self.kernel // 2, self.kernel // 2))
        if self.tiles is not None and length % _TILE == 0 and rows * length >= _TILES_FROM_ROWS * _TILE:
            return self.tiles(x, length)
        return self.columns(torch.cat([x[k : k + length] for k in range(self.kernel)], dim=2))


class _Tiles:
    """F(4, k) of a convolution: y = A [(G w) * (B x)] for every 4 positions, a product per point."""

    def __init__(self, conv: nn.Conv1d) -> None:
        A, G, B = toom_cook(_TILE, conv.kernel_size[0])
        self.A, self.B, self.bias = A.float(), B.float(), Made(lambda: _bias(conv))
        self.points = [Matrix(partial(_at_point, conv, g), None, torch.float32) for g in G]
        self.parts = [self.bias, *self.points]

    def __call__(self, x: Tensor, length: int) -> Tensor:
        """x: (L + k - 1, N, I), padded -> (L, N, O)."""
        n, tiles = len(self.points), length // _TILE
        _, rows, width = x.shape
        x = x.as_strided((tiles, n, rows * width), (_TILE * rows * width, rows * width, 1))
        v = (self.B @ x).view(tiles, n, rows, width)
        products = torch.stack([point(v[:, i].reshape(-1, width)) for i, point in enumerate(self.points)])
        y = self.A @ products.view(n, tiles, -1).transpose(0, 1)
        return y.view(length, rows, -1) + self.bias.value


class Down:
    """nn.Conv1d(C, C, 3, stride=2, padding=1): (L, N, C) -> (L/2, N, C)."""

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        self.columns = _columns(conv, dtype)
        self.parts = [self.columns]

    def __call__(self, x: Tensor) -> Tensor:
        odd = x[1::2]
        before = pad(odd[:-1], (0, 0, 0, 0, 1, 0))
        return self.columns(torch.cat([before, x[::2], odd], dim=2))


class Up:
    """nn.ConvTranspose1d(C, C, 4, stride=2, padding=1): (L, N, C) -> (2 L, N, C).

    y_{2i} = w_3 x_{i-1} + w_1 x_i,  y_{2i+1} = w_2 x_i + w_0 x_{i+1}
    """

    def __init__(self, conv: nn.ConvTranspose1d, dtype: torch.dtype) -> None:
        def taps(first: int, second: int) -> Matrix:
            # The weight of a transposed convolution is (I, O, 4).
            weight = lambda: torch.cat([conv.weight[..., first], conv.weight[..., second]]).T  # noqa: E731
            return Matrix(weight, lambda: _bias(conv), dtype)

        self.even, self.odd = taps(3, 1), taps(2, 0)
        self.parts = [self.even, self.odd]

    def __call__(self, x: Tensor) -> Tensor:
        x = pad(x, (0, 0, 0, 0, 1, 1))
        pairs = torch.cat([x[:-1], x[1:]], dim=2)
        return torch.stack([self.even(pairs[:-1]), self.odd(pairs[1:])], dim=1).flatten(0, 1)


def _columns(conv: nn.Conv1d, dtype: torch.dtype) -> Matrix:
    """(O, k I): all taps at once."""
    return Matrix(lambda: conv.weight.transpose(1, 2).flatten(1), lambda: _bias(conv), dtype)


def _at_point(conv: nn.Conv1d, g: Tensor) -> Tensor:
    """(O, I): the filter at one of Toom-Cook's points, a row of G w."""
    return conv.weight @ g.to(conv.weight)


def _bias(conv: nn.Conv1d | nn.ConvTranspose1d) -> Tensor:
    assert conv.bias is not None, "the U-Net's convolutions have a bias"
    return conv.bias


def _suits_tiles(conv: nn.Conv1d) -> bool:
    on_cpu = conv.weight.device.type == "cpu"
    return on_cpu and conv.kernel_size[0] in (3, 5) and min(conv.in_channels, conv.out_channels) >= _TILES_FROM_CHANNELS
