"""Observations -> action chunk: a conditional denoiser, its normaliser, and a sampler bound to its chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffpolicy_spec.choice.fingerprint import fingerprint
from diffpolicy_spec.choice.record import Choice, resolve_auto
from diffpolicy_spec.inpainting import Inpainting
from diffpolicy_spec.networks import Denoise
from diffpolicy_spec.noise import Noise, draw_noise
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.draft import DraftNetwork
from diffpolicy_spec.policies.normalizer import LinearNormalizer
from diffpolicy_spec.policies.observations import ObservationEncoder
from diffpolicy_spec.policies.runner import Runner
from diffpolicy_spec.policies.unet import ConditionalUnet1D
from diffpolicy_spec.runtime import RuntimeConfig
from diffpolicy_spec.samplers import BoundSampler, SamplerConfig
from diffpolicy_spec.samplers import bind as bind_sampler
from diffpolicy_spec.stats import Sample

__all__ = ["DiffusionPolicy", "PolicyOutput", "build_network"]


@dataclass(frozen=True)
class PolicyOutput:
    """One action chunk per observation; also answers to ["action"] and ["action_pred"], as diffusion_policy's dict.

    Attributes:
        action: (B, Ta, Da), what to execute now, in the action's own units.
        action_pred: (B, T, Da), the whole plan in the action's own units; action = action_pred[:, To-1 : To-1+Ta].
        plan: (B, T, Da), the whole plan, normalised: what the next call takes as `previous_plan`.
        sample: what the sampler reports.
    """

    action: Tensor
    action_pred: Tensor
    plan: Tensor
    sample: Sample

    def __getitem__(self, key: str) -> Tensor:
        if key not in ("action", "action_pred"):
            raise KeyError(f"'{key}': a policy's output has 'action' and 'action_pred'")
        return getattr(self, key)


def build_network(config: PolicyConfig) -> ConditionalUnet1D:
    """The network of this config, freshly initialised, on the default device."""
    unet = config.unet
    if unet is None:
        raise NotImplementedError("only the U-Net is built here so far")
    return ConditionalUnet1D(
        input_dim=config.action_dim,
        global_cond_dim=config.condition_dim,
        diffusion_step_embed_dim=unet.diffusion_step_embed_dim,
        down_dims=unet.down_dims,
        kernel_size=unet.kernel_size,
        n_groups=unet.n_groups,
        cond_predict_scale=unet.cond_predict_scale,
    )


class DiffusionPolicy:
    """A trained policy.

    Args:
        config: shapes and conventions.
        network: the denoiser; put into eval mode, its parameters frozen.
        normalizer: statistics for every observation key and for "action".
        scheduler_config: config of the diffusers DDPMScheduler the policy was trained with.
        speculation: what calibration found (tensors by name), or None.
        choices: what was found quickest, by device: what `SamplerConfig("auto")` stands for.

    Raises:
        NormalizationError: statistics are missing or have the wrong number of dimensions.
    """

    def __init__(
        self,
        config: PolicyConfig,
        network: ConditionalUnet1D,
        normalizer: LinearNormalizer,
        scheduler_config: Mapping[str, Any],
        speculation: Mapping[str, Tensor] | None = None,
        choices: Sequence[Choice] = (),
    ) -> None:
        normalizer.check({**config.obs_dims, "action": config.action_dim})
        self.config = config
        self.network = network.eval().requires_grad_(False)
        self.scheduler_config = dict(scheduler_config)
        self.speculation = None if speculation is None else dict(speculation)
        self.choices = tuple(choices)
        self.runtime = RuntimeConfig()
        self._place(normalizer)

    def _place(self, normalizer: LinearNormalizer) -> None:
        """What depends on the device: the normaliser, the encoder, what is stored for speculation, bound samplers."""
        self.normalizer = normalizer.to(self.device)
        if self.speculation is not None:
            self.speculation = {name: value.to(self.device) for name, value in self.speculation.items()}
        draft = DraftNetwork.from_stored(self.speculation or {})
        self.draft_network = None if draft is None else draft.to(self.device)
        self._encoder = ObservationEncoder(self.config, self.normalizer)
        self._bound: dict[str, BoundSampler] = {}
        self._runners: dict[RuntimeConfig, Runner] = {}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.network.parameters()).dtype

    def to(self, device: torch.device | str) -> DiffusionPolicy:
        """Move the policy to a device, in place."""
        self.network.to(device)
        self._place(self.normalizer)
        return self

    def use(self, runtime: RuntimeConfig) -> DiffusionPolicy:
        """Run samplers this way from now on, in place; what a sampler's config says of its own goes first."""
        self.runtime = runtime
        return self

    def runner(self, runtime: RuntimeConfig | None = None) -> Runner:
        """The networks laid out for a runtime, made once; None: the policy's."""
        runtime = self.runtime if runtime is None else runtime
        if runtime not in self._runners:
            steps = int(self.scheduler_config.get("num_train_timesteps", 1000))
            self._runners[runtime] = Runner(self.network, self.draft_network, steps, runtime)
        return self._runners[runtime]

    def bind(self, config: SamplerConfig | None = None) -> BoundSampler:
        """A sampler for this policy's chain, made once per config; None: the default, exact speculative one.

        "auto" is what `dps-calibrate` found quickest on this device; where it did not run, the default, with a warning.

        Raises:
            ScheduleError: the scheduler config is not supported, or the chain cannot be sampled as asked.
            ValueError: gains are asked for and there are none for this chain.
        """
        config = SamplerConfig(method="speculative") if config is None else config
        # Options may hold lists, which do not hash; their text does.
        key = repr(config)
        if key not in self._bound:
            if config.method == "auto":
                weights = fingerprint(self.network, self.speculation)
                config = resolve_auto(config, self.choices, self.device, weights)
            self._bound[key] = bind_sampler(config, self.scheduler_config, self.speculation,
                                           has_draft=self.draft_network is not None)  # fmt: skip
        return self._bound[key]

    def encode(self, obs: Mapping[str, Tensor | np.ndarray]) -> Tensor:
        """Observations to the network's condition.

        Args:
            obs: key -> (B, To, d), in their own units.

        Returns:
            (B, To * Do) float32.

        Raises:
            ObservationError: missing or unknown keys, wrong shapes, NaN or infinity.
        """
        return self._encoder(obs)

    def denoiser(self, condition: Tensor) -> Denoise:
        """The network under a condition (B, To * Do): denoise(x: (N, T, Da), t: (N,), chain: (N,)) -> (N, T, Da)."""
        return self.runner().denoiser(condition)

    def drafter(self, condition: Tensor) -> Denoise | None:
        """The draft network's x0 under a condition, called as `denoiser`; None where the checkpoint has none."""
        return self.runner().drafter(condition)

    def predict_action(
        self,
        obs: Mapping[str, Tensor | np.ndarray],
        *,
        sampler: BoundSampler | None = None,
        noise: Noise | Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        previous_plan: Tensor | None = None,
        inpaint: Inpainting | None = None,
    ) -> PolicyOutput:
        """Sample one action chunk per observation.

        Args:
            obs: key -> (B, To, d), in their own units.
            sampler: from `bind`; None: the default one.
            noise: all noise of the chain, or only its start (B, T, Da); what is not given is drawn.
            generator: where noise is drawn from: one, or one per observation. None: torch's default generator.
            previous_plan: (B, T, Da), `plan` of the chunk before, normalised; rows of NaN where there is none. It is
                shifted by the Ta executed actions, and only guides the drafts: the distribution does not change.
            inpaint: coordinates of the plan that are known, normalised.

        Raises:
            ObservationError: see `encode`; nothing has been drawn or sampled then.
            ValueError: noise or previous_plan of the wrong shape.
        """
        condition = self.encode(obs)
        sampler = self.bind() if sampler is None else sampler
        shape = (condition.shape[0], self.config.horizon, self.config.action_dim)
        warm_start = None if previous_plan is None else self._shift(previous_plan, shape)
        start = noise.start if isinstance(noise, Noise) else noise
        if start is not None and tuple(start.shape) != shape:
            raise ValueError(f"noise must be (B, T, Da) = {shape}, got {tuple(start.shape)}")
        if not isinstance(noise, Noise):
            drawn = draw_noise(shape, sampler.schedule, generator, device=self.device)
            noise = drawn if start is None else replace(drawn, start=start.to(drawn.start))
        runner = self.runner(sampler.config.runtime if isinstance(sampler, BoundSampler) else None)
        sample = runner.sample(
            sampler, condition, noise, generator=generator, warm_start=warm_start, inpaint=inpaint
        )
        plan = sample.x0
        action_pred = self.normalizer.unnormalize("action", plan)
        first = self.config.n_obs_steps - 1
        action = action_pred[:, first : first + self.config.n_action_steps]
        return PolicyOutput(action=action, action_pred=action_pred, plan=plan, sample=sample)

    def _shift(self, plan: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """The previous plan as seen Ta steps later; its last action stands for those it did not reach."""
        if tuple(plan.shape) != shape:
            raise ValueError(f"previous_plan must be (B, T, Da) = {shape}, got {tuple(plan.shape)}")
        steps = torch.arange(self.config.horizon, device=plan.device) + self.config.n_action_steps
        return plan[:, steps.clamp(max=self.config.horizon - 1)].to(self.device)

    def save(self, path: str | Path, **options: Any) -> None:
        """Write a checkpoint folder; options as in `checkpoints.native.save_policy`."""
        from diffpolicy_spec.checkpoints.native import save_policy

        save_policy(self, path, **options)
