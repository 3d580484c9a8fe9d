"""A policy's pool: requests go in as checked observations, come out as actions, and share each call in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from diffpolicy_spec.choice.cost import CallCost, measure_call_cost
from diffpolicy_spec.choice.sharing import Sharing
from diffpolicy_spec.clock import clock
from diffpolicy_spec.finish import finish
from diffpolicy_spec.inpainting import Inpainting
from diffpolicy_spec.networks import Networks
from diffpolicy_spec.noise import draw_noise
from diffpolicy_spec.policies.committed import inpainting_of
from diffpolicy_spec.policies.conditioning import condition, over_plan
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.policies.runner import Runner
from diffpolicy_spec.pool import Pool
from diffpolicy_spec.samplers import SamplerConfig
from diffpolicy_spec.stats import SampleStats

__all__ = ["Lane", "Request"]

_MEASURED = 256  # rows of a call that is timed at most; beyond, its time is taken to grow on


@dataclass(frozen=True, eq=False)
class Request:
    """A chunk that is asked for.

    Attributes:
        ticket: its number.
        values: the observation, as `ObservationEncoder.check` returned it, (1, To, ...) by key.
        generator: of its noise.
        committed: (n, Da) actions that the chunk continues, in their own units; None: it is free.
        submitted: s on the engine's clock.
        deadline: s on the engine's clock, when the chunk has to be there; None: however long it takes.
    """

    ticket: int
    values: dict[str, Tensor]
    generator: torch.Generator
    committed: NDArray[Any] | None
    submitted: float
    deadline: float | None


class Lane:
    """Chains of one policy under way in a pool.

    Args:
        sampler: None: the policy's own.
        slots: chains under way at most.
        adaptive: whether the rows of a call are shared out by what gets on fastest, see `choice.sharing`; else each
            chain has the rows that the sampler's window says.
        call: what calls of this network cost; None: it is measured, where it matters.

    Raises:
        ValueError: the sampler's runtime has several devices.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        sampler: SamplerConfig | None,
        slots: int,
        *,
        adaptive: bool = True,
        call: CallCost | None = None,
    ) -> None:
        bound = policy.bind(sampler)
        # How many chains are under way changes from call to call; the rows of a call are chosen by what it costs.
        bound = replace(bound, config=replace(bound.config, most_chains=None))
        self.policy, self.sampler, self._slots = policy, bound, slots
        runner = policy.runner(bound.config.runtime)
        self.threads = runner.config.threads
        self.denoise, small = runner.conditioned()
        self._small = small if bound.uses_draft else None
        config = policy.config
        self._shape = (config.horizon, config.plan_dim)
        networks = Networks(
            self.denoise, bound.schedule, (slots, *self._shape), policy.device, draft=self._small
        )  # fmt: skip
        networks.clock.running = False
        self.pool = Pool(bound.chains, networks)
        self.requests: dict[int, Request] = {}  # by slot
        self.call, self._sharing = call, None
        if adaptive and slots > 1 and self.pool.chains.narrows:
            self.call = self._measured(runner) if call is None else call
            self.pool.share = self._sharing = Sharing(bound.schedule.num_steps, self.call)

    @property
    def num_steps(self) -> int:
        """K."""
        return self.sampler.schedule.num_steps

    @torch.no_grad()
    def admit(self, requests: Sequence[Request]) -> None:
        """Encode the observations together and begin the chains; each draws what it would draw alone.

        Raises:
            ObservationError: an observation cannot be encoded (after a swap, say); none has begun then.
        """
        policy, generators = self.policy, [request.generator for request in requests]
        values = {key: _joined([request.values[key] for request in requests]) for key in requests[0].values}
        given, known = condition(policy.observations.encode(values, generators), policy.config)
        inpaint = over_plan(known, self._known(requests), policy.config)
        noise = draw_noise((len(requests), *self._shape), self.sampler.schedule, generators, policy.device)
        slots = self.pool.join(noise, generators, inpaint=inpaint)
        chain = torch.tensor(slots, device=policy.device)
        self.denoise.put(given, chain, self._slots)
        if self._small is not None:
            self._small.put(given, chain, self._slots)
        self.requests |= dict(zip(slots, requests, strict=True))

    def round(self) -> list[int]:
        """One call shared by all chains under way; slots of those that are through."""
        begin = clock(self.policy.device)
        through = self.pool.round()
        if self._sharing is not None:
            self._sharing.took(self.pool.evaluated, clock(self.policy.device) - begin)
        return through

    def finish(self, slots: Sequence[int], steps: int) -> None:
        """Bring chains to their end by a few DDIM steps: see `finish`."""
        finish(self.pool.chains, torch.tensor(list(slots), device=self.policy.device), steps)
        self.pool.finished(slots)

    @torch.no_grad()
    def take(self, slots: Sequence[int]) -> tuple[Tensor, SampleStats]:
        """Plans (n, T, Da) of chains that are through, in the actions' own units, and what they cost.

        Raises:
            FloatingPointError: one of them is broken.
        """
        sample = self.pool.sample(slots)
        actions = self.policy.normalizer.unnormalize("action", sample.x0[..., : self.policy.config.action_dim])
        return actions, sample.stats

    def leave(self, slots: Sequence[int]) -> None:
        """Empty these slots."""
        self.pool.leave(slots)
        for slot in slots:
            self.requests.pop(slot, None)

    def _measured(self, runner: Runner) -> CallCost:
        """c(n), from one row to as many as a call of this pool may have."""
        policy, schedule = self.policy, self.sampler.schedule
        most = min(self._slots * self.pool.chains.widths()[-1], _MEASURED)
        config = policy.config
        nothing = torch.zeros(1, config.n_obs_steps, config.obs_dim, device=policy.device)
        return measure_call_cost(
            runner.denoiser(condition(nothing, config)[0]), schedule, self._shape, policy.device,
            runtime=replace(runner.config, mode="eager"), repeats=3,
            rows=[n for n in (1, 8, 32, 128) if n < most] + [most],
        )  # fmt: skip

    def _known(self, requests: Sequence[Request]) -> Inpainting | None:
        """What requests know of their actions, together; a mask of False for those that know nothing."""
        if all(request.committed is None for request in requests):
            return None
        config = self.policy.config
        nothing = torch.zeros(1, config.horizon, config.action_dim, device=self.policy.device)
        free = Inpainting(nothing.bool(), nothing)
        parts = [free if r.committed is None else inpainting_of(self.policy, r.committed) for r in requests]
        return Inpainting(torch.cat([p.mask for p in parts]), torch.cat([p.values for p in parts]))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """What several requests observed, (n, To, ...); images of bytes as floats in [0, 1] where others are floats."""
    if len({part.dtype for part in parts}) > 1:
        parts = [part / 255 if part.dtype == torch.uint8 else part for part in parts]
    return torch.cat(list(parts))
