"""Diffusion Policy action chunks from the exact DDPM distribution, in a handful of sequential network calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .calibration import calibrate
from .drafting import Model, Nearest, Parent, Picard
from .gains import Gains
from .inpainting import Inpainting
from .noise import Noise, draw_noise
from .paradigms import sample_paradigms
from .runtime import RuntimeConfig
from .samplers import BoundSampler, SamplerConfig, bind
from .sampling import Denoise, sample_ddim, sample_ddpm, sample_speculative
from .schedule import Schedule, ScheduleError
from .stats import Sample, SampleStats, TimeSplit
from .trees import sample_tree
from .verification import verify_block, verify_steps

if TYPE_CHECKING:
    from .acceleration import AccelerateError, DenoisingLoop, accelerate, accelerated, decelerate
    from .checkpoints import load_policy

__all__ = [
    "AccelerateError",
    "BoundSampler",
    "Denoise",
    "DenoisingLoop",
    "Gains",
    "Inpainting",
    "Model",
    "Nearest",
    "Noise",
    "Parent",
    "Picard",
    "RuntimeConfig",
    "Sample",
    "SampleStats",
    "SamplerConfig",
    "Schedule",
    "ScheduleError",
    "TimeSplit",
    "accelerate",
    "accelerated",
    "bind",
    "calibrate",
    "decelerate",
    "draw_noise",
    "load_policy",
    "sample_ddim",
    "sample_ddpm",
    "sample_paradigms",
    "sample_speculative",
    "sample_tree",
    "verify_block",
    "verify_steps",
]


_ACCELERATION = ("AccelerateError", "DenoisingLoop", "accelerate", "accelerated", "decelerate")


def __getattr__(name: str) -> Any:
    # Reading checkpoints needs safetensors and the networks; importing the sampler does not.
    if name == "load_policy":
        from .checkpoints import load_policy

        return load_policy
    if name in _ACCELERATION:
        from . import acceleration

        return getattr(acceleration, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
