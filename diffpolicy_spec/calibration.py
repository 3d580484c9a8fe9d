"""Fitting what speculation can use beside a checkpoint: gains per step, from the policy's own chains."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .gains import Gains
from .noise import draw_noise
from .recording import Denoise, Recorder
from .schedule import Schedule

__all__ = ["calibrate"]


@torch.no_grad()
def calibrate(
    denoise: Denoise,
    schedule: Schedule,
    shape: tuple[int, int, int],
    *,
    generator: torch.Generator | None = None,
    perturbations: int = 2,
    scale: float = 1.0,
    ridge: float = 1e-2,
    batch: int = 256,
    device: torch.device | str = "cpu",
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Gains:
    """Fit G_k ~ E[d x0_k / d x]' by ridge regression over sequential chains of the policy.

    The states x of each step k are perturbed by dx = scale sigma_k z, z ~ N(0, I), the size of what a draft is off by:

        G_k = (sum dx' dx + ridge n scale^2 sigma_k^2 I)^-1 (sum dx' dm),   dm = x0(x + dx) - x0(x), rows

    Gains cannot harm exactness; poor ones cost acceptance.

    Args:
        denoise: the policy's network; `chain` runs over `shape[0]` chains, best one per observation of many episodes.
        shape: (chains, Tp, Da); chains x perturbations of a few times Tp x Da is enough.
        perturbations: perturbed states per chain and step.
        batch: rows per network call.
        progress: wraps the iteration over steps, such as `tqdm`.

    Returns:
        gains of (K, D, D) float32; `Gains.state_dict` is stored beside the checkpoint.

    Raises:
        ValueError: no perturbations, or a scale or ridge that cannot be used.
    """
    if perturbations < 1 or not scale > 0 or not ridge >= 0:
        raise ValueError(
            f"calibration needs perturbations >= 1, scale > 0 and ridge >= 0, got {perturbations}, {scale}, {ridge}"
        )
    B, D, K = shape[0], shape[1] * shape[2], schedule.num_steps
    noise = draw_noise(shape, schedule, generator, device)
    recorder = Recorder(denoise, schedule, shape, torch.device(device))
    tables, x = schedule.on(device), noise.start.flatten(1)
    chain = torch.arange(B, device=x.device)
    G = torch.zeros(K, D, D, device=x.device)

    def x0(rows: Tensor, k: int) -> Tensor:
        parts = zip(rows.split(batch), chain.repeat(len(rows) // B).split(batch), strict=True)
        return torch.cat([recorder.predict_x0(r, torch.full_like(c, k), c) for r, c in parts])

    for k in progress(range(K)):
        m = x0(x, k)
        step = scale * float(tables.sigma[k] if k < K - 1 else tables.sigma[k - 1]) or 1.0
        source = generator.device if generator is not None else x.device
        dx = step * torch.randn((perturbations * B, D), generator=generator, device=source).to(x)
        dm = x0(x.repeat(perturbations, 1) + dx, k) - m.repeat(perturbations, 1)
        penalty = ridge * len(dx) * step**2 * torch.eye(D, device=x.device)
        G[k] = torch.linalg.solve(dx.T @ dx + penalty, dx.T @ dm)
        x = tables.A[k] * m + tables.B[k] * x + tables.sigma[k] * noise.steps[k].flatten(1)
    return Gains(G=G, timesteps=schedule.timesteps.clone())
