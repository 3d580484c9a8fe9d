"""A policy's networks, run the way a `RuntimeConfig` says."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from diffpolicy_spec.deadline import Deadline, Pace
from diffpolicy_spec.inpainting import Inpainting
from diffpolicy_spec.networks import Denoise
from diffpolicy_spec.noise import Generator, Noise
from diffpolicy_spec.runtime import Report, RuntimeConfig, Session
from diffpolicy_spec.runtime.network import InferenceNetwork, Watch
from diffpolicy_spec.runtime.replicas import Replicas, replicate
from diffpolicy_spec.runtime.split import Split, SplitTimes, measure_split
from diffpolicy_spec.samplers import BoundSampler
from diffpolicy_spec.sampling import prepare_noise
from diffpolicy_spec.stats import Sample

from .inference import inference_network

__all__ = ["BATCHES", "Conditioned", "Runner"]

BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes that sessions are made for; larger batches have one of their own."""


class Conditioned:
    """A network under the condition of each chain, called as `Denoise`; `load` gives it the next chunk's conditions,
    `put` those of some chains.

    The features stay where they are as long as there are as many chains.
    """

    def __init__(self, network: InferenceNetwork) -> None:
        self._network = network
        self._features: Tensor | None = None

    def load(self, condition: Tensor) -> Conditioned:
        """Take on conditions (B, C)."""
        features = self._network.features(condition)
        if self._features is None or self._features.shape != features.shape:
            self._features = features.clone() if features is condition else features
        else:
            self._features.copy_(features)
        return self

    def put(self, condition: Tensor, chain: Tensor, chains: int) -> None:
        """Take on the conditions (b, C) of some of so many chains, chain: (b,); the others keep theirs."""
        features = self._network.features(condition)
        if self._features is None:
            self._features = features.new_zeros(chains, features.shape[1])
        self._features[chain] = features

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
        """The network's output (N, Tp, Da) at rows x: (N, Tp, Da), timesteps t: (N,), of chains chain: (N,)."""
        features = self._features
        assert features is not None
        rows = features.expand(len(x), -1) if len(features) == 1 else features[chain]
        return self._network(x, t, rows)


