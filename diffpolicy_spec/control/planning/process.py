"""Chunks made by a process of their own, which is started anew when it dies."""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpolicy_spec.control.planning.framing import receive, send
from diffpolicy_spec.control.planning.local import LocalPlanner
from diffpolicy_spec.control.planning.maker import Maker
from diffpolicy_spec.control.planning.worker import load_maker, start_worker
from diffpolicy_spec.control.protocols import Failure

if TYPE_CHECKING:
    from diffpolicy_spec.runtime import RuntimeConfig
    from diffpolicy_spec.samplers import SamplerConfig

__all__ = ["ProcessPlanner"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_LOOK_S = 0.1  # between two looks at whether the worker hangs


class ProcessPlanner(LocalPlanner):
    """A `Planner`: a policy in a process of its own, so that the loop's process does nothing but its own work.

    torch is imported there only. The process has one thread for its computations and a lower priority, so that the loop
    keeps its rate on a machine with two cores; more threads, where there are cores for them, make chunks quicker. It
    leaves Ctrl-C to the loop's process and ends with it.

    A request that comes while a chunk is being made waits; a newer one takes its place, and it is answered by a Failure
    "late_inference". A worker that dies, hangs or cannot begin is told ("worker_died", "worker_failed"), and another
    one is started after 0.2 s, 0.4 s, ... 5 s; requests are answered by that Failure until it is ready. A worker whose
    policy raises is told and lives on.

    Args:
        checkpoint: as `load_policy` takes it.
        sampler, runtime: as config files have them (configs/sampler, configs/runtime), or made already; None: the
            policy's default.
        device, weights: as in `load_policy`.
        num_threads: of the worker on a CPU.
        nice: how much it steps back for others, 0 to 19.
        warm_up: chunks that are drawn before it is ready.
        finish_steps: network calls that finish a chunk whose deadline would be missed, where a request does not say.
        committed: whether chunks will have to continue committed actions: another chunk of the warm-up.
        watch: whether a checkpoint that takes this one's place is used from then on, see `WatchedPolicy`; told as
            "policy_swapped" or "policy_refused".
        hang_s: a worker that has not answered for so long is killed and started anew.
        start_s: the same until it is ready.
        make: instead of a checkpoint: a function, to be called in the worker, that returns a `Maker`. It is pickled by
            its name: a function of a module, not of the program itself.

    Raises:
        ValueError: numbers that cannot be, or neither a checkpoint nor `make`.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        *,
        sampler: Mapping[str, Any] | SamplerConfig | None = None,
        runtime: Mapping[str, Any] | RuntimeConfig | None = None,
        device: str = "cpu",
        weights: str = "auto",
        num_threads: int = 1,
        nice: int = 5,
        warm_up: int = 2,
        finish_steps: int = 4,
        committed: bool = False,
        watch: bool = True,
        hang_s: float = 30.0,
        start_s: float = 600.0,
        make: Callable[[], Maker] | None = None,
    ) -> None:
        if (checkpoint is None) == (make is None):
            raise ValueError("a planner needs a checkpoint, or make, a function that returns what makes chunks")
        for name, value, least in (("num_threads", num_threads, 1), ("nice", nice, 0), ("warm_up", warm_up, 0),
                                   ("finish_steps", finish_steps, 1)):  # fmt: skip
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not (hang_s > 0 and start_s > 0):
            raise ValueError(f"hang_s and start_s must be positive, got {hang_s} and {start_s}")
        self._make = make or partial(
            load_maker, num_threads, checkpoint=checkpoint, sampler=sampler, runtime=runtime, device=device,
            weights=weights, chunks=warm_up, finish_steps=finish_steps, inpainted=committed, watch=watch,
        )  # fmt: skip
        self._num_threads, self._nice, self._hang_s, self._start_s = num_threads, nice, hang_s, start_s
        super().__init__()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._pause, self._failing = _FIRST_PAUSE_S, False
        self._down: list[str] = []  # what has been told since there was a worker

    @property
    def pid(self) -> int | None:
        """Of the worker; None where there is none just now."""
        process = self._process
        return None if process is None else process.pid

    def close(self) -> None:
        """End the worker; requests that have no answer yet get a Failure."""
        self._desk.end()
        process = self._process
        if process is not None:
            process.kill()
        super().close()

    def _work(self) -> Sequence[Callable[[], None]]:
        return [self._supervise, self._hand_over]

    def _hand_over(self) -> None:
        """Requests, one at a time, to the worker there is. In a thread of its own: one that hangs reads nothing."""
        while not self._desk.ended:
            request, worker = self._desk.take(), self._socket
            if request is not None and worker is not None:
                try:
                    send(worker, request)
                except OSError:
                    continue  # the other thread knows

    def _supervise(self) -> None:
        while not self._desk.ended:
            try:
                process, worker = start_worker(self._num_threads, self._nice)
            except OSError as error:
                self._broke("worker_failed", f"no worker process can be started: {error}")
            else:
                self._process = process
                worker.settimeout(self._hang_s)
                try:
                    kind, why = self._attend(process, worker)
                finally:
                    process.kill()
                    process.wait()
                    self._socket = self._process = None
                    worker.close()
                self._broke(kind, why)
            self._desk.pause(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)

    def _broke(self, kind: str, why: str) -> None:
        """No worker now: tell it, and answer what was asked."""
        if self._desk.ended:
            return
        message = f"{why}; another one is started in {self._pause:.1f} s"
        if kind not in self._down:
            self._down.append(kind)
        if self._desk.lock(kind, message) is None:
            self._desk.tell(Failure(kind, message))

    def _attend(self, process: subprocess.Popen[bytes], worker: socket.socket) -> tuple[str, str]:
        """Hear what a worker says until it is of no use any more; returns what of FAULTS that is, and why."""
        began, ear = time.monotonic(), select.poll()
        ear.register(worker, select.POLLIN)
        try:
            send(worker, self._make)
            while not self._desk.ended:
                if ear.poll(1e3 * _LOOK_S):
                    message = receive(worker)
                    if message[0] == "broken":
                        return "worker_failed", f"the worker cannot begin: {message[1]}"
                    self._heard(message, worker)
                    continue
                under_way, now = self._desk.under_way, time.monotonic()
                if self._socket is None and now - began > self._start_s:
                    return "worker_failed", f"the worker was not ready after {self._start_s:.0f} s: killed"
                if under_way is not None and now - under_way[1] > self._hang_s:
                    return "worker_died", f"the worker gave no answer for {self._hang_s:.0f} s: killed"
        except TimeoutError:
            return "worker_died", f"the worker stopped in the middle of an answer for {self._hang_s:.0f} s: killed"
        except (EOFError, OSError):
            return "worker_died", f"the worker {_ending(process)}"
        return "worker_died", "the planner is closed"

    def _heard(self, message: Sequence[Any], worker: socket.socket) -> None:
        kind, desk = message[0], self._desk
        if kind == "ready":
            self._info, self._socket = message[1], worker
            for over in self._down:
                desk.tell(Failure(over, "the worker is back, and warmed up", recovered=True))
            self._down.clear()
            desk.unlock()
        elif kind == "plan":
            self._pause = _FIRST_PAUSE_S
            if self._failing:
                desk.tell(Failure("worker_failed", "chunks are made again", recovered=True))
                self._failing = False
            desk.answer(message[1])
        elif kind == "failed":
            self._failing = True
            desk.answer(Failure("worker_failed", f"no chunk was made: {message[2]}", message[1]))
        else:
            self._info = message[2]
            desk.tell(message[1])


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How a process that is gone, or about to be, ended."""
    try:
        code = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return "has let go of its connection"
    if code >= 0:
        return f"ended by itself with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
