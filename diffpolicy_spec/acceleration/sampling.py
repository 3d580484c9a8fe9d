"""Chunks of a live policy: its network, its chain, and a sampler of ours between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffpolicy_spec.acceleration.as_it_is import AsItIs, Call, flat
from diffpolicy_spec.acceleration.chain import bind_live, draw_live_noise, live_eta
from diffpolicy_spec.acceleration.errors import AccelerateError
from diffpolicy_spec.acceleration.shared import Shared, share, unwrapped
from diffpolicy_spec.acceleration.stored import Stored
from diffpolicy_spec.inpainting import Inpainting
from diffpolicy_spec.noise import Generator
from diffpolicy_spec.policies.draft import DraftNetwork
from diffpolicy_spec.policies.runner import Runner
from diffpolicy_spec.runtime import RuntimeConfig
from diffpolicy_spec.samplers import BoundSampler, SamplerConfig
from diffpolicy_spec.stats import SampleStats

__all__ = ["Chunk", "LiveChain", "LiveSampler"]


@dataclass(frozen=True)
class LiveChain:
    """The chain of a live policy as it stands now.

    Attributes:
        scheduler: its diffusers scheduler.
        steps: K it is used with.
        options: keyword arguments of scheduler.step.
    """

    scheduler: Any
    steps: int
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """What a live policy wants sampled.

    Attributes:
        shape: (B, Tp, Da).
        device, dtype: of the result; the live loop's noise has them, too.
        parts: the condition's, as the network takes them: name -> (B, ...).
        start: (B, Tp, Da), noise that was given; None: drawn.
        generator: where noise is drawn from; None: torch's default.
        inpaint: what is known of the result.
    """

    shape: tuple[int, int, int]
    device: torch.device
    dtype: torch.dtype
    parts: Mapping[str, Tensor]
    start: Tensor | None = None
    generator: Generator = None
    inpaint: Inpainting | None = None


class LiveSampler:
    """Samples for one live policy; everything is made at its first use and kept as long as the policy stays as it is.

    Args:
        config: the sampler.
        runtime: how rounds are run where the sampler does not say; None: eager.
        stored: what was calibrated for the policy's weights; None: nothing.

    Attributes:
        stats: of the last chunk; None before the first.
    """

    def __init__(
        self, config: SamplerConfig, runtime: RuntimeConfig | None = None, stored: Stored | None = None
    ) -> None:
        self.config, self.runtime, self.stored = config, runtime, stored
        self.stats: SampleStats | None = None
        self._live: nn.Module | None = None
        self._shared: Shared | None = None
        self._draft: DraftNetwork | None = None
        self._bound: tuple[tuple[Any, ...], BoundSampler] | None = None
        self._runner: tuple[tuple[Any, ...], Runner] | None = None

    def fresh(self) -> LiveSampler:
        """Another one with the same settings, for another policy."""
        return LiveSampler(self.config, self.runtime, self.stored)

    def check(self, network: nn.Module, chain: LiveChain) -> None:
        """Refuse what cannot be sampled before anything is.

        Raises:
            AccelerateError, ScheduleError, ValueError: as `sample`.
        """
        live = unwrapped(network)
        parameter = next(live.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        if self.stored is not None:
            check_dropout(live)
        self._sampler(live, chain, device)

    def sample(self, network: nn.Module, call: Call, chain: LiveChain, chunk: Chunk) -> Tensor:
        """Draw x0: (B, Tp, Da) in the chunk's dtype, and keep what it cost in `stats`.

        Raises:
            AccelerateError: the network is in training mode and has dropout, or the chain cannot be sampled.
            ScheduleError, ValueError: the sampler does not fit the chain.
            FloatingPointError: the network returned NaN or infinite values.
        """
        live, device = unwrapped(network), chunk.device
        check_dropout(live)
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        # Ordinary tensors, whatever mode the caller is in: what is kept for the next chunk is written to again.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            sampler = self._sampler(live, chain, device)
            condition = flat(chunk.parts, chunk.shape[0], device)
            runner = self._running(live, call, chunk, sampler, autocast)
            noise = draw_live_noise(sampler, chunk.shape, chunk.generator, device, chunk.dtype, start=chunk.start)
            sample = runner.sample(sampler, condition, noise, generator=chunk.generator, inpaint=chunk.inpaint)
            self.stats = sample.stats
            return sample.x0.to(chunk.dtype)

    def _sampler(self, live: nn.Module, chain: LiveChain, device: torch.device) -> BoundSampler:
        eta = live_eta(chain.scheduler, chain.options)
        key = (chain.scheduler, chain.steps, eta, device, self._share(live) if self.stored is not None else None)
        if self._bound is not None and _same(self._bound[0], key):
            return self._bound[1]
        config, tensors = self.config, None
        if self.stored is not None:
            stored = self.stored.for_network(self._share(live), device)
            tensors, self._draft = stored.tensors, stored.draft
            config = stored.resolve(config, chain.steps, eta, device)
        sampler = bind_live(config, chain.scheduler, chain.steps, eta, tensors, has_draft=self._draft is not None)
        self._bound = key, sampler
        return sampler

    def _share(self, live: nn.Module) -> Shared | None:
        """Our network on the live one's parameters, looked over once a chunk."""
        if self._live is live and (self._shared is None or self._shared.holds()):
            if self._shared is not None:
                self._shared.tie()
            return self._shared
        self._live, self._shared = live, share(live)
        return self._shared

    def _running(
        self, live: nn.Module, call: Call, chunk: Chunk, sampler: BoundSampler, autocast: torch.dtype | None
    ) -> Runner:
        shapes = {name: part.shape[1:] for name, part in chunk.parts.items()}
        shared = self._share(live) if autocast is None else None
        if shared is not None and chunk.shape[1:] != _plan_of(shared, chunk):
            shared = None
        runtime = sampler.config.runtime or self.runtime or RuntimeConfig()
        steps = sampler.schedule.num_train_timesteps
        draft = self._draft if sampler.uses_draft else None
        if shared is not None and shared.written_unseen():
            self._runner = None
        key = (live, shared, autocast, tuple(shapes.items()), steps, runtime, chunk.device, draft)
        if self._runner is None or not _same(self._runner[0], key):
            module = AsItIs(live, call, shapes, autocast) if shared is None else shared.network
            self._runner = key, Runner(module, draft, steps, runtime)
        return self._runner[1]


