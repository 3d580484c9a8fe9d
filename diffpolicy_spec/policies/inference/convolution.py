"""1-D convolutions over a few positions as matrix products, on activations (L, N, C): position, row, channel.

With positions first a shift in time is a slice, what is added per row and channel is contiguous, and tiles are views.
"""

from __future__ import annotations

import functools
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from diffpolicy_spec.policies.inference.matrix import PACK_FROM, Made, Matrix
from diffpolicy_spec.policies.inference.toom_cook import toom_cook

__all__ = ["Convolution", "Down", "Up"]

_TILE = 4
# Where transforms of all tiles at once are a small matrix; others take the columns.
_LENGTHS = (4, 8, 16, 32)
# Below these sizes Toom-Cook's transforms cost as many passes over activations as its products save.
_TILES_FROM_ROWS, _TILES_FROM_CHANNELS = 5, 48


class Convolution:
    """nn.Conv1d that keeps the length: (L, N, I) -> (L, N, O).

    One product of the columns (L, N, k I) with the whole weight, which reads it once. On CPU, where many rows are bound
    by arithmetic, tiles of 4 positions by Toom-Cook (F(4, 5): 8 products for 20); in float32 only, its rounding errors
    being 5 times those of a plain product in bfloat16 and float16.
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
        if self.tiles is not None and length in _LENGTHS and rows * length >= _TILES_FROM_ROWS * _TILE:
            return self.tiles(x)
        x = pad(x, (0, 0, 0, 0, self.kernel // 2, self.kernel // 2))
        return self.columns(x.unfold(0, self.kernel, 1).transpose(2, 3).contiguous().flatten(2))


class _Tiles:
    """F(4, k) of a convolution, for every 4 positions: y = A [(G w) * (B x)] + b, a matrix product per point."""

    def __init__(self, conv: nn.Conv1d) -> None:
        self.A, G, self.B = _transforms(conv.kernel_size[0])
        self.bias, self.filters = Made(partial(_bias, conv)), _Filters(conv, G)
        self.parts = [self.bias, *self.filters.parts]

    def __call__(self, x: Tensor) -> Tensor:
        length, rows, width = x.shape
        n, tiles = self.A.shape[1], length // _TILE
        v = (self.B[length] @ x.view(length, -1)).view(n, tiles * rows, width)
        y = self.A @ self.filters(v).view(n, tiles, -1).transpose(0, 1)
        return y.view(length, rows, -1).add_(self.bias.value)


class _Filters:
    """G w of a convolution: (n, M, I) -> (n, M, O), a matrix a point. Small ones are faster in one batched product."""

    def __init__(self, conv: nn.Conv1d, G: Tensor) -> None:
        large = conv.in_channels * conv.out_channels >= PACK_FROM
        self.points = [Matrix(partial(_at_point, conv, g), None, torch.float32) for g in G] if large else []
        self.batch = Made(lambda: torch.stack([_at_point(conv, g).T for g in G]))
        self.parts: list[Made | Matrix] = [*self.points] or [self.batch]

    def __call__(self, v: Tensor) -> Tensor:
        if self.points:
            return torch.stack([point(u) for point, u in zip(self.points, v.unbind(0), strict=True)])
        return torch.bmm(v, self.batch.value)


@functools.cache
def _transforms(kernel: int) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """A (4, n), G (n, k), and B for every length L: (n L/4, L), all tiles at once, the padding left out."""
    A, G, B = toom_cook(_TILE, kernel)
    placed = {}
    for length in _LENGTHS:
        tiles = [pad(B, (start, length - _TILE - start)) for start in range(0, length, _TILE)]
        within = slice(kernel // 2, kernel // 2 + length)
        placed[length] = torch.stack(tiles, dim=1)[:, :, within].flatten(0, 1).float().contiguous()
    return A.float(), G, placed


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
        self.even, self.odd = (
            Matrix(partial(_two_taps, conv, *taps), partial(_bias, conv), dtype) for taps in ((3, 1), (2, 0))
        )
        self.parts = [self.even, self.odd]

    def __call__(self, x: Tensor) -> Tensor:
        x = pad(x, (0, 0, 0, 0, 1, 1))
        pairs = torch.cat([x[:-1], x[1:]], dim=2)
        return torch.stack([self.even(pairs[:-1]), self.odd(pairs[1:])], dim=1).flatten(0, 1)


def _columns(conv: nn.Conv1d, dtype: torch.dtype) -> Matrix:
    """(O, k I): all taps at once."""
    return Matrix(lambda: conv.weight.transpose(1, 2).flatten(1), partial(_bias, conv), dtype)


def _two_taps(conv: nn.ConvTranspose1d, first: int, second: int) -> Tensor:
    """(O, 2 I); the weight of a transposed convolution is (I, O, 4)."""
    return torch.cat([conv.weight[..., first], conv.weight[..., second]]).T


def _at_point(conv: nn.Conv1d, g: Tensor) -> Tensor:
    """(O, I): the filter at one of Toom-Cook's points, a row of G w."""
    return conv.weight @ g.to(conv.weight)


def _bias(conv: nn.Conv1d | nn.ConvTranspose1d) -> Tensor:
    assert conv.bias is not None, "the U-Net's convolutions have a bias"
    return conv.bias


def _suits_tiles(conv: nn.Conv1d) -> bool:
    on_cpu = conv.weight.device.type == "cpu"
    return on_cpu and conv.kernel_size[0] in (3, 5) and min(conv.in_channels, conv.out_channels) >= _TILES_FROM_CHANNELS
