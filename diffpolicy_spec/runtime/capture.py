"""Work of fixed shapes, kept ready to be run again: called as it is, or captured as a CUDA graph."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Captured", "Report", "capture", "compiled", "has_conditions", "when"]

Work = Callable[[], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """What making it cost.

    Attributes:
        pieces: of work kept ready.
        seconds: to make all of them.
        bytes: of device memory that graphs hold for what happens inside them; 0 without graphs.
        graphs: whether they are CUDA graphs.
    """

    pieces: int
    seconds: float
    bytes: int
    graphs: bool


class Captured:
    """Pieces of work by key; `run` does one.

    Attributes:
        report: what making it cost.
    """

    def __init__(self, pieces: Mapping[Hashable, Work], report: Report) -> None:
        self._pieces, self.report = dict(pieces), report

    def run(self, key: Hashable) -> None:
        """Do this piece of work."""
        self._pieces[key]()


def capture(
    work: Mapping[Any, Work], again: Callable[[Any], None], device: torch.device, *, warm: bool, graphs: bool
) -> Captured:
    """Make pieces of work ready.

    Where the device has no memory for graphs, a warning says so and the work is called as it is.

    Args:
        work: what to do, by key: device operations of fixed shapes on tensors that stay where they are.
        again: called with a key before its piece is tried: puts the state it works on into order.
        warm: do every piece twice first, so that kernels are chosen and compiled; graphs need it.
        graphs: capture it as CUDA graphs; all share one memory pool, since one runs at a time.

    Raises:
        ValueError: graphs are asked for and the device is no GPU.
    """
    if graphs and device.type != "cuda":
        raise ValueError(f"CUDA graphs need a GPU, and the device is {device}: mode=static runs the same rounds there")
    begin, pieces, held = time.perf_counter(), dict(work), 0
    for key, piece in pieces.items() if warm or graphs else ():
        for _ in range(2):
            again(key)
            piece()
    if graphs:
        before = torch.cuda.memory_reserved(device)
        try:
            pieces = _graphs(pieces, again, device)
            held = torch.cuda.memory_reserved(device) - before
        except RuntimeError as error:
            # What the capture says when it is broken off may hide why it was.
            if not any(isinstance(e, torch.cuda.OutOfMemoryError) for e in (error, error.__context__)):
                raise
            graphs = False
            torch.cuda.empty_cache()
            warnings.warn(
                f"no memory to capture CUDA graphs ({error}); the same rounds are run kernel by kernel, which is "
                f"slower and otherwise the same. Smaller batches or windows need less",
                stacklevel=2,
            )
    return Captured(pieces, Report(len(pieces), time.perf_counter() - begin, held, graphs))


def compiled(work: Callable[..., T]) -> Callable[..., T]:
    """A piece of work, or a network's call, through torch.compile.

    In a function with code of its own: torch.compile gives up on code that it has compiled for eight different uses.
    """

    def piece(*given: Any) -> T:
        return work(*given)

    own = FunctionType(piece.__code__.replace(), piece.__globals__, closure=piece.__closure__)
    return torch.compile(own, dynamic=False, fullgraph=True)


def when(condition: Tensor, work: Work) -> None:
    """Do the work if condition: () bool holds when it comes to it.

    In a CUDA graph under capture it becomes a conditional node: the device decides, the host does not wait. Elsewhere
    the host looks.
    """
    if condition.is_cuda and torch.cuda.is_current_stream_capturing():
        graph = torch.cuda.CUDAGraph.get_currently_capturing_graph()
        graph.begin_capture_to_if_node(condition)
        try:
            work()
        finally:
            graph.end_capture_to_conditional_node()
    elif condition:
        work()


def has_conditions() -> bool:
    """Whether this torch can put conditional nodes into CUDA graphs."""
    return hasattr(torch.cuda.CUDAGraph, "begin_capture_to_if_node")


def _graphs(
    pieces: Mapping[Hashable, Work], again: Callable[[Hashable], None], device: torch.device
) -> dict[Hashable, Work]:
    pool, made = torch.cuda.graph_pool_handle(), dict[Hashable, Work]()
    stream = torch.cuda.Stream(device)
    for key, piece in pieces.items():
        again(key)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # what a library sets up on the stream it is captured on
            piece()
        torch.cuda.current_stream(device).wait_stream(stream)
        again(key)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            piece()
        made[key] = graph.replay
    return made
