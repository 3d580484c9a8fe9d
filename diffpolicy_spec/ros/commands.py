"""Commands on their way to a robot's topics.

A JointTrajectory with `points: chunk` is a promise: what will be commanded, as far as is known, on the control loop's
own grid of times. A command that keeps it is not sent again; one that does not (another chunk, a limit, the safety
action, a stop) replaces the trajectory by a new one, of that command alone or, where a chunk has come, of all that
follows. So the controller follows the loop's commands without a message each period, and when everything ends it stays
at the last point.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.ros.contract import Contract
from diffpolicy_spec.ros.contract_outputs import Output
from diffpolicy_spec.ros.outputs import command, standstill, trajectory, values_of
from diffpolicy_spec.ros.transport import Message, Transport

__all__ = ["Commands"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Promise:
    """What a published trajectory says: points (n, d) at first, first + period, ..."""

    points: Array
    first: float
    period: float

    def keeps(self, values: Array, time: float, tolerance: float) -> bool:
        """Whether values (d,) at `time` are what it says."""
        place = round((time - self.first) / self.period)
        return place >= 0 and bool(np.all(np.abs(self.points[min(place, len(self.points) - 1)] - values) <= tolerance))


class Commands:
    """Publishes actions to the topics of a contract. From any thread; waits for nothing.

    Args:
        contract: its outputs. transport: carries them.

    Attributes:
        counts: sent (messages), not_sent (without a connection), trajectories (of those sent, chunks).
    """

    def __init__(self, contract: Contract, transport: Transport) -> None:
        self._contract, self._transport = contract, transport
        self._period = 1 / contract.control.control_hz
        self._publish: list[tuple[Output, Callable[[Message], bool]]] = [
            (output, transport.advertise(output.topic, output.type, queue_length=output.queue_length))
            for output in contract.outputs
        ]
        self._rates = {output.topic for output in contract.outputs if _is_rate(output, contract.safety.kind)}
        self._promises: dict[str, _Promise] = {}
        self._pending: tuple[Array, float] | None = None
        self._last: tuple[Array, float] | None = None
        self._followed = True
        self._lock = threading.Lock()
        self._held = False
        self.counts: Counter[str] = Counter(sent=0, not_sent=0, trajectories=0)

    def send(self, action: Array, time: float, *, later: bool = False) -> None:
        """Publish a command.

        Args:
            action: (Da,). time: s, on the robot's clock, when it is to be executed.
            later: trajectories may wait for `chunk` or `flush`, one of which follows at once; where neither has
                followed a command, they wait no more.

        Raises:
            ValueError: numbers that are not finite or name no rotation; nothing of it is published.
        """
        action = np.asarray(action, dtype=np.float64)
        with self._lock:
            if self._held:
                self.counts["not_sent"] += 1
                return
            messages = []
            # A listener that was to follow and has not is gone, or the loop has left its usual way.
            self._followed = self._followed and self._pending is None
            broken, later = False, later and self._followed
            for output, publish in self._publish:
                if output.promised:
                    promise, values = self._promises.get(output.topic), values_of(output, action)
                    broken |= promise is None or not promise.keeps(values, time, output.tolerance)
                else:
                    messages.append((publish, command(output, action, time, self._period, self._contract.ros)))
            for publish, message in messages:
                self._count(publish(message))
            self._last = action, time
            self._pending = (action, time) if broken else None
            if broken and not later:
                self._trajectories(action[None], time)

    def chunk(self, following: Array) -> None:
        """Publish what follows the last command, as trajectories.

        Args:
            following: (n, Da), of the next periods.
        """
        with self._lock:
            self._followed = True
            if self._last is not None and len(following):
                action, time = self._last
                self._trajectories(np.concatenate([action[None], following]), time)
                self.counts["trajectories"] += 1

    def flush(self) -> None:
        """Publish a command that had to wait, if no chunk has replaced it."""
        with self._lock:
            self._followed = True
            if self._pending is not None:
                self._trajectories(self._pending[0][None], self._pending[1])

    def stop(self) -> None:
        """What is commanded in velocities stands still; targets stay as they are, the last one published."""
        self.flush()
        with self._lock:
            for output, publish in self._publish:
                message = standstill(output)
                if message is None and output.topic in self._rates:
                    message = command(output, np.zeros(output.stop), 0.0, self._period, self._contract.ros)
                if message is not None:
                    self._count(publish(message))

    def hold_back(self) -> None:
        """Publish no more commands, until `let_go`: those there are were made for a robot that may be elsewhere."""
        with self._lock:
            self._held = True

    def let_go(self) -> None:
        """Publish commands again."""
        self._held = False

    def forget(self) -> None:
        """What was published before does not count: after a lost connection nobody knows who has it."""
        with self._lock:
            self._promises.clear()
            self._pending = self._last = None

    def _trajectories(self, actions: Array, first: float) -> None:
        self._pending = None
        for output, publish in self._publish:
            if not output.promised:
                continue
            points = values_of(output, actions)
            sent = publish(trajectory(output, points, first, self._period, self._contract.ros))
            self._count(sent)
            if sent:
                self._promises[output.topic] = _Promise(points, first, self._period)

    def _count(self, sent: bool) -> None:
        self.counts["sent" if sent else "not_sent"] += 1


def _is_rate(output: Output, kind: str | Sequence[str]) -> bool:
    """Whether all a Float64MultiArray commands are velocities."""
    kinds = {kind} if isinstance(kind, str) else set(kind[output.start : output.stop])
    return output.type == "std_msgs/Float64MultiArray" and kinds == {"velocity"}
