"""What is made from weights for inference: tensors that keep their place, and matrices laid out for the machine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["PACK_FROM", "Made", "Matrix"]

# Smaller weights stay in cache as they are, and oneDNN's own layout gains nothing.
PACK_FROM = 2**18

torch.library.define("diffpolicy_spec::packed_linear", "(Tensor x, Tensor packed, Tensor? bias, int out) -> Tensor")


@torch.library.impl("diffpolicy_spec::packed_linear", "CompositeExplicitAutograd")
def _packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, out: int) -> Tensor:
    """An op of our own, because inductor takes oneDNN's only with weights frozen into the graph."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


@torch.library.register_fake("diffpolicy_spec::packed_linear")
def _packed_linear_shape(x: Tensor, packed: Tensor, bias: Tensor | None, out: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], out))


class Made:
    """A tensor made from weights: `source()` in `dtype`; it keeps its place when it is refreshed."""

    def __init__(self, source: Callable[[], Tensor], dtype: torch.dtype = torch.float32) -> None:
        self._source, self._dtype = source, dtype
        self.value = torch.empty(0)

    @property
    def nbytes(self) -> int:
        return self.value.nbytes

    def refresh(self) -> None:
        """Make it again."""
        self.value = _kept(self.value, self._source().to(self._dtype))


class Matrix:
    """x: (..., I) -> x W' + b: (..., O), with W (O, I) and b (O,) made from weights.

    On CPU a large W is packed by oneDNN: with few rows the product is bound by reading W, and torch's own would lay it
    out anew in every call. A packed W is in another place after it is refreshed.
    """

    def __init__(self, weight: Callable[[], Tensor], bias: Callable[[], Tensor] | None, dtype: torch.dtype) -> None:
        self._source, self._dtype = weight, dtype
        self._weight = torch.empty(0)
        self._bias = None if bias is None else Made(bias, dtype)
        self._packed, self._out = False, 0

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def refresh(self) -> None:
        """Make it again."""
        weight = self._source().to(self._dtype)
        self._out, self._packed = weight.shape[0], _pays(weight)
        if self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        else:
            self._weight = _kept(self._weight, weight)
        if self._bias is not None:
            self._bias.refresh()

    def __call__(self, x: Tensor) -> Tensor:
        bias = None if self._bias is None else self._bias.value
        if self._packed:
            return torch.ops.diffpolicy_spec.packed_linear(x, self._weight, bias, self._out)
        return linear(x, self._weight, bias)


def _kept(old: Tensor, new: Tensor) -> Tensor:
    """`new` in the storage of `old`, so that whoever reads `old` sees it; a new tensor where `old` does not fit."""
    if old.is_mkldnn or old.device != new.device or old.shape != new.shape:
        return new.clone(memory_format=torch.contiguous_format)
    return old.copy_(new)


def _pays(weight: Tensor) -> bool:
    """Whether oneDNN is there, has products for this dtype on this processor, and a layout of its own gains."""
    if weight.device.type != "cpu" or weight.numel() < PACK_FROM or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_fp16_supported()
