"""Reading a checkpoint without its weights: names and shapes, and the small tensors that are statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["is_left_out", "shapes_only"]

_SMALL = 1 << 16  # bytes

_LEAVES_OUT: ContextVar[bool] = ContextVar("_LEAVES_OUT", default=False)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Within it readers leave large tensors in their file and give meta tensors of their shape instead."""
    token = _LEAVES_OUT.set(True)
    try:
        yield
    finally:
        _LEAVES_OUT.reset(token)


def is_left_out(size: int) -> bool:
    """Whether a tensor of so many bytes is not to be read."""
    return _LEAVES_OUT.get() and size > _SMALL
