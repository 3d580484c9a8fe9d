"""The denoising objective."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from diffpolicy_spec.training.batches import Batch

__all__ = ["add_noise", "denoising_loss", "mean_loss", "prediction_target"]


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, abar: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise.

    Args:
        x0, noise: (N, T, Da).
        t: (N,) long.
        abar: (num_train_timesteps,) cumulative products of 1 - beta (`schedule.training_abar`).
    """
    a = abar[t][:, None, None]
    return a.sqrt() * x0 + (1.0 - a).sqrt() * noise


def prediction_target(x0: Tensor, noise: Tensor, t: Tensor, abar: Tensor, prediction_type: str) -> Tensor:
    """What the network is to predict: epsilon, the sample, or v = sqrt(abar) noise - sqrt(1 - abar) x0."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    if prediction_type == "v_prediction":
        a = abar[t][:, None, None]
        return a.sqrt() * noise - (1.0 - a).sqrt() * x0
    raise ValueError(f"prediction_type must be epsilon, sample or v_prediction; got '{prediction_type}'")


def denoising_loss(
    network: Callable[[Tensor, Tensor, Tensor], Tensor], batch: Batch, abar: Tensor, prediction_type: str
) -> Tensor:
    """Mean squared error of the prediction over rows, steps and dimensions: a scalar."""
    x_t = add_noise(batch.x0, batch.noise, batch.t, abar)
    target = prediction_target(batch.x0, batch.noise, batch.t, abar, prediction_type)
    return functional.mse_loss(network(x_t, batch.t, batch.condition), target)


@torch.no_grad()
def mean_loss(
    network: Callable[[Tensor, Tensor, Tensor], Tensor], batches: list[Batch], abar: Tensor, prediction_type: str
) -> float:
    """The loss over several batches, weighted by their rows."""
    total = sum(float(denoising_loss(network, b, abar, prediction_type)) * len(b.t) for b in batches)
    return total / sum(len(b.t) for b in batches)
