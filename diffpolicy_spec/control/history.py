"""What a robot has observed, by the time it was read: the policy's last To observations, dt apart."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.protocols import PolicyInfo

__all__ = ["DUPLICATE", "NEW", "OLD", "REORDERED", "History", "Stack", "misfit"]

NEW = "new"
DUPLICATE = "duplicate"
REORDERED = "reordered"
OLD = "old"

_Values = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Stack:
    """The observations a chunk is made from.

    Attributes:
        obs: key -> (To, d), camera -> (To, C, H, W), oldest first.
        time: s on the robot's clock, of the newest.
        lost: of the To, those another one stands for that is further off than the tolerance.
    """

    obs: Mapping[str, NDArray[Any]]
    time: float
    lost: int


def misfit(values: Mapping[str, Any], info: PolicyInfo) -> str | None:
    """What about a reading is not as the policy needs it; None: nothing. Keys that it does not know do not matter."""
    shapes: dict[str, tuple[int, ...]] = {key: (d,) for key, d in info.obs_dims.items()}
    shapes.update(info.image_shapes)
    missing = [key for key in shapes if key not in values]
    if missing:
        others = ", ".join(sorted(map(str, values.keys() - shapes.keys()))) or "nothing else"
        return f"{', '.join(missing)} missing (the robot gives {others} beside what the policy knows)"
    for key, shape in shapes.items():
        value = np.asarray(values[key])
        if value.dtype.kind not in "biuf":
            return f"{key} is not numbers ({value.dtype})"
        if value.shape != shape:
            return f"{key} has shape {value.shape}, the policy needs {shape}"
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return f"{key} is not finite"
    return None


class History:
    """Readings of the last while, sorted by their time on the robot's clock.

    Args:
        info: the policy's keys and To.
        dt: s, of a policy step.
        tolerance: in policy steps, see `ControlConfig.history_tolerance`.
        most: readings kept at most.
    """

    def __init__(self, info: PolicyInfo, dt: float, tolerance: float = 0.5, most: int = 4096) -> None:
        self._keys = (*info.obs_dims, *info.image_shapes)
        self._steps, self._dt, self._tolerance, self._most = info.n_obs_steps, dt, tolerance, most
        self._span = (info.n_obs_steps + 1) * dt
        self._gaps: deque[float] = deque(maxlen=15)
        self.clear()

    def clear(self) -> None:
        """Forget all readings."""
        self._times: list[float] = []
        self._values: list[_Values] = []
        self._gaps.clear()
        self._missing = 0
        self._excused = False

    def __len__(self) -> int:
        return len(self._times)

    @property
    def newest(self) -> float | None:
        """s on the robot's clock; None without a reading."""
        return self._times[-1] if self._times else None

    @property
    def missing(self) -> int:
        """Readings that did not come between the newest and the one before it, by the usual distance of readings.

        Distances below one and a half policy steps are never called gaps: a loop may be faster or slower than its
        sensors.
        """
        return self._missing

    def excuse(self) -> None:
        """Nobody has looked for a while: the next gap says nothing."""
        self._excused = True

    def add(self, time: float, values: Mapping[str, NDArray[Any]]) -> str:
        """Take a reading that fits (see `misfit`): NEW, DUPLICATE, REORDERED (sorted in) or OLD (of no use)."""
        times = self._times
        at = bisect.bisect_left(times, time)
        if at < len(times) and times[at] == time:
            return DUPLICATE
        if times and time < times[-1] - self._span:
            return OLD
        # A copy: a robot may write its next reading into the same arrays.
        kept = {key: np.array(values[key]) for key in self._keys}
        if times and at == len(times):
            self._look_at_gap(time - times[-1])
        times.insert(at, time)
        self._values.insert(at, kept)
        # One reading older than the span is kept: it may be the nearest older one of the oldest step.
        drop = max(bisect.bisect_left(times, times[-1] - self._span) - 1, len(times) - self._most, 0)
        del times[:drop], self._values[:drop]
        return NEW if at + 1 - drop == len(times) else REORDERED

    def _look_at_gap(self, gap: float) -> None:
        excused, self._excused, self._missing = self._excused, False, 0
        if excused:
            return
        usual = sorted(self._gaps)[len(self._gaps) // 2] if self._gaps else gap
        self._gaps.append(gap)
        if gap > 1.5 * max(usual, self._dt):
            self._missing = round(gap / usual) - 1

    def stack(self) -> Stack | None:
        """The policy's history up to the newest reading; None without one.

        Step j before the newest stands for newest - j dt: the nearest reading within the tolerance, else the nearest
        older one, which is counted. Before the first reading the first one is repeated, as in diffusion_policy, and
        not counted.
        """
        if not self._times:
            return None
        times, newest = self._times, self._times[-1]
        chosen, lost = [len(times) - 1], 0
        for j in range(1, self._steps):
            wanted = newest - j * self._dt
            after = bisect.bisect_left(times, wanted)
            near = min((i for i in (after - 1, after) if 0 <= i < len(times)), key=lambda i: abs(times[i] - wanted))
            if abs(times[near] - wanted) > self._tolerance * self._dt + 1e-9:
                lost += after > 0
                near = max(after - 1, 0)
            chosen.append(near)
        rows = [self._values[i] for i in reversed(chosen)]
        return Stack({key: np.stack([row[key] for row in rows]) for key in self._keys}, newest, lost)
