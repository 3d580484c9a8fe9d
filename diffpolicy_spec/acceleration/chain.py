"""The chain that a live scheduler runs, and a sampler bound to it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec.acceleration.errors import AccelerateError
from diffpolicy_spec.noise import Generator, Noise, draw_noise
from diffpolicy_spec.samplers import BoundSampler, SamplerConfig, bind
from diffpolicy_spec.schedule import Schedule, ScheduleError

__all__ = ["as_config", "bind_live", "draw_live_noise", "live_eta"]

_PROBED = 25  # steps of a live scheduler that are compared with ours


def as_config(sampler: SamplerConfig | str) -> SamplerConfig:
    """A sampler's config, or one named by its method.

    Raises:
        ValueError: an unknown method.
    """
    return SamplerConfig(sampler) if isinstance(sampler, str) else sampler


def live_eta(scheduler: Any, options: Mapping[str, Any]) -> float | None:
    """DDIM's eta of a live scheduler whose `step` is given these keyword arguments; None for DDPM.

    Raises:
        AccelerateError: arguments that change the step and are not known here.
    """
    known = {"eta"} if _is_ddim(scheduler) else set()
    # diffusers' defaults change nothing.
    strange = {k: v for k, v in options.items() if k not in known and not (k == "use_clipped_model_output" and not v)}
    if strange:
        told = ", ".join(f"{name}={value!r}" for name, value in strange.items())
        raise AccelerateError(f"{type(scheduler).__name__}.step is given {told}, which samplers here know nothing of")
    return float(options.get("eta", 0.0)) if _is_ddim(scheduler) else None


def bind_live(
    config: SamplerConfig,
    scheduler: Any,
    steps: int,
    eta: float | None = None,
    speculation: Mapping[str, Tensor] | None = None,
    *,
    has_draft: bool = False,
) -> BoundSampler:
    """Bind a sampler to the chain of a live diffusers scheduler.

    Args:
        config: what to sample with; "auto" stands for the default speculative sampler. What it leaves open is as the
            live policy has it. A sampler that needs noise, asked for by name over a deterministic chain, draws the
            DDPM chain of all training timesteps.
        scheduler: a DDPMScheduler or DDIMScheduler.
        steps: K, the number of inference steps it is used with.
        eta: DDIM's; see `live_eta`.
        speculation, has_draft: as in `bind`.

    Raises:
        AccelerateError: "auto" on a chain without noise, a scheduler that is not supported, or one whose steps are not
            those of its settings.
        ScheduleError, ValueError: the sampler does not fit the chain; see `bind`.
    """
    settings: dict[str, Any] = dict(scheduler.config)
    ddim = _is_ddim(scheduler)
    settings["_class_name"] = "DDIMScheduler" if ddim else type(scheduler).__name__
    own_eta = config.eta if config.eta is not None else eta
    if config.method == "auto":
        if own_eta == 0:
            raise AccelerateError(
                f"{type(scheduler).__name__} with eta = 0 adds no noise on its way, so there is nothing random to "
                'speculate on: it stays as it is. SamplerConfig("speculative") would draw from the DDPM chain of the '
                "same network instead, exactly and in few calls"
            )
        config = replace(config, method="speculative")
    try:
        if ddim and not own_eta and config.method not in ("ddim",):
            settings["_class_name"], own_eta = "DDPMScheduler", None
            steps = int(settings["num_train_timesteps"])
        wanted = config.num_inference_steps if config.num_inference_steps is not None else steps
        config = replace(config, num_inference_steps=wanted, eta=own_eta)
        sampler = bind(config, settings, speculation, has_draft=has_draft)
    except ScheduleError as error:
        if _supported(settings):
            raise
        raise AccelerateError(f"the live scheduler is not supported: {error}") from error
    if (sampler.schedule.kind == "ddim") == ddim:
        _check_steps(sampler.schedule, scheduler, steps=wanted)
    return sampler


def draw_live_noise(
    sampler: BoundSampler,
    shape: tuple[int, int, int],
    generator: Generator,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    start: Tensor | None = None,
) -> Noise:
    """Noise for a sampler. For "ddpm" and "ddim" in the order in which the live loop draws it: the same seed, the same
    chunk.

    Args:
        shape: (B, Tp, Da).
        dtype: what the live loop draws in; what comes back is float32.
        start: (B, Tp, Da) instead of the first draw.
    """
    schedule = sampler.schedule
    if sampler.config.method not in ("ddpm", "ddim") or not (
        generator is None or isinstance(generator, torch.Generator)
    ):
        noise = draw_noise(shape, schedule, generator, device)
        return noise if start is None else replace(noise, start=start.to(noise.start))
    source = device if generator is None else generator.device

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(device, torch.float32)

    first = draw() if start is None else start.to(device, torch.float32)
    # DDPM draws at every timestep but 0, DDIM with eta > 0 at every one.
    noisy = (schedule.timesteps > 0 if schedule.kind == "ddpm" else schedule.sigma.new_full((len(schedule.sigma),),
             schedule.eta) > 0).tolist()  # fmt: skip
    steps = [draw() if is_noisy else first.new_zeros(shape) for is_noisy in noisy]
    return Noise(start=first, steps=torch.stack(steps), uniforms=first.new_zeros(len(steps), shape[0]))


def _is_ddim(scheduler: Any) -> bool:
    return any(kind.__name__ == "DDIMScheduler" for kind in type(scheduler).__mro__)


def _supported(settings: Mapping[str, Any]) -> bool:
    try:
        Schedule.from_diffusers(settings)
    except ScheduleError:
        return False
    return True


def _check_steps(schedule: Schedule, scheduler: Any, steps: int) -> None:
    """Compare steps of the live scheduler with the tables read from its settings, on random states.

    Raises:
        AccelerateError: they differ: a subclass, or diffusers before 0.12 with fewer steps than it was trained with.
    """
    twin = copy.deepcopy(scheduler)  # set_timesteps writes into it
    twin.set_timesteps(steps)
    for name, value in list(vars(twin).items()):
        if isinstance(value, Tensor):  # training may have left its tables on a GPU
            setattr(twin, name, value.cpu())
    if [int(t) for t in twin.timesteps] != schedule.timesteps.tolist():
        raise _other_steps(scheduler, steps, "its timesteps are others")
    K = schedule.num_steps
    probed = sorted({round(i * (K - 1) / (_PROBED - 1)) for i in range(_PROBED)})
    generator = torch.Generator().manual_seed(0)
    options = {} if schedule.kind == "ddpm" else {"eta": schedule.eta}
    for k in probed:
        x, prediction = torch.randn((2, 1, 4, 3), generator=generator).unbind(0)
        t = twin.timesteps[k]
        found = twin.step(prediction, t, x, generator=torch.Generator().manual_seed(1), **options).prev_sample
        xi = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        m = schedule.predict_x0(prediction, x, torch.tensor([k]))
        expected = float(schedule.A[k]) * m + float(schedule.B[k]) * x + float(schedule.sigma[k]) * xi
        if not float((found - expected).abs().max()) <= 1e-3 * (1 + float(expected.abs().max())):
            raise _other_steps(scheduler, steps, f"its step at timestep {int(t)} is another")


def _other_steps(scheduler: Any, steps: int, what: str) -> AccelerateError:
    return AccelerateError(
        f"{type(scheduler).__module__}.{type(scheduler).__name__} with {steps} steps does not do what its settings "
        f"say: {what}. It is a subclass, or of a diffusers before 0.12, which steps to t - 1 whatever the number of "
        f"steps: use as many inference steps as training timesteps, or a newer diffusers"
    )
