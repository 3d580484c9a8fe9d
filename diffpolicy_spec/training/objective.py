"""The denoising objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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
        abar: (num_train_timesteps,) cumulative products of 1 - beta (`scheduler_settings.training_abar`).
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


def denoising_loss(model: Callable[..., Tensor], batch: Batch, abar: Tensor, prediction_type: str) -> Tensor:
    """Mean squared error of the prediction over rows, steps and dimensions: a scalar.

    What is known of a plan is shown to the model as it is, and its error counts 0 (diffusion_policy's mask).

    Args:
        model: called with (x_t, t, condition), with cameras also with the batch's images and crops.
    """
    x_t = add_noise(batch.x0, batch.noise, batch.t, abar)
    target = prediction_target(batch.x0, batch.noise, batch.t, abar, prediction_type)
    seen = (batch.images, batch.crops) if batch.images else ()
    if batch.known is None:
        return functional.mse_loss(model(x_t, batch.t, batch.condition, *seen).to(torch.float32), target)
    x_t = torch.where(batch.known, batch.x0, x_t)
    error = model(x_t, batch.t, batch.condition, *seen).to(torch.float32) - target
    return error.square().masked_fill(batch.known, 0.0).mean()


@torch.no_grad()
def mean_loss(model: Callable[..., Tensor], batches: Iterable[Batch], abar: Tensor, prediction_type: str) -> float:
    """The loss over several batches, weighted by their rows."""
    total, rows = 0.0, 0
    for batch in batches:
        total += float(denoising_loss(model, batch, abar, prediction_type)) * len(batch.t)
        rows += len(batch.t)
    return total / rows
