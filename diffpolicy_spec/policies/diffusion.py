"""Observations -> action chunk: a conditional denoiser, its normaliser, and a sampler bound to its chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffpolicy_spec.choice.fingerprint import fingerprint
from diffpolicy_spec.choice.record import Choice, resolve_auto
from diffpolicy_spec.deadline import Deadline
from diffpolicy_spec.finish import DEFAULT_FINISH_STEPS
from diffpolicy_spec.inpainting import Inpainting
from diffpolicy_spec.networks import Denoise
from diffpolicy_spec.noise import Generator, Noise, draw_noise
from diffpolicy_spec.policies.build import build_network
from diffpolicy_spec.policies.conditioning import condition, over_plan
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.draft import DraftNetwork
from diffpolicy_spec.policies.errors import ConditioningError
from diffpolicy_spec.policies.normalizer import LinearNormalizer
from diffpolicy_spec.policies.observations import ObservationEncoder
from diffpolicy_spec.policies.runner import Runner
from diffpolicy_spec.policies.vision import ImageEncoder
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
        action_pred: (B, T, Da), the whole plan in the action's own units; action = action_pred[:, first : first+Ta]
            with first = `config.first`.
        plan: (B, T, D), the whole plan, normalised: what the next call takes as `previous_plan`.
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


class DiffusionPolicy:
    """A trained policy.

    Args:
        config: shapes and conventions.
        network: the denoiser; put into eval mode, its parameters frozen.
        normalizer: statistics for every observation key (of a camera: (C,)) and for "action".
        scheduler_config: config of the diffusers scheduler the policy is used with. A DDIMScheduler makes DDIM the
            policy's own sampler; an exact one draws the DDPM chain of the same network.
        speculation: what calibration found (tensors by name), or None.
        choices: what was found quickest, by device: what `SamplerConfig("auto")` stands for.
        encoder: of the cameras' images; put into eval mode, its parameters frozen. None without cameras.
        origin: where the policy comes from, as plain data; None: nothing is known.
        notes: what its user should know, sentences.

    Raises:
        NormalizationError: statistics are missing or have the wrong number of dimensions.
        ValueError: an encoder without cameras, or cameras without an encoder.
    """

    def __init__(
        self,
        config: PolicyConfig,
        network: nn.Module,
        normalizer: LinearNormalizer,
        scheduler_config: Mapping[str, Any],
        speculation: Mapping[str, Tensor] | None = None,
        choices: Sequence[Choice] = (),
        *,
        encoder: ImageEncoder | None = None,
        origin: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        channels = {camera: shape[0] for camera, shape in config.image_shapes.items()}
        normalizer.check({**config.obs_dims, **channels, "action": config.action_dim})
        if (encoder is None) != (config.encoder is None):
            raise ValueError(f"an encoder is for cameras, and the config's are: {', '.join(channels) or 'none'}")
        self.config = config
        self.network = network.eval().requires_grad_(False)
        self.encoder = None if encoder is None else encoder.eval().requires_grad_(False)
        self.origin, self.notes = dict(origin or {}), tuple(notes)
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
        self._observations = ObservationEncoder(self.config, self.normalizer, self.encoder)
        self._bound: dict[str, BoundSampler] = {}
        self._runners: dict[RuntimeConfig, Runner] = {}

    @property
    def observations(self) -> ObservationEncoder:
        """What checks and encodes observations."""
        return self._observations

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
        if self.encoder is not None:
            self.encoder.to(device)
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
        """A sampler for this policy's chain, made once per config.

        None: the exact speculative one, or DDIM itself for a policy that is used with a DDIMScheduler.
        A config without num_inference_steps takes the policy's. Samplers that need noise, asked for by name of a policy
        that is used with DDIM, draw the DDPM chain of the same network, of all training timesteps where not told else.

        "auto" is what `dps-calibrate` found quickest on this device; where it did not run, the default, with a warning.

        Raises:
            ScheduleError: the scheduler config is not supported, or the chain cannot be sampled as asked.
            ValueError: gains are asked for and there are none for this chain.
        """
        if config is None:
            config = SamplerConfig(method="ddim" if self._deterministic else "speculative")
        # Options may hold lists, which do not hash; their text does.
        key = repr(config)
        if key not in self._bound:
            if config.method == "auto":
                weights = fingerprint(self.network, self.speculation)
                config = resolve_auto(config, self.choices, self.device, weights)
            config, scheduler = self._of_chain(config)
            self._bound[key] = bind_sampler(config, scheduler, self.speculation,
                                           has_draft=self.draft_network is not None)  # fmt: skip
        return self._bound[key]

    @property
    def _deterministic(self) -> bool:
        return self.scheduler_config.get("_class_name") == "DDIMScheduler"

    def _of_chain(self, config: SamplerConfig) -> tuple[SamplerConfig, dict[str, Any]]:
        """The config with the policy's number of steps, and the scheduler whose chain it draws."""
        if self._deterministic and config.method != "ddim" and config.eta is None:
            return config, {**self.scheduler_config, "_class_name": "DDPMScheduler"}
        if config.num_inference_steps is None:
            config = replace(config, num_inference_steps=self.config.num_inference_steps)
        return config, self.scheduler_config

    def features(self, obs: Mapping[str, Tensor | np.ndarray], generator: Generator = None) -> Tensor:
        """Observations to normalised features (B, To, Do) float32; images go through the encoder, once.

        Args:
            obs: key -> (B, To, d), in their own units; camera -> (B, To, C, H, W), float in [0, 1] or uint8.
            generator: where crops are drawn from, for policies that crop at random in use.

        Raises:
            ObservationError: missing or unknown keys, wrong shapes, NaN or infinity, images that are not in [0, 1].
        """
        return self._observations(obs, generator)

    def condition(
        self, obs: Mapping[str, Tensor | np.ndarray], generator: Generator = None
    ) -> tuple[Tensor, Inpainting | None]:
        """The network's condition (B, C), and what observations say of the plans (B, T, D); see `conditioning`."""
        return condition(self.features(obs, generator), self.config)

    def encode(self, obs: Mapping[str, Tensor | np.ndarray], generator: Generator = None) -> Tensor:
        """Observations to the network's condition (B, C) float32; arguments as in `features`.

        Raises:
            ObservationError: as `features`.
            ConditioningError: the policy is conditioned by inpainting. `predict_action` serves it.
        """
        if self.config.conditioning == "inpainting":
            raise ConditioningError(
                "this policy is conditioned by inpainting: its observations are known coordinates of each plan, and "
                "not a condition of its network, which gains, draft networks and certificates need. predict_action "
                "draws its plans; dps-calibrate gains=false finds its quickest sampler"
            )
        return self.condition(obs, generator)[0]

    def denoiser(self, condition: Tensor) -> Denoise:
        """The network under a condition (B, C): denoise(x: (N, T, D), t: (N,), chain: (N,)) -> (N, T, D)."""
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
        generator: Generator = None,
        previous_plan: Tensor | None = None,
        inpaint: Inpainting | None = None,
        deadline: float | Deadline | None = None,
        finish_steps: int = DEFAULT_FINISH_STEPS,
    ) -> PolicyOutput:
        """Sample one action chunk per observation.

        Args:
            obs: as in `features`.
            sampler: from `bind`; None: the default one.
            noise: all noise of the chain, or only its start (B, T, D); what is not given is drawn.
            generator: where noise is drawn from: one, or one per observation. None: torch's default generator.
            previous_plan: (B, T, D), `plan` of the chunk before, normalised; rows of NaN where there is none. It is
                shifted by the Ta executed actions, and only guides the drafts: the distribution does not change.
            inpaint: coordinates (B, T, Da) of the actions that are known, normalised.
            deadline: s on `time.monotonic`, when the chunk has to be there: chains that would miss it are finished by
                finish_steps DDIM steps, and are not draws from the policy's distribution any more; which they are
                stands in `sample.stats.inexact`. A `Deadline` brings its own clock and steps. None: none.

        Raises:
            ObservationError: see `features`; nothing has been drawn or sampled then.
            ValueError: noise or previous_plan of the wrong shape, or finish_steps below 1.
        """
        if isinstance(deadline, float | int):
            deadline = Deadline(deadline, finish_steps)
        given, known = self.condition(obs, generator)
        inpaint = over_plan(known, inpaint, self.config)
        sampler = self.bind() if sampler is None else sampler
        shape = (given.shape[0], self.config.horizon, self.config.plan_dim)
        warm_start = None if previous_plan is None else self._shift(previous_plan, shape)
        start = noise.start if isinstance(noise, Noise) else noise
        if start is not None and tuple(start.shape) != shape:
            raise ValueError(f"noise must be (B, T, D) = {shape}, got {tuple(start.shape)}")
        if not isinstance(noise, Noise):
            drawn = draw_noise(shape, sampler.schedule, generator, device=self.device)
            noise = drawn if start is None else replace(drawn, start=start.to(drawn.start))
        runner = self.runner(sampler.config.runtime if isinstance(sampler, BoundSampler) else None)
        sample = runner.sample(
            sampler, given, noise, generator=generator, warm_start=warm_start, inpaint=inpaint, deadline=deadline
        )
        plan = sample.x0
        action_pred = self.normalizer.unnormalize("action", plan[..., : self.config.action_dim])
        first = self.config.first
        action = action_pred[:, first : first + self.config.n_action_steps]
        return PolicyOutput(action=action, action_pred=action_pred, plan=plan, sample=sample)

    def _shift(self, plan: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """The previous plan as seen Ta steps later; its last action stands for those it did not reach."""
        if tuple(plan.shape) != shape:
            raise ValueError(f"previous_plan must be (B, T, D) = {shape}, got {tuple(plan.shape)}")
        steps = torch.arange(self.config.horizon, device=plan.device) + self.config.n_action_steps
        return plan[:, steps.clamp(max=self.config.horizon - 1)].to(self.device)

    def save(self, path: str | Path, **options: Any) -> None:
        """Write a checkpoint folder; options as in `checkpoints.native.save_policy`."""
        from diffpolicy_spec.checkpoints.native import save_policy

        save_policy(self, path, **options)
