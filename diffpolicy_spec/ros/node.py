"""The node: a control loop whose robot is a set of topics, its services, its diagnostics. No ROS is imported here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from diffpolicy_spec.control import ControlLoop, Planner, PolicyInfo, Subscriber
from diffpolicy_spec.control.events import ChunkArrived, Fault, Intervention, Tick
from diffpolicy_spec.control.records import Recorder
from diffpolicy_spec.ros.contract import Contract, ContractError, mismatches
from diffpolicy_spec.ros.diagnostics import DIAGNOSTICS_TYPE, ERROR, OK, WARN, Status, diagnostic_array
from diffpolicy_spec.ros.messages import header
from diffpolicy_spec.ros.services import TRIGGER, handlers
from diffpolicy_spec.ros.topic_robot import TopicRobot
from diffpolicy_spec.ros.transport import Transport

__all__ = ["BridgeNode"]

LOGGER = logging.getLogger("diffpolicy_spec.ros")
HEARTBEAT_TYPE = "std_msgs/Header"
HANGS_S = 1.0
MOST_POINTS = 256
"""Of a trajectory; chunks have fewer."""


class BridgeNode:
    """Drives the robot behind a transport by a planner's chunks, as a contract says.

    The services are offered and diagnostics published from the beginning; commands begin with `run` or `start`, and, if
    the contract does not say `autostart`, when the service `start` is called.

    When the connection comes back after it was lost, chunks and observations of before are forgotten: the robot stood
    meanwhile, and the next command is held against where it is then.

    Args:
        contract, transport, planner: see there. The node closes transport and planner.
        subscribers: more listeners to the loop's events.

    Attributes:
        loop, robot, recorder: its parts.
    """

    def __init__(
        self, contract: Contract, transport: Transport, planner: Planner, *, subscribers: Sequence[Subscriber] = ()
    ) -> None:
        self.contract, self.transport, self.planner = contract, transport, planner
        self.recorder = Recorder()
        self.robot = TopicRobot(contract, transport)
        self.loop = ControlLoop(
            self.robot,
            planner,
            contract.control,
            contract.safety,
            [self.recorder, _Events(self), *subscribers],
        )
        self.emergency: str | None = None
        self.mismatch: str | None = None
        self._met = False
        self._notes: list[str] = []
        self._note_lock = threading.Lock()
        self._diagnose = transport.advertise(contract.diagnostics.topic, DIAGNOSTICS_TYPE, queue_length=10)
        heartbeat = contract.heartbeat
        self._beat = transport.advertise(heartbeat.topic, HEARTBEAT_TYPE) if heartbeat else None
        self._beat_every = max(1, round(contract.control.control_hz / heartbeat.hz)) if heartbeat else 0
        for service, handler in handlers(self).items():
            transport.advertise_service(contract.services[service], TRIGGER, handler)
        self._was_connected = self._anew = False
        transport.on_disconnect(self._disconnected)
        transport.on_connect(self._connected)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._report, name="diagnostics", daemon=True)
        self._thread.start()

    # Running

    def run(self, duration: float | None = None, *, signals: bool = True) -> None:
        """Block until `stop`, a signal, or for `duration` s; see `ControlLoop.run`.

        Raises:
            ContractError: the contract does not fit the policy. Nothing was sent.
            ValueError: the safety limits do not fit its actions. Nothing was sent.
        """
        self._await_start()
        try:
            self.loop.run(duration, signals=signals)
        except ValueError as error:
            raise self._explained(error) from None
        self._raise_mismatch()

    def begin(self, duration: float | None = None) -> None:
        """`run` in a thread of its own; `wait` for its end."""
        self._await_start()
        self.loop.start(duration)

    def wait(self, timeout: float | None = None) -> bool:
        """Whether the loop has ended within `timeout` s; raises what `run` would have."""
        try:
            ended = self.loop.join(timeout)
        except ValueError as error:
            raise self._explained(error) from None
        if ended:
            self._raise_mismatch()
        return ended

    @property
    def longest_stop(self) -> float:
        """s, within which the loop ends after `end`."""
        return self.loop.longest_stop + 1

    def end(self, reason: str = "asked to") -> None:
        """Come to rest within the limits, and end the loop."""
        self.loop.stop(reason)

    def close(self) -> None:
        """End the loop if it runs, say so in the diagnostics, and let go of everything."""
        if self._closed.is_set():
            return
        if self.loop.state != "idle":
            self.loop.stop("the node is closed")
            try:
                self.loop.join(self.longest_stop)
            except Exception:  # all else is closed though the loop has failed
                LOGGER.exception("the control loop has failed")
        self._closed.set()
        self._thread.join(2)
        self.publish_diagnostics()
        self.loop.close()

    # Services, see `services.Controls`

    def start(self) -> str:
        """Have chunks executed."""
        if self.mismatch is not None:
            raise ValueError(self.mismatch)
        if self.emergency is not None:
            raise ValueError(f"an emergency stop is in force ({self.emergency}): call reset, then start")
        if self.loop.state == "idle":
            raise ValueError("the control loop is not running")
        self.loop.resume()
        return "started" if self.loop.info is not None else "starts as soon as the policy is ready"

    def pause(self) -> str:
        """The safety action, and no chunks, until `start`."""
        self.loop.pause()
        return f"stopped: {self.contract.safety.action}"

    def reset(self) -> str:
        """A new episode: forget chunks and observations; end an emergency stop. The robot waits for `start`."""
        self.loop.pause()
        self.loop.reset()
        self.emergency = None
        return "reset: call start to go on"

    def emergency_stop(self, reason: str = "asked to by service") -> str:
        """Come to rest and stay, until `reset` and then `start`."""
        self.emergency = reason
        self.loop.emergency_stop(self.emergency)
        return "emergency stop: call reset, then start to go on"

    # Diagnostics

    def statuses(self) -> list[Status]:
        """How the node, the policy and the topics are, now."""
        summary, info = self.recorder.summary(), self.loop.info
        state, faults = self.loop.state, self.loop.faults
        with self._note_lock:
            notes, self._notes = self._notes, []
        if self.mismatch is not None:
            level, message = ERROR, self.mismatch
        elif self.emergency is not None:
            level, message = ERROR, f"emergency stop: {self.emergency}"
        elif state in ("stopped", "idle"):
            level, message = ERROR, "stopped by the safety layer" if state == "stopped" else "the loop is not running"
        elif self.loop.behind > HANGS_S:
            level, message = ERROR, f"the loop hangs since {self.loop.behind:.1f} s, the watchdog commands"
        elif faults or notes:
            level, message = WARN, f"{state}: {'; '.join([*notes, *faults])}"
        else:
            level, message = OK, state
        values = summary.data()
        values = {"state": state, "faults_now": ", ".join(faults) or "none", **values}
        name = self.contract.name
        policy = Status(
            f"{name}: policy",
            OK if self.planner.ready else WARN,
            "ready" if self.planner.ready else "not ready",
            {"policy": info.policy, "sampler": info.sampler} if info is not None else {},
        )
        topics = Status(
            f"{name}: topics",
            OK if self.transport.connected else ERROR,
            "connected" if self.transport.connected else "no connection",
            {"received": dict(self.robot.counts), "published": dict(self.robot.commands.counts)},
        )
        return [Status(f"{name}: control", level, message, values), policy, topics]

    def publish_diagnostics(self) -> bool:
        """Publish them now; whether they were sent."""
        diagnostics = self.contract.diagnostics
        return self._diagnose(
            diagnostic_array(self.statuses(), self.transport.now(), self.contract.ros, diagnostics.hardware_id)
        )

    def _report(self) -> None:
        while not self._closed.wait(1 / self.contract.diagnostics.hz):
            try:
                self.publish_diagnostics()
            except Exception:  # a robot is not driven blind for a number that cannot be told
                LOGGER.exception("diagnostics could not be published")

    # Inside

    def _await_start(self) -> None:
        """Each run waits for the service, whatever was asked for in the one before."""
        if not self.contract.autostart and self.loop.state == "idle":
            self.loop.pause()

    def _disconnected(self, reason: str) -> None:
        # The loop goes on. Where it is when the connection is back, the robot is not: nothing of it may be sent then.
        self._anew = False
        self.robot.commands.hold_back()

    def _connected(self) -> None:
        if self._was_connected and self.emergency is None:
            # What the loop has commanded meanwhile nobody got. A latched stop stays: there the robot is at rest anyway.
            self.robot.stop()  # what it was to do when the line was cut may have been a velocity
            self.loop.reset()
            self._anew = True
        else:
            self.robot.commands.let_go()
        self._was_connected = True

    def _began_anew(self) -> None:
        """The loop has sent nothing in a period since it was to forget: it commands from where the robot is, now."""
        if self._anew:
            self._anew = False
            self.robot.commands.let_go()

    def _note(self, message: str) -> None:
        with self._note_lock:
            if len(self._notes) < 5 and message not in self._notes:
                self._notes.append(message)

    def _meet(self) -> None:
        if not self._met and self.loop.info is not None:
            self._met = True
            self._compare(self.loop.info)
            if self.mismatch is not None:
                self.loop.stop(self.mismatch)

    def _compare(self, info: PolicyInfo) -> None:
        wrong = mismatches(self.contract, info)
        if wrong:
            self.mismatch = f"{self.contract.source or 'the contract'} does not fit the policy: {'; '.join(wrong)}"

    def _explained(self, error: ValueError) -> ValueError:
        """What the loop refused, in the contract's terms where it is that."""
        if self.planner.info is not None:
            self._compare(self.planner.info)
        return error if self.mismatch is None else ContractError(self.mismatch)

    def _raise_mismatch(self) -> None:
        if self.mismatch is not None:
            raise ContractError(self.mismatch)


class _Events(Subscriber):
    """What the node does in the loop's thread."""

    def __init__(self, node: BridgeNode) -> None:
        self._node = node
        self._fresh = False
        self._promises = any(output.promised for output in node.contract.outputs)
        if self._promises:
            node.robot.defer()

    def on_chunk(self, event: ChunkArrived) -> None:
        self._fresh = True

    def on_tick(self, event: Tick) -> None:
        node = self._node
        node._meet()
        if event.action is None:
            node._began_anew()
        if self._promises:
            # A chunk is published as a whole when its commands are: not while the safety action is sent instead.
            following = None
            if self._fresh and event.source in ("chunk", "old_chunk"):
                self._fresh = False
                following = node.loop.following(MOST_POINTS)
            if following is not None:
                node.robot.commands.chunk(following)
            else:
                node.robot.commands.flush()
        if node._beat is not None and event.action is not None and event.index % node._beat_every == 0:
            node._beat(header(node.transport.now(), node.contract.ros))

    def on_intervention(self, event: Intervention) -> None:
        self._node._note(event.message)

    def on_fault(self, event: Fault) -> None:
        if not event.recovered:
            self._node._note(event.message)
