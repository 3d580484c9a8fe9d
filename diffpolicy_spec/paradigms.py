"""ParaDiGMS: parallel sampling by Picard iteration to a tolerance. The approximate peer."""

from __future__ import annotations

import torch
from torch import Tensor

from .inpainting import Inpainting
from .noise import Generator, Noise
from .recording import Denoise, Recorder
from .sampling import prepare_noise, show
from .schedule import Schedule
from .stats import Sample
from .window import DEFAULT_WINDOW, make_window, window_sizes

__all__ = ["DEFAULT_TOLERANCE", "check_paradigms", "sample_paradigms"]

DEFAULT_TOLERANCE = 0.1
"""Of a state's movement, in units of its step's sigma."""


def check_paradigms(window: int = DEFAULT_WINDOW, tolerance: float = DEFAULT_TOLERANCE) -> None:
    """Raise ValueError for a window that is not a positive number or a negative tolerance."""
    window_sizes(window, 1, "cpu")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")


@torch.no_grad()
def sample_paradigms(
    denoise: Denoise,
    schedule: Schedule,
    noise: Noise | Tensor,
    *,
    generator: Generator = None,
    window: int = DEFAULT_WINDOW,
    tolerance: float = DEFAULT_TOLERANCE,
    inpaint: Inpainting | None = None,
) -> Sample:
    """Slide a window over the chain and iterate all its states at once (Shih et al. 2023, arXiv 2305.16317, Alg. 1).

        x_{k+j+1} <- x_k + sum_{i<=j} ((A_{k+i} m(x_{k+i}) + (B_{k+i} - 1) x_{k+i}) + sigma_{k+i} xi_{k+i})

    The window moves to the first state that moved by more than the tolerance: |new - old|^2 / D > tolerance^2 sigma^2.
    Not exact, unless tolerance = 0: accepted states solve the chain only to the tolerance. The noise is the chain's, so
    with tolerance 0 the result is the sequential sampler's.

    Args:
        window: states iterated at once, per chain.
        tolerance: relative to each step's sigma.

    Raises:
        ValueError: the tolerance is negative, or the window below 1.
    """
    check_paradigms(window, tolerance)
    noise = prepare_noise(noise, schedule, generator, inpaint)
    (B, *chunk), K, device = noise.start.shape, schedule.num_steps, noise.start.device
    tables, size = schedule.on(device), window_sizes(window, 1, device)
    recorder = Recorder(denoise, schedule, tuple(noise.start.shape), device, inpaint=inpaint)
    xi = noise.steps.transpose(0, 1).reshape(B, K, -1)
    A, B_minus_1, sigma = (t.view(K, 1) for t in (tables.A, tables.B - 1, tables.sigma))
    x = noise.start.reshape(B, 1, -1).repeat(1, K + 1, 1)  # states not reached yet start at x_0

    k = torch.zeros(B, dtype=torch.long, device=device)
    active = torch.arange(B, device=device)
    while active.numel():
        at = k[active]
        w = make_window(active, at, size.expand_as(at), K)
        rows, steps = active[:, None].expand_as(w.steps), w.steps
        old = x[rows, steps]
        m = torch.zeros_like(old)
        m[w.valid] = recorder.predict_x0(old[w.valid], steps[w.valid], rows[w.valid])
        change = (A[steps] * m + B_minus_1[steps] * old + sigma[steps] * xi[rows, steps]) * w.valid.unsqueeze(-1)
        new = x[active, at].unsqueeze(1) + change.cumsum(dim=1)  # the states after each step
        moved = (new - x[rows, steps + 1]).square().mean(-1)
        settled = (moved <= (tolerance * tables.sigma[steps]) ** 2) & w.valid
        # The first state that has not settled is computed from settled ones: it is where the window moves to.
        ahead = torch.minimum(settled.long().cumprod(dim=1).sum(dim=1) + 1, w.sizes)
        x[rows[w.valid], steps[w.valid] + 1] = new[w.valid]
        ends, after = at + w.sizes, torch.arange(K + 1, device=device)
        last = x[active, ends].unsqueeze(1)
        x[active] = torch.where((after > ends[:, None]).unsqueeze(-1), last, x[active])
        recorder.round(active, at, w.sizes, ahead - 1, torch.zeros_like(at, dtype=torch.bool))
        k[active] = at + ahead
        active = active[k[active] < K]
    return Sample(x0=show(x[:, K].reshape(B, *chunk), inpaint), stats=recorder.stats())
