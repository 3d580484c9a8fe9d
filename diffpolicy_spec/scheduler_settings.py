"""What a scheduler's settings say: betas of the training chain, and the timesteps that are visited.

Settings are those of `diffusers.DDPMScheduler` and `diffusers.DDIMScheduler`; what is missing takes diffusers' default.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["SETTINGS", "ScheduleError", "read_settings", "rounded_as_0_11", "spaced_timesteps", "training_abar",
           "training_betas"]  # fmt: skip

_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "variance_type": "fixed_small", "clip_sample": True, "clip_sample_range": 1.0,
    "prediction_type": "epsilon", "thresholding": False, "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0, "timestep_spacing": "leading", "steps_offset": 0, "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
}  # fmt: skip
SETTINGS = frozenset(_DEFAULTS)
"""Every setting of a scheduler that is looked at."""

_MOST_STEPS = 100_000  # of a training chain: a file may claim any number


class ScheduleError(ValueError):
    """A scheduler setting that is unknown, or whose chain cannot be sampled as asked."""


def training_abar(config: Mapping[str, Any]) -> np.ndarray:
    """alphas_cumprod of the training chain, (num_train_timesteps,) float64, from a diffusers scheduler config."""
    config = {**_DEFAULTS, **config}
    betas = training_betas(config)
    if config["rescale_betas_zero_snr"]:
        root = np.sqrt(np.cumprod(1 - betas))
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])  # arXiv 2305.08891, Algorithm 1
        return root**2
    return np.cumprod(1 - betas)


def training_betas(config: Mapping[str, Any]) -> np.ndarray:
    """betas of the training chain, (num_train_timesteps,) float64."""
    n, lo, hi = int(config["num_train_timesteps"]), float(config["beta_start"]), float(config["beta_end"])
    schedule = config["beta_schedule"]
    if config["trained_betas"] is not None:
        try:
            betas = np.asarray(config["trained_betas"], dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise ScheduleError(f"trained_betas must be numbers: {error}") from error
        if betas.shape != (n,):
            raise ScheduleError(f"trained_betas must have num_train_timesteps = {n} values, got shape {betas.shape}")
    elif schedule == "linear":
        betas = np.linspace(lo, hi, n)
    elif schedule == "scaled_linear":
        betas = np.linspace(lo**0.5, hi**0.5, n) ** 2
    elif schedule == "squaredcos_cap_v2":
        cos2 = np.array([math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)])
        betas = np.minimum(1 - cos2[1:] / cos2[:-1], 0.999)
    elif schedule == "sigmoid":
        betas = (hi - lo) / (1 + np.exp(-np.linspace(-6, 6, n))) + lo
    else:
        raise ScheduleError(
            f"beta_schedule {schedule!r} is not supported; use linear, scaled_linear, squaredcos_cap_v2, sigmoid or "
            "trained_betas"
        )
    if not (np.isfinite(betas).all() and (0 <= betas).all() and (betas < 1).all()):
        raise ScheduleError(f"betas must lie in [0, 1), these ({schedule}, {lo} to {hi}) do not")
    return betas.astype(np.float32).astype(np.float64)  # what diffusers stores


def read_settings(scheduler: Any) -> tuple[dict[str, Any], str]:
    """All settings of a scheduler, of its `config` or of a dict, and its class's name.

    Raises:
        ScheduleError: a setting or scheduler that is unknown or not supported.
    """
    config = getattr(scheduler, "config", scheduler)
    if not isinstance(config, Mapping):
        raise ScheduleError(f"expected a diffusers scheduler or its config dict, got {type(scheduler).__name__}")
    name = config.get("_class_name") or (type(scheduler).__name__ if config is not scheduler else "DDPMScheduler")
    if name not in ("DDPMScheduler", "DDIMScheduler"):
        raise ScheduleError(f"scheduler {name} is not supported; use DDPMScheduler or DDIMScheduler")
    merged = {**_DEFAULTS, **config}
    steps = merged["num_train_timesteps"]
    if not isinstance(steps, int | np.integer) or not 1 <= steps <= _MOST_STEPS:
        got = str(steps)[:40]
        raise ScheduleError(f"num_train_timesteps must be a whole number from 1 to {_MOST_STEPS}, got {got}")
    if name == "DDPMScheduler" and merged["variance_type"] not in ("fixed_small", "fixed_small_log", "fixed_large"):
        why = {
            "fixed_large_log": "diffusers' own step gives NaN for it",
            "learned": "the step's covariance depends on the network",
            "learned_range": "the step's covariance depends on the network",
        }.get(merged["variance_type"], "it is unknown")
        raise ScheduleError(f"variance_type {merged['variance_type']!r} is not supported: {why}; "
                            "use fixed_small, fixed_small_log or fixed_large")  # fmt: skip
    if merged["prediction_type"] not in ("epsilon", "sample", "v_prediction"):
        raise ScheduleError(f"prediction_type {merged['prediction_type']!r} is not supported; "
                            "use epsilon, sample or v_prediction")  # fmt: skip
    if merged["thresholding"] and not (0 < merged["dynamic_thresholding_ratio"] <= 1 <= merged["sample_max_value"]):
        raise ScheduleError("thresholding needs dynamic_thresholding_ratio in (0, 1] and sample_max_value >= 1")
    if merged["clip_sample"] and not merged["clip_sample_range"] > 0:
        raise ScheduleError(f"clip_sample_range must be positive, got {merged['clip_sample_range']}")
    return merged, name


def spaced_timesteps(config: Mapping[str, Any], n: int, n_train: int) -> np.ndarray:
    """(n,) int64 timesteps, largest first (arXiv 2305.08891, Table 2)."""
    spacing = config["timestep_spacing"]
    if spacing == "linspace":
        spaced = np.linspace(0, n_train - 1, n).round()[::-1]
    elif spacing == "leading":
        spaced = np.arange(n, dtype=np.float64)[::-1] * (n_train // n) + int(config["steps_offset"])
    elif spacing == "trailing":
        spaced = np.round(np.arange(n_train, 0, -n_train / n)) - 1
    else:
        raise ScheduleError(f"timestep_spacing {spacing!r} is not supported; use leading, trailing or linspace")
    steps = spaced.astype(np.int64)
    if steps[0] >= n_train or steps[-1] < 0:
        raise ScheduleError(f"steps_offset {config['steps_offset']} moves timesteps out of 0 ... {n_train - 1}")
    return steps


def rounded_as_0_11(config: Mapping[str, Any], steps: np.ndarray) -> bool:
    """Whether a DDPM step takes beta as stored: diffusers up to 0.11, all steps. Since then it is 1 - abar / abar_prev.

    With abar rounded to float32 the two differ: by 1.4e-5 in A at the last step of diffusion_policy's chain.
    """
    release = re.match(r"0\.(\d+)", str(config.get("_diffusers_version", "")))
    every = np.array_equal(steps, np.arange(int(config["num_train_timesteps"]))[::-1])
    # What a release does not know was not written for it, whatever the config says.
    return release is not None and int(release[1]) <= 11 and every and not config["rescale_betas_zero_snr"]
