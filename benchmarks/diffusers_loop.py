"""diffusers' own denoising loop, as people run it: scheduler.step after every network call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec import Denoise, Inpainting, Noise, Sample, Schedule
from diffpolicy_spec.networks import Networks
from diffpolicy_spec.noise import Generator
from diffpolicy_spec.sampling import draw
from diffpolicy_spec.sequential import Sequential
from diffpolicy_spec.window import Turn

__all__ = ["DiffusersLoop"]


class DiffusersLoop:
    """A sampler with `BoundSampler`'s interface around `diffusers.DDPMScheduler`."""

    def __init__(self, scheduler_config: Mapping[str, Any]) -> None:
        from diffusers import DDPMScheduler

        self._scheduler = DDPMScheduler.from_config(dict(scheduler_config))
        self.schedule = Schedule.from_diffusers(scheduler_config)
        self._scheduler.set_timesteps(self.schedule.num_steps)

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
        return draw(lambda networks: _Stepped(networks, self._scheduler), denoise, self.schedule, noise,
                    generator=generator)  # fmt: skip


class _Stepped(Sequential):
    """Chains that the scheduler steps."""

    def __init__(self, networks: Networks, scheduler: Any) -> None:
        super().__init__(networks)
        self._scheduler = scheduler

    def round(self, turn: Turn) -> None:
        assert turn.low is not None
        k = turn.low
        x, steps = self.x.view(self.networks.shape), torch.full_like(turn.chain, k)
        prediction = self.networks.call(x, steps, turn.chain)
        self.x.copy_(self._scheduler.step(prediction, self._scheduler.timesteps[k], x).prev_sample.flatten(1))
        self.networks.clock.lap("verify")
