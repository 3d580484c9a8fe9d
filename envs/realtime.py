"""A simulated robot that waits for nobody: the environment in a process of its own, stepped by the wall clock.

    with LiveSim(EnvConfig("lift", "absolute_rot6d")) as sim:
        sim.reset(seed=0)
        ControlLoop(sim.robot, planner, config).run(duration=20)   # or whatever commands it
        print(sim.result(timeout=1))

The world goes on at its rate whether or not somebody commands, `live_world` has the rules. What passes between the
processes are datagrams, which block neither side: a reader that sleeps misses readings, a simulator that sleeps misses
commands, as with a real robot's network.
"""

from __future__ import annotations

import multiprocessing
import pickle
import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.protocols import Observation
from diffpolicy_spec.envs.config import EnvConfig
from diffpolicy_spec.envs.live_world import EpisodeResult, serve
from diffpolicy_spec.envs.tasks import get_task

__all__ = ["EpisodeResult", "LiveSim", "SimDiedError", "SimRobot"]


class SimDiedError(RuntimeError):
    """The simulator's process is gone; the message says how it ended."""


class SimRobot:
    """The robot's side of a `LiveSim`: a `control.Robot` on the clock `time.monotonic`.

    Args:
        link: connected to the simulator's process, without waiting.
        clock_offset: s, the robot's clock minus `time.monotonic`.

    Attributes:
        sent: commands sent; lost: those that found the simulator's queue full.
    """

    def __init__(self, link: socket.socket, clock_offset: float = 0.0) -> None:
        self._link, self.clock_offset = link, clock_offset
        self.sent = self.lost = 0

    def now(self) -> float:
        """s on the robot's clock."""
        return time.monotonic() + self.clock_offset

    def read(self) -> Observation | None:
        """The newest reading, None where nothing has come since.

        Raises:
            SimDiedError: the simulator's process is gone.
        """
        newest: bytes | None = None
        for newest in self._messages():  # noqa: B007
            pass
        return None if newest is None else self._observation(newest)

    def readings(self) -> list[Observation]:
        """All readings that have come since, oldest first.

        Raises:
            SimDiedError: the simulator's process is gone.
        """
        return [self._observation(message) for message in self._messages()]

    def _messages(self) -> Iterator[bytes]:
        try:
            while True:
                yield self._link.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError as error:
            raise SimDiedError(f"the simulator's process is gone ({error})") from error

    def _observation(self, message: bytes) -> Observation:
        stamp, values = pickle.loads(message)
        return Observation(stamp + self.clock_offset, values)

    def wait(self, timeout: float) -> bool:
        """Wait until a reading is there, `timeout` s at most; whether one is. A loop does not need it."""
        return bool(select.select([self._link], [], [], timeout)[0])

    def send(self, action: NDArray[np.float64], time: float) -> None:
        """Command an action (Da,) for a time on the robot's clock.

        Raises:
            SimDiedError: the simulator's process is gone.
        """
        message = pickle.dumps((time - self.clock_offset, np.array(action, dtype=np.float64)), protocol=5)
        self.sent += 1
        try:
            self._link.send(message)
        except BlockingIOError:
            self.lost += 1
        except OSError as error:
            raise SimDiedError(f"the simulator's process is gone ({error})") from error


class LiveSim:
    """An environment in its own process, in real time, one episode at a time.

    Args:
        config: what is simulated.
        control_hz: steps a second of wall clock; None: the task's own rate. Another one runs the same world slower or
            faster than it is: whoever commands it commands at this rate.
        max_steps: of an episode; None: the task's horizon.
        clock_offset: s, of the robot's clock.

    Attributes:
        robot: reads and commands it.
        control_hz: see above.

    Raises:
        ValueError: a rate or a number of steps that cannot be; OSError: no process or socket could be made.
    """

    def __init__(
        self,
        config: EnvConfig,
        *,
        control_hz: float | None = None,
        max_steps: int | None = None,
        clock_offset: float = 0.0,
    ) -> None:
        self.control_hz = float(get_task(config.task).control_freq if control_hz is None else control_hz)
        if not 0 < self.control_hz <= 1000:
            raise ValueError(f"control_hz must be above 0 and at most 1000 steps a second, got {control_hz}")
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}")
        context = multiprocessing.get_context("spawn")  # forked, it would share locks and OpenGL
        self._pipe, its_pipe = context.Pipe()
        link, its_link = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (link, its_link):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)
        self.process = context.Process(
            target=serve, args=(its_pipe, its_link, config, self.control_hz, max_steps), name="simulator", daemon=True
        )
        self.process.start()
        its_pipe.close()
        its_link.close()
        self._link = link
        self.robot = SimRobot(link, clock_offset)
        self._result: EpisodeResult | None = None

    def __enter__(self) -> LiveSim:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset(self, seed: int, timeout: float = 180.0) -> None:
        """Set up an episode and wait until it stands; it begins with the first command that comes after this.

        Until then nothing moves, but readings are given. What commanded the episode before has to be stopped first.

        Args:
            seed: of the environment's reset.
            timeout: s; the first reset waits for the simulator to be built and its code compiled.

        Raises:
            SimDiedError: the process ended, or does not answer in time.
            ValueError, ImportError: the environment cannot be made.
        """
        self._result = None
        with suppress(OSError):
            self._pipe.send(("reset", seed))
        end = time.monotonic() + timeout
        while True:
            kind, _ = self._answer(end - time.monotonic())
            if kind == "standing":
                break
            if kind == "nothing":
                raise SimDiedError(f"the simulator has not set up an episode within {timeout:.0f} s")
        with suppress(SimDiedError):  # readings of the episode before
            self.robot.read()

    def result(self, timeout: float = 0.0) -> EpisodeResult | None:
        """What came of the episode; None while it goes on after `timeout` s.

        Raises:
            SimDiedError: the process ended.
        """
        end = time.monotonic() + timeout
        while self._result is None:
            kind, what = self._answer(end - time.monotonic())
            if kind == "nothing":
                return None
            if kind == "done":
                self._result = what
        return self._result

    def close(self) -> None:
        """End the process; a second call does nothing."""
        if self.process.is_alive():
            with suppress(OSError):
                self._pipe.send(("close", None))
            self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self._pipe.close()
        self._link.close()

    def _answer(self, timeout: float) -> tuple[str, Any]:
        """The next thing the process has to say; ("nothing", None) where there is none in time."""
        try:
            if not self._pipe.poll(max(0.0, timeout)):
                return "nothing", None
            kind, what = self._pipe.recv()
        except (EOFError, OSError) as error:
            self.process.join(timeout=5)
            raise SimDiedError(f"the simulator's process ended with code {self.process.exitcode}") from error
        if kind == "failed":
            raise what
        return kind, what


_LARGEST = 4 << 20
"""bytes of a reading: what is asked of the system for its buffers, which may allow less."""
