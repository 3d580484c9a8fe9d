"""Chunks made in a thread of the same process: for scripts, notebooks and tests."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from diffpolicy_spec.control.planning.local import LocalPlanner
from diffpolicy_spec.control.planning.maker import FunctionMaker, Maker, message_of
from diffpolicy_spec.control.protocols import Failure, Plan, PlanRequest, PolicyInfo

if TYPE_CHECKING:
    from diffpolicy_spec.policies import DiffusionPolicy
    from diffpolicy_spec.policies.reload import WatchedPolicy
    from diffpolicy_spec.samplers import BoundSampler, SamplerConfig

__all__ = ["InlinePlanner"]

_IDLE_S = 0.1


class InlinePlanner(LocalPlanner):
    """A `Planner` that makes chunks in a thread beside the loop.

    Chunks and loop share Python's lock: the loop's periods are late by milliseconds while a chunk is made. A robot's
    loop takes a `ProcessPlanner`.

    Args:
        policy: a policy, one whose checkpoint is watched, or a function PlanRequest -> Plan.
        info: of what the function makes; of a policy it is known.
        sampler: how a policy's chunks are drawn; None: its default, or the watched policy's own.
        warm_up: chunks that are drawn before it is ready.
        finish_steps: network calls that finish a chunk whose deadline would be missed, where a request does not say.

    Raises:
        ValueError: a function without `info`.
    """

    def __init__(
        self,
        policy: DiffusionPolicy | WatchedPolicy | Callable[[PlanRequest], Plan],
        *,
        info: PolicyInfo | None = None,
        sampler: BoundSampler | SamplerConfig | None = None,
        warm_up: int = 1,
        finish_steps: int = 4,
    ) -> None:
        super().__init__()
        self._make: Callable[[], Maker]
        if callable(policy):
            if info is None:
                raise ValueError("a planner of a function needs info, a PolicyInfo that says what it makes")
            function, told = policy, info
            self._make = lambda: FunctionMaker(function, told)
        else:
            given = policy
            self._make = lambda: _policy_maker(given, sampler, warm_up, finish_steps)

    def start(self) -> None:
        """See `LocalPlanner.start`."""
        super().start()
        atexit.register(self.close)  # torch aborts a program that ends under one of its threads

    def close(self) -> None:
        """See `LocalPlanner.close`."""
        atexit.unregister(self.close)
        super().close()

    def _work(self) -> Sequence[Callable[[], None]]:
        return [self._make_chunks]

    def _make_chunks(self) -> None:
        desk, failing = self._desk, False
        try:
            maker = self._make()
        except Exception as error:
            message = f"the planner cannot begin: {message_of(error)}"
            desk.lock("worker_failed", message)
            desk.tell(Failure("worker_failed", message))
            return
        self._info = maker.info
        desk.unlock()
        answer: Plan | Failure
        while not desk.ended:
            request = desk.take(_IDLE_S)
            if request is not None:
                try:
                    answer = maker.make(request)
                except Exception as error:
                    answer = Failure("worker_failed", f"no chunk was made: {message_of(error)}", request.id)
                    failing = True
                else:
                    if failing:
                        desk.tell(Failure("worker_failed", "chunks are made again", recovered=True))
                        failing = False
                desk.answer(answer)
            for failure in maker.poll():
                self._info = maker.info
                desk.tell(failure)


def _policy_maker(
    policy: DiffusionPolicy | WatchedPolicy,
    sampler: BoundSampler | SamplerConfig | None,
    chunks: int,
    finish_steps: int,
) -> Maker:
    from diffpolicy_spec.policies.maker import PolicyMaker
    from diffpolicy_spec.policies.reload import WatchedPolicy
    from diffpolicy_spec.policies.warm_up import warm_up
    from diffpolicy_spec.samplers import SamplerConfig

    if isinstance(policy, WatchedPolicy):
        warm_up(policy.policy, policy.sampler, chunks, finish_steps=finish_steps)
        return PolicyMaker(policy, finish_steps=finish_steps)
    bound = policy.bind(sampler) if sampler is None or isinstance(sampler, SamplerConfig) else sampler
    warm_up(policy, bound, chunks, finish_steps=finish_steps)
    return PolicyMaker(policy, bound, finish_steps=finish_steps)
