"""The sampler in a thread of its own: requests go in from anywhere, chunks come back by a call."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.protocols import PolicyInfo
from diffpolicy_spec.policies.errors import ObservationError
from diffpolicy_spec.server.jobs import OVER, UNDER_WAY, WAITING, Job, Outcome, refusal_of, turn_of
from diffpolicy_spec.server.observations import RequestError

if TYPE_CHECKING:
    from diffpolicy_spec.policies.engine import Engine, Finished

__all__ = ["EngineThread"]

_LOG = logging.getLogger("diffpolicy_spec.server")

_OF_A_REQUEST = (ObservationError, FloatingPointError)
"""What goes wrong with one request and says nothing of the next."""


class EngineThread:
    """Runs an engine.

    Args:
        make: policy -> engine; called in the thread, and again after the engine failed.
        policy, info: what is served first.
        max_chains: jobs that the engine has at once.
        max_waiting: further ones that may wait.
        num_threads: of torch.
        warm_up: observations that chunks are drawn from, and forgotten, before it is ready; of the last one also a
            chunk that has to continue something, and one that is late.
    """

    def __init__(
        self,
        make: Callable[[Any], Engine],
        policy: Any,
        info: PolicyInfo,
        *,
        max_chains: int,
        max_waiting: int,
        num_threads: int = 1,
        warm_up: Sequence[Mapping[str, NDArray[Any]]] = (),
    ) -> None:
        self._make, self._policy, self.info = make, policy, info
        self._max_chains, self._max_waiting = max_chains, max_waiting
        self._num_threads, self._warm_up = num_threads, warm_up
        self._wake = threading.Condition()
        self._pending: list[Job] = []
        self._dropped: list[Job] = []
        self._commands: list[tuple[Callable[[], None], Future[None]]] = []
        self._running: dict[int, Job] = {}
        self._stopping = False
        self._dead: BaseException | None = None
        self._engine: Any = None
        self._progress = time.monotonic()
        self.failures = 0
        """Times in a row that the engine or its network failed, whatever was asked for."""
        self.on_failure: Callable[[], None] = lambda: None
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, timeout: float | None = None) -> None:
        """Make the engine and warm it up; raises what went wrong there."""
        atexit.register(self.stop)  # torch aborts a program that ends under one of its threads
        self._thread.start()
        self._ready.result(timeout)

    def stop(self) -> None:
        """End the thread; jobs that are left are told so."""
        atexit.unregister(self.stop)
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(5.0)

    @property
    def waiting(self) -> int:
        """Jobs that were not begun."""
        return len(self._pending)

    @property
    def under_way(self) -> int:
        """Jobs that are being drawn."""
        return len(self._running)

    def stalled_s(self) -> float:
        """For how long there has been something to do and nothing was done."""
        if self._dead is not None:
            return float("inf")
        return time.monotonic() - self._progress if self._running or self._pending else 0.0

    def submit(self, job: Job) -> None:
        """Ask for a chunk, from any thread.

        Raises:
            RequestError: too many wait, or it is going down.
        """
        with self._wake:
            if self._dead is not None:
                raise RequestError("internal", f"the sampler is dead: {self._dead}")
            if self._stopping:
                raise RequestError("draining", "the server is going down")
            if len(self._pending) >= self._max_waiting:
                raise RequestError("queue_full", f"{self._max_waiting} requests wait already")
            if not self._running and not self._pending:
                self._progress = time.monotonic()
            self._pending.append(job)
            self._wake.notify()

    def withdraw(self, job: Job, error: RequestError, *, begun: bool = True) -> bool:
        """Take a job back, from any thread; its `done` gets the error. Returns whether it was still there.

        Args:
            begun: whether one that is under way is given up, too.
        """
        with self._wake:
            if job.state == OVER or (job.state == UNDER_WAY and not begun):
                return False
            if job.state == WAITING and job in self._pending:
                self._pending.remove(job)
            else:
                self._dropped.append(job)
                self._wake.notify()
            job.state = OVER
        job.done(Outcome(None, error, job.policy, float("nan"), float("nan")))
        return True

    def swap(self, policy: Any, info: PolicyInfo) -> Future[None]:
        """Begin chunks with another policy from now on; those under way end with theirs."""

        def exchange() -> None:
            self._engine.swap(policy)
            self._policy, self.info = policy, info

        done: Future[None] = Future()
        with self._wake:
            if self._dead is not None or self._stopping:
                done.set_exception(RuntimeError("the sampler has ended"))
                return done
            self._commands.append((exchange, done))
            self._wake.notify()
        return done

    # From here on everything runs in the thread.

    def _run(self) -> None:
        try:
            import torch

            torch.set_num_threads(self._num_threads)
            self._engine = self._make(self._policy)
            self._warm()
        except BaseException as error:
            self._stopping = True
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        try:
            while self._once():
                pass
        except BaseException as error:
            self._dead = error
            _LOG.critical("the sampler is dead", exc_info=error)
        finally:
            self._end()

    def _warm(self) -> None:
        middle = np.zeros((1, self.info.action_dim))
        ways: list[tuple[Any, dict[str, Any]]] = [(obs, {}) for obs in self._warm_up]
        ways += [(obs, more) for obs in self._warm_up[-1:] for more in ({"committed": middle}, {"deadline": -np.inf})]
        for obs, more in ways:
            self._engine.submit(obs, **{"seed": 0, "committed": None, "deadline": None} | more)
            while self._engine.under_way or self._engine.waiting:
                for finished in self._engine.step():
                    if finished.error is not None:
                        raise finished.error

    def _once(self) -> bool:
        with self._wake:
            while not (self._stopping or self._pending or self._dropped or self._commands or self._running):
                self._wake.wait()
            if self._stopping:
                return False
            self._progress = time.monotonic()
            dropped, self._dropped = self._dropped, []
            commands, self._commands = self._commands, []
            # What is dropped in this round frees its place in the next one.
            places = self._max_chains - len(self._running)
            begin = self._taken(places)
        for command, done in commands:
            _do(command, done)
        for job in dropped:
            if self._running.get(job.ticket) is job:
                del self._running[job.ticket]
                self._engine.cancel(job.ticket)
        for job in begin:
            self._begin(job)
        if self._running:
            try:
                finished = self._engine.step()
            except Exception as error:
                self._failed(error)
            else:
                for one in finished:
                    self._finish(one)
                if any(one.error is not None and not isinstance(one.error, _OF_A_REQUEST) for one in finished):
                    self.failures += 1  # a device that is broken fails every call, and raises nothing here
                    self.on_failure()
        return True

    def _taken(self, places: int) -> list[Job]:
        """Jobs whose turn it is: a client that has fewer under way goes first, whatever deadlines others claim."""
        begin: list[Job] = []
        under_way = Counter(job.client for job in self._running.values())
        while self._pending and len(begin) < places:
            job = min(self._pending, key=lambda one: (under_way[one.client], *turn_of(one)))
            self._pending.remove(job)
            job.state = UNDER_WAY
            under_way[job.client] += 1
            begin.append(job)
        return begin

    def _begin(self, job: Job) -> None:
        job.begun, job.policy = time.monotonic(), self.info.policy
        try:
            job.ticket = self._engine.submit(job.obs, seed=job.seed, committed=job.committed, deadline=job.deadline)
        except Exception as error:
            self._answer(job, None, refusal_of(error))
        else:
            self._running[job.ticket] = job

    def _finish(self, finished: Finished) -> None:
        job = self._running.pop(finished.ticket, None)
        if job is None:  # it was dropped meanwhile
            return
        if finished.error is not None:
            self._answer(job, None, refusal_of(finished.error))
        elif finished.action_pred is None or not np.isfinite(finished.action_pred).all():
            self._answer(job, None, RequestError("internal", "the policy's chunk is not finite"))
        else:
            self.failures = 0
            self._answer(job, finished, None)

    def _failed(self, error: Exception) -> None:
        """The engine is broken: what it had is lost, and another one is made."""
        self.failures += 1
        _LOG.error("the sampler failed with %d chunks under way; it is made anew", len(self._running), exc_info=error)
        lost, self._running = list(self._running.values()), {}
        for job in lost:
            self._answer(job, None, RequestError("internal", f"the sampler failed: {type(error).__name__}: {error}"))
        self.on_failure()
        self._engine = self._make(self._policy)

    def _answer(self, job: Job, finished: Finished | None, error: RequestError | None) -> None:
        with self._wake:
            if job.state == OVER:
                return
            job.state = OVER
        now = time.monotonic()
        queue_ms, sampling_ms = 1e3 * (job.begun - job.arrived), 1e3 * (now - job.begun)
        job.done(Outcome(finished, error, job.policy, queue_ms, sampling_ms))

    def _end(self) -> None:
        with self._wake:
            self._stopping = True
            left = [*self._pending, *self._running.values()]
            self._running = {}
            commands, self._commands = self._commands, []
            self._pending.clear()
        gone = RequestError("internal", "the sampler is dead") if self._dead else None
        for job in left:
            self._answer(job, None, gone or RequestError("draining", "the server is going down"))
        for _, done in commands:
            done.cancel()


def _do(command: Callable[[], None], done: Future[None]) -> None:
    try:
        command()
    except Exception as error:
        done.set_exception(error)
    else:
        done.set_result(None)
