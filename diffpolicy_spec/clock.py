"""Where the time of a sampler call goes, without making the host wait for the device in between."""

from __future__ import annotations

import time
from itertools import pairwise

import torch

from .stats import TimeSplit

__all__ = ["Clock", "clock"]


def clock(device: torch.device) -> float:
    """Seconds on a clock, everything on the device done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Clock:
    """Laps of one sampler call, by part. On a GPU the laps are events, read when the call is over.

    A clock that is off (`running = False`, for captured graphs) takes no laps: the total is known, the parts are NaN.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self.running = device, True
        self.start()

    def start(self) -> None:
        """Begin a call."""
        self._parts: list[str] = []
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self._begin = clock(self._device)
        self.lap("")

    def lap(self, part: str) -> None:
        """What happened since the lap before belongs to `part`: "network", "draft", "verify" or "sync"."""
        if not self.running:
            return
        self._parts.append(part)
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def split(self) -> TimeSplit:
        """End the call: seconds in all and by part."""
        total = clock(self._device) - self._begin
        if not self.running:
            return TimeSplit(total, *[float("nan")] * 4)
        laps = [b - a for a, b in pairwise(self._times)] + [a.elapsed_time(b) / 1e3 for a, b in pairwise(self._events)]
        seconds = dict.fromkeys(("network", "draft", "verify", "sync"), 0.0)
        for part, lap in zip(self._parts[1:], laps, strict=True):
            seconds[part] += lap
        return TimeSplit(total=total, **seconds)
