"""Samplers by name: a `SamplerConfig` (what a config file says) bound to a policy's noise scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .chains import Chains
from .deadline import Deadline
from .drafting import Drafter, Model, Nearest, Parent, Picard
from .gains import Gains
from .inpainting import Inpainting
from .networks import Denoise, Networks
from .noise import Generator, Noise
from .paradigms import Paradigms, check_paradigms
from .runtime.config import RuntimeConfig
from .sampling import draw
from .schedule import Schedule
from .sequential import Sequential
from .speculation import Speculation, check_speculative
from .stats import Sample
from .trees import Trees, check_tree
from .verification import VERIFIERS
from .window import DEFAULT_WINDOW, window_sizes

__all__ = ["DRAFTERS", "BoundSampler", "SamplerConfig", "bind", "make_drafter"]

DRAFTERS = ("parent", "nearest", "drift", "drift_nearest", "model", "picard")
"""Drafters by name."""

_PICARD = ("memory", "gain", "ridge", "sweeps", "corrector", "first_sweeps")

_OPTIONS: dict[str, frozenset[str]] = {
    "auto": frozenset(),
    "ddpm": frozenset(),
    "ddim": frozenset(),
    "paradigms": frozenset({"window", "tolerance"}),
    "tree": frozenset({"children", "depth"}),
    "speculative": frozenset({"drafter", "verifier", "window", "warm_start", *_PICARD}),
}


@dataclass(frozen=True)
class SamplerConfig:
    """How action chunks are drawn.

    Attributes:
        method: "ddpm", "ddim", "paradigms", "tree" or "speculative"; "auto": what dps-calibrate found quickest for the
            policy on this device.
        num_inference_steps: K; None for all training timesteps.
        eta: DDIM's eta; None keeps a DDPM chain (for "ddim": 0).
        options: of "paradigms": window, tolerance. Of "tree": children, depth. Of "speculative": drafter (one of
            DRAFTERS), verifier ("steps" or "block"), window (a number, K numbers, or "all"), warm_start (bool), and for
            picard memory, ridge, sweeps, first_sweeps, and gain and corrector (True, False, or "auto": where the
            checkpoint has gains for this schedule, or a draft network).
        runtime: how its rounds are run; None: as the policy's are.
        most_chains: batches of more chains are drawn step by step, the same law: where the device is busy with their
            rows anyway, rows that are dropped cost more than calls save. None: no limit.

    Raises:
        ValueError: an unknown method or option.
    """

    method: str = "speculative"
    num_inference_steps: int | None = None
    eta: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    runtime: RuntimeConfig | None = None
    most_chains: int | None = None

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

    @property
    def uses_draft(self) -> bool:
        """Whether it wants a draft network."""
        return isinstance(self.drafter, Model) or (isinstance(self.drafter, Picard) and self.drafter.corrector)

    def __call__(
        self,
        denoise: Denoise,
        noise: Noise | Tensor,
        *,
        generator: Generator = None,
        warm_start: Tensor | None = None,
        draft: Denoise | None = None,
        inpaint: Inpainting | None = None,
        deadline: Deadline | None = None,
    ) -> Sample:
        """Draw action chunks; see `sample_speculative` for the arguments. What a sampler has no use for it ignores.

        deadline: chains that would miss it are finished by a few DDIM steps, and are not exact: see `finish`.
        """
        return draw(
            self.chains, denoise, self.schedule, noise, generator=generator, inpaint=inpaint,
            warm_start=self.warm(warm_start), draft=draft if self.uses_draft else None, deadline=deadline,
        )  # fmt: skip

    def warm(self, warm_start: Tensor | None) -> Tensor | None:
        """The warm start, where the sampler uses one."""
        return warm_start if self.config.options.get("warm_start", True) else None

    def chains(self, networks: Networks) -> Chains:
        """Chains of this sampler, to be begun and run."""
        method, options = self.config.method, self.config.options
        if self.config.most_chains is not None and networks.shape[0] > self.config.most_chains:
            return Sequential(networks)
        if method == "paradigms":
            return Paradigms(networks, **options)
        if method == "tree":
            return Trees(networks, **options)
        if method in ("ddpm", "ddim"):
            return Sequential(networks)
        return Speculation(
            networks, drafter=self.drafter, verifier=VERIFIERS[options.get("verifier", "steps")],
            window=options.get("window", DEFAULT_WINDOW),
        )  # fmt: skip


def bind(
    config: SamplerConfig,
    scheduler_config: Mapping[str, Any],
    speculation: Mapping[str, Tensor] | None = None,
    *,
    has_draft: bool = False,
) -> BoundSampler:
    """Bind a sampler to a policy's scheduler and to what is stored for speculation beside its checkpoint.

    Args:
        speculation: gains by name (`Gains.state_dict`), or None.
        has_draft: whether a draft network will be given to the sampler's calls.

    Raises:
        ScheduleError: the chain cannot be sampled as asked.
        ValueError: an option that cannot be used, such as a window below 1, or what is asked for and missing.
    """
    if config.method == "auto":
        raise ValueError("auto is a policy's own choice: bind it with policy.bind(SamplerConfig('auto'))")
    eta = 0.0 if config.method == "ddim" and config.eta is None else config.eta
    schedule = Schedule.from_diffusers(scheduler_config, config.num_inference_steps, eta=eta)
    if config.method == "paradigms":
        check_paradigms(**config.options)
    if config.method == "tree":
        check_tree(**config.options)
    if config.method in ("tree", "speculative"):
        check_speculative(schedule)
    if config.method != "speculative":
        return BoundSampler(config, schedule)
    window_sizes(config.options.get("window", DEFAULT_WINDOW), schedule.num_steps, "cpu")
    if config.options.get("verifier", "steps") not in VERIFIERS:
        raise ValueError(f"unknown verifier {config.options['verifier']!r}; known: {', '.join(VERIFIERS)}")
    gains = Gains.from_state_dict(speculation) if speculation else None
    return BoundSampler(config, schedule, make_drafter(config.options, schedule, gains, has_draft=has_draft))


def make_drafter(
    options: Mapping[str, Any], schedule: Schedule, gains: Gains | None = None, *, has_draft: bool = False
) -> Drafter:
    """The drafter that `SamplerConfig.options` names.

    Raises:
        ValueError: an unknown name, or gains or a draft network that are asked for and missing.
    """
    name = options.get("drafter", "picard")
    simple: dict[str, Drafter] = {
        "parent": Parent(), "nearest": Nearest(), "drift": Parent("drift"), "drift_nearest": Nearest("drift"),
        "model": Model(),
    }  # fmt: skip
    if name == "model" and not has_draft:
        raise ValueError("drafter=model, but the checkpoint has no draft network: train one with dps-train draft=PATH")
    if name in simple:
        return simple[name]
    if name != "picard":
        raise ValueError(f"unknown drafter {name!r}; known: {', '.join(DRAFTERS)}")
    corrector = _asked(options, "corrector", has_draft, "has no draft network: train one with dps-train draft=PATH")
    # Gains are fitted to the network, not to what a draft network leaves of it.
    usable = gains is not None and gains.fit(schedule)
    missing = "has no gains for this schedule: calibrate it, or gain=auto"
    use = gains if _asked(options, "gain", usable, missing, auto=usable and not corrector) else None
    given = {key: options[key] for key in ("memory", "ridge", "sweeps", "first_sweeps") if options.get(key) is not None}
    return Picard(gains=use, corrector=corrector, **({"memory": 1 if use is not None or corrector else 3} | given))


def _asked(options: Mapping[str, Any], key: str, there: bool, missing: str, auto: bool | None = None) -> bool:
    """Whether to use something that is asked for with True, False or "auto"."""
    wanted = options.get(key, "auto")
    if wanted not in (True, False, "auto"):
        raise ValueError(f"{key} must be true, false or auto, got {wanted!r}")
    if wanted is True and not there:
        raise ValueError(f"{key}=true, but the checkpoint {missing}")
    return (there if auto is None else auto) if wanted == "auto" else wanted