class Runner:
    """Samples with a denoiser and a draft network.

    Args:
        network, draft: the networks' modules; None for no draft network.
        num_train_timesteps: of the chain they were trained for.
        config: how they are run.
    """

    def __init__(
        self, network: nn.Module, draft: nn.Module | None, num_train_timesteps: int, config: RuntimeConfig
    ) -> None:
        self._module = network
        self._watches = [Watch(module) for module in (network, draft) if module is not None]
        self._network = inference_network(network, num_train_timesteps, config.torch_dtype)
        self._draft = None if draft is None else inference_network(draft, num_train_timesteps)
        self.config = config
        self._steps = num_train_timesteps
        self._replicas: Replicas | None = None
        self._sessions: dict[tuple[str, int, bool], tuple[Session, Conditioned, Conditioned | None]] = {}
        self._paces: dict[tuple[str, int], Pace] = {}
        self._where: list[int] = []

    @property
    def reports(self) -> dict[tuple[str, int, bool], Report | None]:
        """What was made ready: by sampler, batch size and whether there is inpainting."""
        return {key: session.report for key, (session, _, _) in self._sessions.items()}

    def denoiser(self, condition: Tensor) -> Denoise:
        """The denoiser under conditions (B, C). On several devices there is one: it is under the last conditions."""
        if not self.config.devices:
            return Conditioned(self._network).load(condition)
        if self._replicas is None:
            dtype = self.config.torch_dtype
            self._replicas = replicate(
                self._module, self.config.devices, lambda module: inference_network(module, self._steps, dtype)
            )
        self._replicas.load(condition)
        return self._replicas

    def measure_split(self, condition: Tensor, chunk: tuple[int, int]) -> SplitTimes:
        """Time calls on the first device and on all, under a condition (1, C), and split from here on where that pays.

        chunk: (Tp, Da).
        """
        denoise = self.denoiser(condition)
        if not isinstance(denoise, Replicas):
            raise ValueError("there is one device: give RuntimeConfig(devices=...) several")
        times = measure_split(denoise.alone, denoise.split, chunk, condition.device)
        denoise.share(Split(times.from_rows))
        return times

    def conditioned(self) -> tuple[Conditioned, Conditioned | None]:
        """The denoiser and the draft network, to be put under the conditions of chains as they come; None: no such one.

        Raises:
            ValueError: the runtime's rows are shared out over several devices.
        """
        if self.config.devices:
            raise ValueError(
                "chains that begin one by one run on one device, and the runtime has "
                f"devices={list(self.config.devices)}: serve the policy without, or one process for each device"
            )
        return Conditioned(self._network), None if self._draft is None else Conditioned(self._draft)

    def drafter(self, condition: Tensor) -> Denoise | None:
        """The draft network under conditions (B, C); None where there is none."""
        return None if self._draft is None else Conditioned(self._draft).load(condition)

    def sample(
        self, sampler: BoundSampler, condition: Tensor, noise: Noise, *, generator: Generator = None,
        warm_start: Tensor | None = None, inpaint: Inpainting | None = None, deadline: Deadline | None = None,
    ) -> Sample:  # fmt: skip
        """Draw chunks under conditions (B, C); other arguments as in `sample_speculative` and `BoundSampler`.

        What rounds take is kept from chunk to chunk for deadlines, by sampler and batch size.
        """
        if self.config.threads is not None and torch.get_num_threads() != self.config.threads:
            torch.set_num_threads(self.config.threads)
        if self.config.mode == "eager" or not isinstance(sampler, BoundSampler):
            if self.config.devices and self._replicas is None:
                self.measure_split(condition[:1], (noise.start.shape[1], noise.start.shape[2]))
            # A sampler of the user's own need not know deadlines.
            more = {} if deadline is None else {"deadline": self._paced(deadline, sampler, len(noise.start))}
            return sampler(
                self.denoiser(condition), noise, generator=generator, warm_start=warm_start,
                draft=self.drafter(condition), inpaint=inpaint, **more,
            )  # fmt: skip
        noise = prepare_noise(noise, sampler.schedule, generator, inpaint)
        session = self._session(sampler, condition, noise, inpaint)
        return session(
            noise, generator=generator, warm_start=sampler.warm(warm_start), inpaint=inpaint,
            deadline=None if deadline is None else self._paced(deadline, sampler, len(noise.start)),
        )  # fmt: skip

    def _paced(self, deadline: Deadline, sampler: BoundSampler, batch: int) -> Deadline:
        config = sampler.config if isinstance(sampler, BoundSampler) else sampler
        return replace(deadline, pace=self._paces.setdefault((repr(config), batch), Pace()))

    def _session(
        self, sampler: BoundSampler, condition: Tensor, noise: Noise, inpaint: Inpainting | None
    ) -> Session:
        n, Tp, Da = noise.start.shape
        batch = next((size for size in BATCHES if size >= n), n)
        key = (repr(sampler.config), batch, inpaint is not None)
        if n < batch:
            condition = torch.cat([condition, condition.new_zeros(batch - n, condition.shape[1])])
        if key not in self._sessions:
            denoise, draft = Conditioned(self._network), None
            if sampler.uses_draft and self._draft is not None:
                draft = Conditioned(self._draft)
            session = Session(
                sampler.chains, denoise, sampler.schedule, (batch, Tp, Da), condition.device, draft=draft,
                inpaint=inpaint, config=self.config,
            )  # fmt: skip
            self._sessions[key] = session, denoise, draft
        session, denoise, draft = self._sessions[key]
        denoise.load(condition)
        if draft is not None:
            draft.load(condition)
        where = [place for watch in self._watches for place in watch.places()]
        if where != self._where:  # graphs read weights where they were
            for other, _, _ in self._sessions.values():
                other.forget()
            self._where = where
        return session
