"""The events of a short run, as a loop tells them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from diffpolicy_spec.control import (
    ChunkArrived,
    Fault,
    Intervention,
    LoopStarted,
    LoopStopped,
    PlanCost,
    PolicyInfo,
    Tick,
)

INFO = PolicyInfo({"q": 3}, {"front": (3, 8, 8)}, 2, 8, 16, 3, 1, "raw", "lift@12ab", "speculative")


def a_run(periods: int = 200, hz: float = 100.0) -> Iterator[Any]:
    """LoopStarted, `periods` ticks (two skipped), a chunk every 20, an intervention, two faults, LoopStopped."""
    start = 1000.0
    yield LoopStarted(start, hz, INFO)
    chunk = -1
    for n in range(periods):
        time = start + n / hz
        if n % 20 == 0:
            chunk += 1
            cost = PlanCost(40.0, 25, 200, 70, 10) if chunk else PlanCost()
            late = chunk == 3
            yield ChunkArrived(
                time, chunk, 50.0 + chunk, 60.0, cost, not late, 100.0, late, 5, 10, 0, np.full((15, 3), 0.1 * chunk)
            )
        if n in (50, 51):
            continue
        if n == 60:
            yield Intervention(time, "velocity_limit", "x: 3 was wanted, 1 sent", 0, 7)
        if n == 80:
            yield Fault(time, "late_inference", "a chunk is late")
        if n == 120:
            yield Fault(time, "late_inference", "in time again", True, 0.4)
        if n == 150:
            yield Fault(time, "server_unreachable", "127.0.0.1:1 refuses")
        moving = n >= 10
        yield Tick(
            n, time, 0.1 + 0.001 * n, np.array([0.01 * n, 1.0, -1.0]) if moving else None,
            "chunk" if moving else "nothing", chunk if moving else -1, 3.0 if moving else float("nan"),
            60.0 if moving else float("nan"), 0.4,
        )  # fmt: skip
    yield LoopStopped(start + periods / hz, "asked to")
