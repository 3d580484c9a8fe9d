"""A seven-joint arm that follows trajectories as a joint_trajectory_controller does; no ROS and nothing but Python."""

from __future__ import annotations

import itertools
from collections import deque

__all__ = ["Arm"]


class Arm:
    """Joints that are where the newest trajectory says.

    The trajectory's points are times after its stamp (zero: after it came); before the first point the joints move on a
    straight line from where they are, after the last they hold. All times are s on whatever clock the caller has.

    Args:
        names: of the joints. home: where they begin.

    Attributes:
        taken: trajectories that were followed.
        refused: why others were not.
        points: of every trajectory that was followed: when it came, its points' times, their positions.
    """

    def __init__(self, names: list[str], home: list[float]) -> None:
        self.names, self.home = list(names), list(home)
        self.taken, self.refused = 0, []
        self.points: deque[tuple[float, list[float], list[list[float]]]] = deque(maxlen=5000)
        self._path = [(0.0, list(home))]

    def follow(self, message: dict, now: float) -> None:
        """A trajectory_msgs/JointTrajectory came."""
        names = message["joint_names"]
        if sorted(names) != sorted(self.names):
            self.refused.append(f"joints {names}")
            return
        order = [names.index(name) for name in self.names]
        begin = _seconds(message["header"]["stamp"]) or now
        times = [begin + _seconds(point["time_from_start"]) for point in message["points"]]
        places = [[point["positions"][i] for i in order] for point in message["points"]]
        if any(later <= sooner for sooner, later in itertools.pairwise(times)):
            self.refused.append(f"times {times}")
            return
        ahead = [(time, place) for time, place in zip(times, places, strict=True) if time > now]
        if not ahead:
            self.refused.append(
                f"all {len(times)} points are in the past, the last by {now - max(times, default=now)} s"
            )
            return
        self.taken += 1
        self.points.append((now, times, places))
        self._path = [(now, self.position(now)), *ahead]

    def position(self, now: float) -> list[float]:
        """Of each joint, rad."""
        before = self._path[0]
        for after in self._path:
            if after[0] > now:
                part = (now - before[0]) / (after[0] - before[0]) if after[0] > before[0] else 1.0
                return [a + part * (b - a) for a, b in zip(before[1], after[1], strict=True)]
            before = after
        return list(before[1])


def _seconds(time: dict) -> float:
    return time.get("secs", time.get("sec", 0)) + 1e-9 * time.get("nsecs", time.get("nanosec", 0))
