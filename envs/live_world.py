"""In the simulator's process: the environment on a grid of wall-clock time, and which command is executed when.

The grid's points are t_j = t_0 + j dt. At t_j the state of that moment is published, stamped t_j, and then the step
from t_j to t_{j+1} is made with the command that is meant for t_j: of those that are there and meant for no later than
half a step from it the one nearest to it in time. Where it is more than half a step too old it counts as late; where
there is no new one the last is held, and this counts, too. A grid point that comes late, because the machine was busy,
is made up for: the points after it keep their times.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.envs.base import ActionError
from diffpolicy_spec.envs.config import EnvConfig

__all__ = ["Command", "EpisodeResult", "LiveWorld", "due", "serve"]

_MOST_LATE = 10
"""Steps that are made up for; a world that is further behind goes on from now."""
_WARM_UP_STEPS = 3

Command = tuple[float, NDArray[np.float64]]
"""(time it is meant for, action)"""


@dataclass(frozen=True, eq=False)
class EpisodeResult:
    """What came of an episode in real time.

    Attributes:
        seed: of the reset.
        success: whether any step solved the task.
        actions: (steps, Da), what was executed.
        late: steps whose command was meant for more than half a step before; held: steps without a new command.
        refused: commands that are no action of the environment; the one before is held.
        step_late_ms: (steps,), how long after its time each step was made.
        slipped: grid points that were left out because the world was too far behind.
    """

    seed: int
    success: bool
    actions: NDArray[np.float64]
    late: int
    held: int
    refused: int
    step_late_ms: NDArray[np.float64]
    slipped: int

    @property
    def steps(self) -> int:
        """Steps until it was solved, or the horizon."""
        return len(self.actions)


def due(commands: Iterable[Command], t: float, dt: float) -> tuple[Command | None, list[Command]]:
    """The command to execute at t, None where none is due, and those that are left for later.

    Args:
        commands: that have come and not been executed.
        t, dt: s, of the step and between steps.
    """
    ripe = [c for c in commands if c[0] <= t + dt / 2]
    if not ripe:
        return None, list(commands)
    chosen = min(ripe, key=lambda c: abs(c[0] - t))
    return chosen, [c for c in commands if c[0] > chosen[0]]


class LiveWorld:
    """An environment whose step is made when its time has come.

    Args:
        env: a gymnasium environment with `info["success"]`.
        dt: s of wall clock between steps.
        max_steps: of an episode; None: the environment's own horizon.
    """

    def __init__(self, env: Any, dt: float, max_steps: int | None = None) -> None:
        self._env, self.dt, self._max_steps = env, dt, max_steps
        self._commands: deque[Command] = deque(maxlen=1024)
        self.observation: dict[str, NDArray[Any]] | None = None
        self.under_way = False
        self.slipped = 0

    def warm_up(self) -> None:
        """The first steps of a process compile code, some seconds of it."""
        self._env.action_space.seed(0)
        self._env.reset(seed=0)
        for _ in range(_WARM_UP_STEPS):
            with suppress(ActionError):
                self._env.step(self._env.action_space.sample())

    def reset(self, seed: int) -> None:
        """Set up an episode; forgets commands."""
        self.observation, _ = self._env.reset(seed=seed)
        self._commands.clear()
        self._seed, self._success = seed, False
        self._last: NDArray[np.float64] | None = None
        self._actions: list[NDArray[np.float64]] = []
        self._late_ms: list[float] = []
        self._late = self._held = self._refused = self.slipped = 0
        self.under_way = True

    def command(self, command: Command) -> None:
        """Take a command that has come."""
        self._commands.append(command)

    def step(self, t: float, now: float) -> EpisodeResult | None:
        """Make the step that is due at t; what came of the episode when it is the last. Before the first command
        nothing is done.

        Args:
            t, now: s, of the grid and the clock.
        """
        chosen, left = due(self._commands, t, self.dt)
        if chosen is None and self._last is None:
            return None
        if chosen is not None:
            self._commands.clear()
            self._commands.extend(left)
            self._late += chosen[0] < t - self.dt / 2
        else:
            self._held += 1
        action = self._last if chosen is None else chosen[1]
        try:
            observation, _, terminated, truncated, info = self._env.step(action)
        except ActionError:
            self._refused += 1
            if self._last is None:
                return None
            action = self._last
            observation, _, terminated, truncated, info = self._env.step(action)
        assert action is not None
        self.observation, self._last = observation, action
        self._actions.append(action)
        self._late_ms.append(1e3 * (now - t))
        self._success = self._success or bool(info["success"])
        over = terminated or truncated or len(self._actions) == self._max_steps
        if not over:
            return None
        self.under_way = False
        return EpisodeResult(
            seed=self._seed,
            success=self._success,
            actions=np.stack(self._actions),
            late=self._late,
            held=self._held,
            refused=self._refused,
            step_late_ms=np.array(self._late_ms),
            slipped=self.slipped,
        )


def serve(pipe: Connection, link: socket.socket, config: EnvConfig, control_hz: float, max_steps: int | None) -> None:
    """The process: episodes are asked for through the pipe, readings and commands pass through the link."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        world = LiveWorld(config.make(), 1 / control_hz, max_steps)
        world.warm_up()
    except Exception as error:
        with suppress(OSError):
            pipe.send(("failed", error))
        return
    with suppress(EOFError, OSError):  # the parent has gone
        _go_on(world, pipe, link)


def _go_on(world: LiveWorld, pipe: Connection, link: socket.socket) -> None:
    t = time.monotonic()
    while True:
        while True:  # until t
            ready = wait([pipe, link], max(0.0, t - time.monotonic()))
            if link in ready:
                _take(world, link)
            if pipe in ready:
                what, seed = pipe.recv()
                if what == "close":
                    return
                world.reset(seed)
                _take(world, link, drop=True)
                pipe.send(("standing", None))
                t = time.monotonic()
            now = time.monotonic()
            if now >= t:
                break
        if world.observation is not None:
            with suppress(BlockingIOError):  # nobody reads: as lost as a reading that nobody looks at
                link.send(pickle.dumps((t, world.observation), protocol=5))
        if world.under_way:
            result = world.step(t, now)
            if result is not None:
                pipe.send(("done", result))
        t += world.dt
        behind = int((time.monotonic() - t) / world.dt)
        if behind > _MOST_LATE:
            world.slipped += behind
            t += behind * world.dt


def _take(world: LiveWorld, link: socket.socket, drop: bool = False) -> None:
    try:
        while True:
            message = link.recv(65536)
            if not drop:
                world.command(pickle.loads(message))
    except BlockingIOError:
        return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
