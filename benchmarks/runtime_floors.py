"""What a machine could do at best: how fast it reads and multiplies, and what a network needs of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffpolicy_spec.clock import clock

__all__ = ["DTYPES", "Machine", "Work", "measure_machine", "work_of"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What depends on the timestep or the condition alone: tables and features, no part of a call.
_ONCE = ("cond_encoder", "diffusion_step_encoder", "encoder", "cond_obs_emb")

_LARGE = {"cpu": (2**29, 2048), "cuda": (2**32, 8192)}  # bytes that no cache holds, rows of a matrix


@dataclass(frozen=True)
class Machine:
    """Rates of a device, with as many threads as are set.

    Attributes:
        bandwidth: bytes a second that a large tensor is read or copied with, whichever is faster.
        rates: FLOPs a second of a large matrix product, by dtype.
    """

    bandwidth: float
    rates: Mapping[str, float]


@dataclass(frozen=True)
class Work:
    """What a call needs.

    Attributes:
        weights: numbers that every call reads, whatever its rows: all but those of tables and features.
        flops: of one row, 2 for a multiplication and an addition, convolutions by their definition.
    """

    weights: int
    flops: float

    def floor(self, machine: Machine, n: int, dtype: str) -> float:
        """Seconds of a call with n rows: max(weights read once / bandwidth, n rows / matrix rate).

        Layouts that multiply less than the definition (Toom-Cook) and weights that stay in a cache go below.
        """
        return max(self.weights * DTYPES[dtype].itemsize / machine.bandwidth, n * self.flops / machine.rates[dtype])


def measure_machine(device: torch.device, dtypes: list[str], *, share: float = 1.0) -> Machine:
    """Measure; share: of the usual sizes, for trials."""
    size, side = _LARGE[device.type]
    size, side = int(size * share), int(side * share)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    read = size / _quickest(source.sum, device)
    copied = 2 * size / _quickest(lambda: target.copy_(source), device)
    rates = {}
    for name in dtypes:
        a = torch.ones(side, side, dtype=DTYPES[name], device=device)
        rates[name] = 2 * side**3 / _quickest(lambda a=a: a @ a, device)  # type: ignore[misc]
    return Machine(max(read, copied), rates)


def work_of(module: nn.Module, chunk: tuple[int, int], condition: Tensor) -> Work:
    """Count; condition: (1, C)."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(condition.new_zeros(1, *chunk), torch.zeros(1, dtype=torch.long, device=condition.device), condition)
    counts = {name: sum(of.values()) for name, of in counter.get_flop_counts().items() if name != "Global"}
    # Counts are of a module with all it contains: what is once a chunk is taken off where it begins.
    once = sum(count for name, count in counts.items() if _begins_once(name))
    weights = sum(p.numel() for name, p in module.named_parameters() if not set(_ONCE) & set(name.split(".")))
    return Work(weights, counter.get_total_flops() - once)


def _begins_once(name: str) -> bool:
    *above, last = name.split(".")
    return last in _ONCE and not set(_ONCE) & set(above)


def _quickest(work: Callable[[], object], device: torch.device, repeats: int = 8) -> float:
    times = []
    for _ in range(repeats + 1):
        begin = clock(device)
        work()
        times.append(clock(device) - begin)
    return min(times[1:])
