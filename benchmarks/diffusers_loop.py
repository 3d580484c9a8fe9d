"""diffusers' own denoising loop, as people run it: scheduler.step after every network call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec import Denoise, Inpainting, Noise, Sample, Schedule
from diffpolicy_spec.noise import Generator, as_noise
from diffpolicy_spec.recording import Recorder

__all__ = ["DiffusersLoop"]


class DiffusersLoop:
    """A sampler with `BoundSampler`'s interface around `diffusers.DDPMScheduler`."""

    def __init__(self, scheduler_config: Mapping[str, Any]) -> None:
        from diffusers import DDPMScheduler

        self._scheduler = DDPMScheduler.from_config(dict(scheduler_config))
        self.schedule = Schedule.from_diffusers(scheduler_config)
        self._scheduler.set_timesteps(self.schedule.num_steps)

    @torch.no_grad()
    def __call__(
        self,
        denoise: Denoise,
        noise: Noise | Tensor,
        *,
        generator: Generator = None,
        warm_start: Tensor | None = None,
        draft: Denoise | None = None,
        inpaint: Inpainting | None = None,
    ) -> Sample:
        """Draw chunks; the step noise is the scheduler's own draw from torch's default generator.

        Raises:
            ValueError: coordinates are inpainted, which the scheduler knows nothing of.
        """
        if inpaint is not None:
            raise ValueError("diffusers' loop does not inpaint")
        x = as_noise(noise, self.schedule, generator).start
        chain = torch.arange(len(x), device=x.device)
        recorder = Recorder(denoise, self.schedule, tuple(x.shape), x.device)
        one, none = torch.ones_like(chain), torch.zeros_like(chain)
        for k, t in enumerate(self._scheduler.timesteps):
            at = torch.full_like(chain, k)
            x = self._scheduler.step(recorder.call(x, at, chain), t, x).prev_sample
            recorder.round(chain, at, one, none, none)
        return Sample(x0=x, stats=recorder.stats(drafts=False))
