"""Chunks for a control loop, made by a policy."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec.control.protocols import Failure, Plan, PlanCost, PlanRequest
from diffpolicy_spec.finish import DEFAULT_FINISH_STEPS
from diffpolicy_spec.policies.committed import inpainting_of
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.policies.info import policy_info
from diffpolicy_spec.policies.reload import Swapped, WatchedPolicy
from diffpolicy_spec.policies.warm_up import warm_up
from diffpolicy_spec.runtime import RuntimeConfig
from diffpolicy_spec.samplers import BoundSampler, SamplerConfig

__all__ = ["PolicyMaker", "open_policy", "runtime_config", "sampler_config"]

ANSWER_S = 0.002
"""s before a request's deadline that its chunk is drawn: what it takes to hand it over."""


class PolicyMaker:
    """Makes chunks one by one, each drafted from the one before.

    Args:
        policy: a policy, or one whose checkpoint is watched: it is looked at in `poll`.
        sampler: how chunks are drawn, None: the default; of a watched policy its own.
        finish_steps: network calls that finish a chain which would be late, where a request does not say.
    """

    def __init__(
        self,
        policy: DiffusionPolicy | WatchedPolicy,
        sampler: BoundSampler | None = None,
        *,
        finish_steps: int = DEFAULT_FINISH_STEPS,
    ) -> None:
        self._watched = policy if isinstance(policy, WatchedPolicy) else None
        self._finish_steps = finish_steps
        self._generator = torch.Generator()
        self._generator.seed()  # torch's default one begins at the same number in every process
        if self._watched is None:
            assert isinstance(policy, DiffusionPolicy)
            self._policy, self._sampler = policy, sampler or policy.bind()
            self.info = policy_info(self._policy, self._sampler)
        else:
            self._follow(self._watched)
        self._plan: Tensor | None = None
        self._seed: int | None = None

    def _follow(self, watched: WatchedPolicy) -> None:
        self._policy, self._sampler, self.info = watched.policy, watched.sampler, watched.info
        self._plan = None

    def make(self, request: PlanRequest) -> Plan:
        """The chunk that is asked for.

        Raises:
            ObservationError, ValueError, FloatingPointError: as `DiffusionPolicy.predict_action`, and for committed
                actions that cannot be.
        """
        begin = time.monotonic()
        generator = self._generator
        if request.seed is not None:
            generator = torch.Generator().manual_seed(request.seed)
        # A draft must not depend on the noise of the chain it is for; with the seed of the chunk before it would.
        drafted = self._plan if request.seed is None or request.seed != self._seed else None
        output = self._policy.predict_action(
            {key: value[None] for key, value in request.obs.items()},
            sampler=self._sampler,
            generator=generator,
            previous_plan=drafted,
            inpaint=None if request.committed is None else inpainting_of(self._policy, request.committed),
            deadline=None if request.deadline is None else request.deadline - ANSWER_S,
            finish_steps=request.finish_steps or self._finish_steps,
        )
        self._plan, self._seed = output.plan, request.seed
        actions = output.action_pred[0, self.info.first :].double().cpu().numpy()
        stats = output.sample.stats
        cost = PlanCost(
            latency_ms=1e3 * (time.monotonic() - begin),
            calls=int(stats.calls[0]),
            evaluations=int(stats.evaluations[0]),
            accepted=int(stats.accepted[0]),
            rejected=int(stats.rejected[0]),
        )
        return Plan(request.id, actions, exact=not bool(stats.inexact[0]), cost=cost, policy=self.info.policy)

    def poll(self) -> Sequence[Failure]:
        """Whether the checkpoint was replaced; the new policy makes the next chunk."""
        found = None if self._watched is None else self._watched.poll()
        if self._watched is None or found is None:
            return ()
        if isinstance(found, Swapped):
            self._follow(self._watched)
            return (Failure("policy_swapped", found.message),)
        return (Failure("policy_refused", found.message),)


def open_policy(
    checkpoint: str | Path,
    *,
    sampler: Mapping[str, Any] | SamplerConfig | None = None,
    runtime: Mapping[str, Any] | RuntimeConfig | None = None,
    device: str = "cpu",
    weights: str = "auto",
    chunks: int = 2,
    finish_steps: int = DEFAULT_FINISH_STEPS,
    inpainted: bool = False,
    watch: bool = True,
) -> PolicyMaker:
    """A checkpoint, loaded and warmed up.

    Args:
        sampler, runtime: as config files have them, or made already; None: the policy's default.
        chunks: to warm up with, and one more that is finished early; 0: none.
        inpainted: whether chunks will have to continue committed actions, for the warm-up.
        watch: take over a checkpoint that takes this one's place, see `WatchedPolicy`.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ScheduleError, ValueError: sampler or runtime do not fit it.
        FloatingPointError: its network returns NaN or infinite values.
    """
    running = runtime_config(runtime)

    def prepare(policy: DiffusionPolicy, bound: BoundSampler) -> None:
        policy.use(running)
        warm_up(policy, bound, chunks, finish_steps=finish_steps, inpainted=inpainted)

    watched = WatchedPolicy(
        checkpoint, device, weights=weights, sampler=sampler_config(sampler), prepare=prepare,
        in_thread=not running.captures, look_every=0.1 if watch else math.inf,
    )  # fmt: skip
    return PolicyMaker(watched, finish_steps=finish_steps)


def sampler_config(given: Mapping[str, Any] | SamplerConfig | None) -> SamplerConfig | None:
    """A sampler as a config file has it (configs/sampler): method, num_inference_steps, eta, options, most_chains.

    Raises:
        ValueError: an unknown name, or what `SamplerConfig` refuses.
    """
    if given is None or isinstance(given, SamplerConfig):
        return given
    values = {key: value for key, value in given.items() if key != "name"}
    if values.get("runtime") is not None:
        values["runtime"] = runtime_config(values["runtime"])
    return _made(SamplerConfig, "sampler", values)


def runtime_config(given: Mapping[str, Any] | RuntimeConfig | None) -> RuntimeConfig:
    """A runtime as a config file has it (configs/runtime).

    Raises:
        ValueError: an unknown name, or what `RuntimeConfig` refuses.
    """
    if given is None or isinstance(given, RuntimeConfig):
        return given or RuntimeConfig()
    return _made(RuntimeConfig, "runtime", dict(given))


def _made(make: Any, what: str, values: dict[str, Any]) -> Any:
    try:
        return make(**values)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from error
