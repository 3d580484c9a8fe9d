"""What the planners of one machine have in common: a desk, and threads of their own that work at it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

from diffpolicy_spec.control.planning.desk import Desk
from diffpolicy_spec.control.protocols import Failure, Plan, PlanRequest, PolicyInfo

__all__ = ["LocalPlanner"]


class LocalPlanner(ABC):
    """A `Planner` whose requests are worked on by threads of this process."""

    def __init__(self) -> None:
        self._desk = Desk()
        self._info: PolicyInfo | None = None
        self._threads: list[threading.Thread] = []

    @abstractmethod
    def _work(self) -> Sequence[Callable[[], None]]:
        """What each thread does, until the desk has ended."""

    def start(self) -> None:
        """Load the policy and warm it up; `ready` says when that is done.

        Where it was started before, nothing happens: several loops may use it, one after another.

        Raises:
            RuntimeError: it is closed.
        """
        if self._desk.ended:
            raise RuntimeError("this planner is closed; make another one")
        if self._threads:
            return
        self._desk.lock("late_inference", "the policy is still being loaded")
        for work in self._work():
            thread = threading.Thread(target=work, name="dps-planner", daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def info(self) -> PolicyInfo | None:
        """Of the policy; None until it is ready for the first time."""
        return self._info

    @property
    def ready(self) -> bool:
        """Whether a request would be worked on now."""
        return self._desk.open

    def submit(self, request: PlanRequest) -> None:
        """Ask for a chunk; it, or a Failure, comes by `poll`."""
        self._desk.submit(request)

    def poll(self) -> Sequence[Plan | Failure]:
        """What has come since."""
        return self._desk.poll()

    def close(self) -> None:
        """Begin nothing new; requests that have no answer yet get a Failure. A chunk that a thread of this process is
        making is waited for, 2 s at most."""
        self._desk.end()
        for thread in self._threads:
            thread.join(2.0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
