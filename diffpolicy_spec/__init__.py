"""Diffusion Policy action chunks from the exact DDPM distribution, in a handful of sequential network calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .optional import on_demand

if TYPE_CHECKING:
    from .acceleration import AccelerateError, DenoisingLoop, accelerate, accelerated, decelerate
    from .calibration import calibrate
    from .checkpoints import load_policy
    from .deadline import Deadline
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

__all__ = [
    "AccelerateError",
    "BoundSampler",
    "Deadline",
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

# Imported when first asked for: a robot's computer runs the control loop, or a server's client, without torch.
_MODULES = {
    "acceleration": "AccelerateError DenoisingLoop accelerate accelerated decelerate",
    "calibration": "calibrate",
    "checkpoints": "load_policy",
    "deadline": "Deadline",
    "drafting": "Model Nearest Parent Picard",
    "gains": "Gains",
    "inpainting": "Inpainting",
    "noise": "Noise draw_noise",
    "paradigms": "sample_paradigms",
    "runtime": "RuntimeConfig",
    "samplers": "BoundSampler SamplerConfig bind",
    "sampling": "Denoise sample_ddim sample_ddpm sample_speculative",
    "schedule": "Schedule ScheduleError",
    "stats": "Sample SampleStats TimeSplit",
    "trees": "sample_tree",
    "verification": "verify_block verify_steps",
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names.split()}
__getattr__, __dir__ = on_demand(__name__, _WHERE)
