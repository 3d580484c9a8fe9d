"""Processes that work for rank 0: how they meet, and what they send each other.

Orders and what went wrong travel by gloo (host memory), rows by nccl between GPUs and by gloo between CPUs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Order", "Peers", "join_peers"]

_IDLE = timedelta(days=30)  # a robot may stand still for long: workers wait


class Order(IntEnum):
    """What rank 0 asks of a worker; the sizes that go with it; what the worker then receives."""

    STOP = 0  # nothing
    LAYOUT = 1  # 32 bytes, the layout of the weights
    WEIGHTS = 2  # 32 bytes, their digest; then every tensor
    LOAD = 3  # (B, C): condition (B, C)
    ROWS = 4  # (n, Tp, Da): rows (n, Tp Da + 2)


@dataclass(frozen=True)
class Peers:
    """The processes that denoise together.

    Attributes:
        rank: of this one; 0 runs the sampler.
        size: how many there are.
        device: this one's.
        orders: gloo group of what to do; workers wait on it for as long as it takes.
        rows: group that rows go through.
        seconds: rank 0 gives a worker up that has not answered for so long.
    """

    rank: int
    size: int
    device: torch.device
    orders: Any = field(repr=False)
    rows: Any = field(repr=False)
    seconds: float = 30.0

    def order(self, rank: int, order: Order, *sizes: int) -> None:
        """Tell a worker what to do; at most three sizes."""
        dist.send(torch.tensor([order, *sizes] + [0] * (3 - len(sizes))), rank, self.orders)

    def next_order(self) -> tuple[Order, list[int]]:
        """Wait for what rank 0 wants."""
        told = torch.empty(4, dtype=torch.long)
        dist.recv(told, 0, self.orders)
        order, *sizes = told.tolist()
        return Order(order), sizes

    def say(self, rank: int, text: bytes) -> None:
        """Send bytes over the orders' group."""
        dist.send(torch.frombuffer(bytearray(text), dtype=torch.uint8), rank, self.orders)

    def hear(self, rank: int, length: int) -> bytes:
        """Receive as many, within `seconds`."""
        text = torch.empty(length, dtype=torch.uint8)
        request: Any = dist.irecv(text, rank, self.orders)
        request.wait(timedelta(seconds=self.seconds))
        return bytes(text.tolist())

    def send(self, rank: int, tensor: Tensor) -> Any:
        """Send a tensor on this device over the rows' group: a request, to be waited for."""
        return dist.isend(tensor.contiguous(), rank, self.rows)

    def receive(self, rank: int, into: Tensor) -> Any:
        """Receive one."""
        return dist.irecv(into, rank, self.rows)


def join_peers(
    device: torch.device | str,
    *,
    rank: int = -1,
    size: int = -1,
    address: str = "env://",
    seconds: float = 30.0,
) -> Peers:
    """Meet the other processes; every one must call this. `torch.distributed.destroy_process_group()` parts them.

    Args:
        device: this process's own: "cpu", or a GPU that no other rank has.
        rank, size: of this process, and how many there are; by default from the environment, as torchrun sets it.
        address: "tcp://host:port" of rank 0; by default from the environment.
        seconds: a rank that has not answered for so long is taken for dead.

    Raises:
        torch.distributed.DistError: not all processes came within `seconds`.
    """
    device = torch.device(device)
    answer = timedelta(seconds=seconds)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("gloo", init_method=address, timeout=answer, rank=rank, world_size=size)
    orders = dist.new_group(backend="gloo", timeout=_IDLE)
    rows = dist.new_group(backend="nccl" if device.type == "cuda" else "gloo", timeout=answer)
    return Peers(dist.get_rank(), dist.get_world_size(), device, orders, rows, seconds)