def check_dropout(network: nn.Module) -> None:
    """Raise AccelerateError if the network drops anything out just now."""
    if not network.training and not any(m.training for m in network.children()):
        return
    for name, module in network.named_modules():
        chance = getattr(module, "p", 0.0) if isinstance(module, nn.Dropout) else getattr(module, "dropout", 0.0)
        if module.training and isinstance(chance, float) and chance > 0:
            raise AccelerateError(
                f"the network is in training mode and '{name or type(module).__name__}' drops {chance:g} of its "
                "inputs: every call is then another network, and no drafted step can be checked. Call policy.eval() "
                "to sample"
            )


def _plan_of(shared: Shared, chunk: Chunk) -> torch.Size | tuple[int, int]:
    """(Tp, Da) that our network takes: a Transformer's is fixed, a U-Net's length is a multiple."""
    network: Any = shared.network
    if hasattr(network, "horizon"):
        return network.horizon, network.input_dim
    fits = chunk.shape[1] % 2 ** (len(network.down_modules) - 1) == 0
    return (chunk.shape[1] if fits else -1), network.input_dim


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether all are the same objects, or equal plain values."""
    plain = (int, float, str, tuple, type(None), torch.device, torch.dtype, RuntimeConfig)
    return all(x is y or (isinstance(x, plain) and isinstance(y, plain) and x == y) for x, y in zip(a, b, strict=True))
