"""A robot that is a set of topics."""

from __future__ import annotations

import math
import threading
import time as _time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.protocols import Failure, Observation
from diffpolicy_spec.ros.commands import Commands
from diffpolicy_spec.ros.contract import Contract
from diffpolicy_spec.ros.contract_inputs import IMAGE_TYPES, Input
from diffpolicy_spec.ros.messages import BadMessage, JointsMissing, field_names, read_message, stamp_of
from diffpolicy_spec.ros.synchronise import Synchroniser, Taken
from diffpolicy_spec.ros.transport import Message, Transport

__all__ = ["TopicRobot"]

SILENT_S = 1.0
"""A topic that was silent for so long is told, if it was not throttled to come less often."""

SILENT_AGAIN_S = 0.5
"""And told again so often: it is no fault that is over."""

IMAGE_GAP = 0.25
"""Control periods: images that come faster are not decoded."""


class TopicRobot:
    """A `Robot` over topics: newest messages of one time are an observation, an action is a message or several.

    Subscribes and advertises when it is made. An observation's time is that of its messages' headers (ROS time), or
    when they came where they have none. Messages that cannot be used are dropped, counted, and told by `failures`.

    Args:
        contract: what is what. transport: carries the messages.
        clock: s, for how long a topic was silent.

    Attributes:
        counts: messages received, observations; bad_message, missing_joints, nonfinite, unsynchronised, out_of_order;
            skipped (images that come faster than anybody could use them).
        commands: where actions go, and its own counts.
    """

    def __init__(
        self, contract: Contract, transport: Transport, *, clock: Callable[[], float] = _time.monotonic
    ) -> None:
        self.contract, self.transport, self._clock = contract, transport, clock
        self.commands = Commands(contract, transport)
        self.counts: Counter[str] = Counter()
        self._inputs = {topic.topic: topic for topic in contract.inputs}
        self._messages: Synchroniser[list[NDArray[Any]]] = Synchroniser(list(self._inputs))
        self._fresh: deque[Observation] = deque(maxlen=64)  # nobody has read them yet
        self._failures: dict[tuple[str, str, bool], Failure] = {}
        self._heard: dict[str, float] = {}
        self._silent: dict[str, float] = {}  # when it was told last
        self._lock = threading.Lock()
        self._reader: int | None = None
        self._began, self._never = clock(), True
        self._deferring = False
        transport.on_disconnect(self._disconnected)
        transport.on_connect(self._connected)
        transport.on_problem(lambda kind, message: self._fail(kind, message))
        for topic in contract.inputs:
            transport.subscribe(
                topic.topic,
                topic.type,
                lambda message, received, topic=topic: self._receive(topic, message, received),  # type: ignore[misc]
                queue_length=topic.queue_length,
                throttle_ms=topic.throttle_ms,
            )

    # Of Robot

    def read(self) -> Observation | None:
        """The newest observation that was not returned before."""
        fresh = self.readings()
        return fresh[-1] if fresh else None

    def readings(self) -> list[Observation]:
        """All observations since the last call, oldest first."""
        self._reader = threading.get_ident()
        self._listen_for_silence()
        with self._lock:
            fresh = list(self._fresh)
            self._fresh.clear()
        return fresh

    def send(self, action: NDArray[np.float64], time: float) -> None:
        """Publish an action (Da,); time: s, ROS time.

        Raises:
            ValueError: it has numbers that are not finite, or that name no rotation.
        """
        # The watchdog sends from a thread of its own, and then nobody follows.
        self.commands.send(action, time, later=self._deferring and threading.get_ident() == self._reader)

    def stop(self) -> None:
        """What is commanded in velocities stands still."""
        self.commands.stop()

    def close(self) -> None:
        """Withdraw from all topics."""
        self.transport.close()

    # Beside it

    def failures(self) -> Sequence[Failure]:
        """What went wrong since the last call: each kind and topic once."""
        with self._lock:
            told, self._failures = list(self._failures.values()), {}
        return told

    def defer(self) -> None:
        """Have trajectories wait for `commands.chunk` or `commands.flush`, which then has to follow each `send`."""
        self._deferring = True

    # In the transport's thread

    def _connected(self) -> None:
        self._never, self._began = False, self._clock()
        self._forget()
        self._fail("connection_lost", "connected", recovered=True)

    def _disconnected(self, reason: str) -> None:
        self._forget()
        self._fail("connection_lost", f"no connection to ROS, nothing is sent or received: {reason}")

    def _forget(self) -> None:
        with self._lock:
            self._messages.clear()
            self._fresh.clear()
            self._heard.clear()
            self._silent.clear()
        self.commands.forget()

    def _receive(self, topic: Input, message: Message, received: float) -> None:
        now = self._clock()
        last = self._heard.get(topic.topic)
        self.counts["received"] += 1
        if topic.type in IMAGE_TYPES and last is not None and now - last < IMAGE_GAP / self.contract.control.control_hz:
            self.counts["skipped"] += 1
            return
        self._heard[topic.topic] = now
        try:
            values = read_message(message, topic)
            time = stamp_of(message) if self.contract.stamps == "header" else None
        except BadMessage as error:
            missing = isinstance(error, JointsMissing)
            self.counts["missing_joints" if missing else "bad_message"] += 1
            self._fail("observation_invalid" if missing else "bad_message", f"{topic.topic}: {error}", topic.topic)
            return
        for part, found in zip(topic.fields, values, strict=True):
            if found.dtype.kind == "f" and not np.isfinite(found).all():
                names = field_names(part, found.size) if found.ndim == 1 else [part.key]
                bad = ", ".join(name for name, fine in zip(names, np.isfinite(found).ravel(), strict=False) if not fine)
                self.counts["nonfinite"] += 1
                text = f"{topic.topic}: {part.field} of {bad[:300]} is not finite; the message is dropped"
                self._fail("observation_invalid", text, topic.topic)
                return
        with self._lock:
            if not self._messages.put(topic.topic, received if time is None else time, values):
                self.counts["out_of_order"] += 1
            taken = self._messages.take()
        if taken is not None:
            self._observe(taken)

    def _observe(self, taken: Taken[list[NDArray[Any]]]) -> None:
        if 1e3 * taken.apart > self.contract.tolerance_ms:
            self.counts["unsynchronised"] += 1
            text = (
                f"{taken.topic}: its nearest message is {1e3 * taken.apart:.0f} ms from the other topics', more than "
                f"tolerance_ms {self.contract.tolerance_ms:g}: set it, or the clocks, right (`stamps: receipt` takes "
                "the times at which messages come)"
            )
            self._fail("observation_invalid", text, taken.topic)
            return
        parts: dict[str, list[NDArray[Any]]] = {}
        for topic, values in taken.messages.items():
            for part, found in zip(self._inputs[topic].fields, values, strict=True):
                parts.setdefault(part.key, []).append(found)
        observed = {key: found[0] if len(found) == 1 else np.concatenate(found) for key, found in parts.items()}
        with self._lock:
            self._fresh.append(Observation(taken.time, observed))
        self.counts["observations"] += 1

    # In any thread

    def _listen_for_silence(self) -> None:
        now = self._clock()
        if not self.transport.connected:
            if self._never and now - self._began > SILENT_S:
                self._never = False
                self._fail("connection_lost", "there is no connection to ROS yet: does rosbridge run there?")
            return
        for topic in self.contract.inputs:
            last = self._heard.get(topic.topic, self._began)
            silent = now - last > SILENT_S + 2e-3 * topic.throttle_ms
            if silent and now - self._silent.get(topic.topic, -math.inf) >= SILENT_AGAIN_S:
                self._silent[topic.topic] = now
                text = f"{topic.topic}: no message for {now - last:.1f} s: is it published, as {topic.type}?"
                self._fail("observation_invalid", text, topic.topic)
            elif not silent:
                self._silent.pop(topic.topic, None)

    def _fail(self, kind: str, message: str, topic: str = "", recovered: bool = False) -> None:
        with self._lock:
            if recovered or kind == "connection_lost":
                # The last word counts, but a loss that was not told yet is.
                self._failures.pop((kind, topic, recovered), None)
            self._failures.setdefault((kind, topic, recovered), Failure(kind, message, recovered=recovered))
