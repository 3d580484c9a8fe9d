"""The ways to run a policy that are tried on a device, and their names in tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import product
from typing import Any

import torch

from diffpolicy_spec.runtime.capture import has_conditions
from diffpolicy_spec.runtime.config import RuntimeConfig

__all__ = ["described", "keeping_threads", "runtimes", "thread_counts"]

_FIELDS = tuple(field.name for field in fields(RuntimeConfig))
_ROUNDS = 8  # of a chunk in one graph: a few more than a chunk takes


def runtimes(
    device: torch.device,
    given: str | Sequence[Mapping[str, Any]] = "auto",
    *,
    threads: str | Sequence[int] = "auto",
    dtypes: Sequence[str | None] = (None,),
) -> tuple[RuntimeConfig, ...]:
    """Runtimes to try on a device; the first is the one that every sampler is tried with.

    Args:
        given: a list of mappings with fields of `RuntimeConfig`; a dtype or, on a CPU, threads that an entry does not
            say are tried as the arguments below say. "auto": eager on a CPU; on a GPU eager, graphs, compiled graphs,
            and where there are several GPUs rows shared out over them.
        threads: of torch on a CPU: "auto" for 1, 2, 4, ... and all cores, or a list.
        dtypes: of the denoiser; None: as it was loaded. The law is that of the network rounded so.

    Raises:
        ValueError: anything else, or nothing at all.
    """
    counts: Sequence[int | None] = [None]
    if device.type == "cpu":
        counts = thread_counts(_cores()) if threads == "auto" else _listed("threads", threads)
    found: dict[RuntimeConfig, None] = {}
    for entry in _listed("runtimes", _tried_unasked(device) if given == "auto" else given):
        if not isinstance(entry, Mapping) or not set(entry) <= set(_FIELDS):
            raise ValueError(f"runtimes: an entry has some of {', '.join(_FIELDS)}, got {entry!r}")
        for dtype, count in product(_listed("dtypes", dtypes), counts):
            found[RuntimeConfig(**{"dtype": dtype, "threads": count, **entry})] = None
    return tuple(found)


def _tried_unasked(device: torch.device) -> list[dict[str, Any]]:
    """Not compiled on a CPU: that takes minutes a sampler."""
    if device.type == "cpu":
        return [{"mode": "eager"}]
    several = [{"mode": "graphs", "rounds": _ROUNDS}] if has_conditions() else []
    others = [f"cuda:{i}" for i in range(torch.cuda.device_count()) if i != (device.index or 0)]
    shared = [{"devices": (f"cuda:{device.index or 0}", *others)}] if others else []
    return [{"mode": "eager"}, {"mode": "graphs"}, *several, {"mode": "compiled_graphs"}, *shared]


def _listed(name: str, given: Any) -> Sequence[Any]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ValueError(f"{name} must be a list of at least one (runtimes and threads: or auto), got {given!r}")
    return given


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4, ... and all cores."""
    return [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n < cores] + [cores]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def described(runtime: RuntimeConfig) -> str:
    """Such as "eager, 2 threads" or "graphs, 8 rounds, bfloat16"."""
    parts = [runtime.mode]
    if runtime.rounds > 1:
        parts.append(f"{runtime.rounds} rounds")
    if runtime.dtype is not None:
        parts.append(runtime.dtype)
    if runtime.devices:
        parts.append(f"on {', '.join(runtime.devices)}")
    if runtime.threads is not None:
        parts.append(f"{runtime.threads} thread{'s' if runtime.threads > 1 else ''}")
    return ", ".join(parts)


@contextmanager
def keeping_threads(count: int | None = None) -> Iterator[None]:
    """With so many torch threads (None: as they are); afterwards as many as before, whatever was set meanwhile."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
