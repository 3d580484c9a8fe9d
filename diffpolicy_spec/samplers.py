"""Samplers by name: a `SamplerConfig` (what a config file says) bound to a policy's noise scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .drafting import Drafter, Nearest, Parent, Picard
from .gains import Gains
from .noise import Noise
from .paradigms import check_paradigms, sample_paradigms
from .sampling import Denoise, check_speculative, sample_ddim, sample_ddpm, sample_speculative
from .schedule import Schedule
from .stats import Sample
from .window import DEFAULT_WINDOW, window_sizes

__all__ = ["BoundSampler", "SamplerConfig", "bind", "make_drafter"]

_OPTIONS: dict[str, frozenset[str]] = {
    "ddpm": frozenset(),
    "ddim": frozenset(),
    "paradigms": frozenset({"window", "tolerance"}),
    "speculative": frozenset({"drafter", "window", "memory", "gain", "ridge", "sweeps", "warm_start"}),
}


@dataclass(frozen=True)
class SamplerConfig:
    """How action chunks are drawn.

    Attributes:
        method: "ddpm", "ddim", "paradigms" or "speculative".
        num_inference_steps: K; None for all training timesteps.
        eta: DDIM's eta; None keeps a DDPM chain (for "ddim": 0).
        options: of "paradigms": window, tolerance. Of "speculative": drafter ("parent", "nearest", "picard"), window
            (a number or K numbers), warm_start (bool), and for picard memory, ridge, sweeps and gain (True, False, or
            "auto": where the checkpoint has gains for this schedule).

    Raises:
        ValueError: an unknown method or option.
    """

    method: str = "speculative"
    num_inference_steps: int | None = None
    eta: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in _OPTIONS:
            raise ValueError(f"unknown sampling method {self.method!r}; known: {', '.join(_OPTIONS)}")
        unknown = set(self.options) - _OPTIONS[self.method]
        if unknown:
            known = ", ".join(sorted(_OPTIONS[self.method])) or "none"
            raise ValueError(f"unknown options for {self.method}: {', '.join(sorted(unknown))}; known: {known}")


@dataclass(frozen=True)
class BoundSampler:
    """A sampler ready to be called for one policy.

    Attributes:
        config: what it was made from.
        schedule: the chain it samples.
        drafter: of a speculative sampler.
    """

    config: SamplerConfig
    schedule: Schedule
    drafter: Drafter | None = None

    def __call__(
        self,
        denoise: Denoise,
        noise: Noise | Tensor,
        *,
        generator: torch.Generator | None = None,
        warm_start: Tensor | None = None,
    ) -> Sample:
        """Draw action chunks; see `sample_speculative` for the arguments. warm_start is used where the sampler can."""
        method, options = self.config.method, self.config.options
        if method == "ddpm":
            return sample_ddpm(denoise, self.schedule, noise, generator=generator)
        if method == "ddim":
            return sample_ddim(denoise, self.schedule, noise, generator=generator)
        if method == "paradigms":
            return sample_paradigms(denoise, self.schedule, noise, generator=generator, **options)
        return sample_speculative(
            denoise, self.schedule, noise, generator=generator, drafter=self.drafter,
            window=options.get("window", DEFAULT_WINDOW),
            warm_start=warm_start if options.get("warm_start", True) else None,
        )  # fmt: skip


def bind(
    config: SamplerConfig, scheduler_config: Mapping[str, Any], speculation: Mapping[str, Tensor] | None = None
) -> BoundSampler:
    """Bind a sampler to a policy's scheduler and to what is stored for speculation beside its checkpoint.

    Raises:
        ScheduleError: the chain cannot be sampled as asked.
        ValueError: an option that cannot be used, such as a window below 1, or gains that are asked for and missing.
    """
    eta = 0.0 if config.method == "ddim" and config.eta is None else config.eta
    schedule = Schedule.from_diffusers(scheduler_config, config.num_inference_steps, eta=eta)
    if config.method == "paradigms":
        check_paradigms(**config.options)
    if config.method != "speculative":
        return BoundSampler(config, schedule)
    check_speculative(schedule)
    window_sizes(config.options.get("window", DEFAULT_WINDOW), schedule.num_steps, "cpu")
    gains = Gains.from_state_dict(speculation) if speculation else None
    return BoundSampler(config, schedule, make_drafter(config.options, schedule, gains))


def make_drafter(options: Mapping[str, Any], schedule: Schedule, gains: Gains | None = None) -> Drafter:
    """The drafter that `SamplerConfig.options` names."""
    name = options.get("drafter", "picard")
    if name == "parent":
        return Parent()
    if name == "nearest":
        return Nearest()
    if name != "picard":
        raise ValueError(f"unknown drafter {name!r}; known: parent, nearest, picard")
    wanted = options.get("gain", "auto")
    if wanted not in (True, False, "auto"):
        raise ValueError(f"gain must be true, false or auto, got {wanted!r}")
    usable = gains if gains is not None and gains.fit(schedule) else None
    if wanted is True and usable is None:
        raise ValueError("gain=true, but the checkpoint has no gains for this schedule: calibrate it, or gain=auto")
    use = usable if wanted is not False else None
    given = {key: options[key] for key in ("memory", "ridge", "sweeps") if options.get(key) is not None}
    return Picard(gains=use, **({"memory": 1 if use is not None else 3} | given))
