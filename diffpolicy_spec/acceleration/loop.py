"""A drop-in for the denoising loop around a diffusers scheduler, for policies of any class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec.acceleration.chain import as_config, bind_live, draw_live_noise, live_eta
from diffpolicy_spec.inpainting import Inpainting
from diffpolicy_spec.networks import Denoise
from diffpolicy_spec.noise import Generator
from diffpolicy_spec.samplers import SamplerConfig
from diffpolicy_spec.stats import SampleStats

__all__ = ["DenoisingLoop"]


class DenoisingLoop:
    """What stands in the place of `for t in scheduler.timesteps: ... scheduler.step(...)`.

        loop = dps.DenoisingLoop(scheduler)
        actions = loop(lambda x, t, chain: net(x, t, cond[chain]), (B, Tp, Da), generator=generator)
        loop.last_sample_stats.calls

    The network is called with rows x: (N, Tp, Da) of several steps at once, timesteps t: (N,) and chain: (N,), the
    sample each row belongs to, with which the condition is gathered; it must be in evaluation mode.

    Args:
        scheduler: a diffusers DDPMScheduler, or a DDIMScheduler with eta > 0. It is read, not stepped.
        sampler: a `SamplerConfig` or a method's name; "auto": the default speculative one.
        num_inference_steps: K; None: what set_timesteps was last called with, else all training timesteps.
        step_options: keyword arguments that the loop gave scheduler.step (eta).
        speculation: gains, as `Gains.state_dict` names them; None: none.

    Attributes:
        last_sample_stats: of the last call; None before the first.

    Raises:
        AccelerateError: a chain without noise, a scheduler that is not supported, or whose steps are of its own making.
        ScheduleError, ValueError: a sampler that does not fit the chain.
    """

    def __init__(
        self,
        scheduler: Any,
        sampler: SamplerConfig | str = "auto",
        *,
        num_inference_steps: int | None = None,
        step_options: Mapping[str, Any] | None = None,
        speculation: Mapping[str, Tensor] | None = None,
    ) -> None:
        steps = num_inference_steps or getattr(scheduler, "num_inference_steps", None)
        steps = int(scheduler.config["num_train_timesteps"] if steps is None else steps)
        eta = live_eta(scheduler, step_options or {})
        self._sampler = bind_live(as_config(sampler), scheduler, steps, eta, speculation)
        self.last_sample_stats: SampleStats | None = None

    @property
    def timesteps(self) -> Tensor:
        """(K,) long, the training timestep of each step, largest first."""
        return self._sampler.schedule.timesteps

    def __call__(
        self,
        denoise: Denoise,
        noise: Tensor | tuple[int, int, int],
        *,
        generator: Generator = None,
        device: torch.device | str | None = None,
        warm_start: Tensor | None = None,
        inpaint: Inpainting | None = None,
    ) -> Tensor:
        """Sample (B, Tp, Da).

        Args:
            denoise: denoise(x: (N, Tp, Da), t: (N,), chain: (N,)) -> (N, Tp, Da), what the scheduler's prediction_type
                says.
            noise: the chain's start (B, Tp, Da), or its shape: then it is drawn.
            generator: where noise is drawn from; "ddpm" and "ddim" draw in the order of diffusers' loop.
            device: where the chain is, when noise is a shape; None: the generator's, else the CPU.
            warm_start, inpaint: as in `sample_speculative`.

        Returns:
            (B, Tp, Da), in the dtype of `noise`.

        Raises:
            ValueError: shapes that do not fit.
            FloatingPointError: the network returned NaN or infinite values.
        """
        start = noise if isinstance(noise, Tensor) else None
        if len(start.shape if start is not None else noise) != 3:
            raise ValueError(f"noise must be (B, Tp, Da) or that shape, got {getattr(noise, 'shape', noise)}")
        first = generator if isinstance(generator, torch.Generator) else None
        where = start.device if start is not None else torch.device(device or (first.device if first else "cpu"))
        B, Tp, Da = start.shape if start is not None else noise
        with torch.inference_mode(False), torch.no_grad():
            drawn = draw_live_noise(self._sampler, (B, Tp, Da), generator, where, start=start)
            sample = self._sampler(denoise, drawn, generator=generator, warm_start=warm_start, inpaint=inpaint)
        self.last_sample_stats = sample.stats
        return sample.x0 if start is None else sample.x0.to(start.dtype)
