"""Samplers: plain functions (denoise, schedule, noise, *, options) -> Sample.

`denoise(x, t, chain)` gets rows x: (N, Tp, Da), their timesteps t: (N,) long and chain: (N,) long, which of the B
samples a row belongs to (conditioning is gathered with it), and returns the network's prediction (N, Tp, Da). Rows must
not influence each other: evaluation mode, no batch statistics. `noise` is x_0 ~ N(0, I): (B, Tp, Da), or a whole
`Noise`; what it lacks, and what a verifier has spent, is drawn with `generator`. `inpaint` pins known coordinates.
States are float32 whatever the network runs in.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .drafting import Drafter, Picard
from .inpainting import Inpainting
from .noise import Generator, Noise, NoiseTable, as_noise
from .recording import Denoise, Recorder
from .schedule import Schedule, ScheduleError
from .stats import Sample
from .verification import Verifier, verify_steps
from .window import DEFAULT_WINDOW, Draft, WindowSize, make_window, window_sizes

__all__ = [
    "Denoise",
    "check_speculative",
    "prepare_noise",
    "sample_ddim",
    "sample_ddpm",
    "sample_speculative",
    "show",
]


@torch.no_grad()
def sample_ddpm(
    denoise: Denoise,
    schedule: Schedule,
    noise: Noise | Tensor,
    *,
    generator: Generator = None,
    inpaint: Inpainting | None = None,
) -> Sample:
    """Ancestral sampling (Ho et al. 2020, Alg. 2): K sequential calls, x_{k+1} = A m + B x + sigma xi.

    Raises:
        ScheduleError: the schedule is a DDIM chain.
    """
    if schedule.kind != "ddpm":
        raise ScheduleError("sample_ddpm needs a DDPM schedule; this one is DDIM: use sample_ddim")
    return _sample_sequential(denoise, schedule, noise, generator, inpaint)


@torch.no_grad()
def sample_ddim(
    denoise: Denoise,
    schedule: Schedule,
    noise: Noise | Tensor,
    *,
    generator: Generator = None,
    inpaint: Inpainting | None = None,
) -> Sample:
    """DDIM (Song et al. 2021, eq. 12), with the schedule's eta: K sequential calls; eta = 0 draws no step noise.

    Raises:
        ScheduleError: the schedule is a DDPM chain.
    """
    if schedule.kind != "ddim":
        raise ScheduleError("sample_ddim needs a schedule made with eta=...; this one is DDPM: use sample_ddpm")
    return _sample_sequential(denoise, schedule, noise, generator, inpaint)


@torch.no_grad()
def sample_speculative(
    denoise: Denoise,
    schedule: Schedule,
    noise: Noise | Tensor,
    *,
    generator: Generator = None,
    drafter: Drafter | None = None,
    verifier: Verifier = verify_steps,
    window: WindowSize = DEFAULT_WINDOW,
    warm_start: Tensor | None = None,
    draft: Denoise | None = None,
    inpaint: Inpainting | None = None,
) -> Sample:
    """The same law as `sample_ddpm` (or `sample_ddim` with eta > 0), in few sequential calls.

    A round drafts the states of a window, evaluates them in one batched call, and verifies them; it commits the
    accepted steps and one more. Chains of a batch advance independently, each at its own step.

    Args:
        drafter: how x0 is drafted; default `Picard()`.
        verifier: `verify_steps` or `verify_block`.
        window: rows a round evaluates per chain: a number, (K,) numbers by the step the round starts at, or "all".
        warm_start: (B, Tp, Da) x0 to draft the first round with, such as the previous plan shifted by the executed
            steps; rows of NaN have none. Whatever it is, as long as it does not depend on `noise`, it moves the cost
            only, not the law.
        draft: a draft network, called like `denoise`, that returns x0: for drafters that use one.
        inpaint: coordinates that are known; the others are sampled, see `Inpainting`.

    Raises:
        ScheduleError: a step before the last has no noise (DDIM with eta = 0): nothing to couple.
        ValueError: shapes or window do not fit, or a draft network is missing.
    """
    noise = prepare_noise(noise, schedule, generator, inpaint)
    check_speculative(schedule)
    (B, *chunk), K, device = noise.start.shape, schedule.num_steps, noise.start.device
    tables, sizes = schedule.on(device), window_sizes(window, K, device)
    recorder = Recorder(denoise, schedule, tuple(noise.start.shape), device, inpaint=inpaint, draft=draft)
    known = None if inpaint is None else inpaint.mask.flatten(1)
    table = NoiseTable(noise, generator, known)
    x = noise.start.reshape(B, -1).clone()
    prior = _prior(warm_start, noise.start, inpaint)
    running = (drafter or Picard()).start(tables, prior, None if draft is None else recorder.draft_x0)

    k = torch.zeros(B, dtype=torch.long, device=device)
    active = torch.arange(B, device=device)
    while active.numel():
        at = k[active]
        w = make_window(active, at, running.sizes(active, sizes[at]), K)
        rows, steps = active[:, None], w.steps
        xi, u = table.xi[rows, steps], table.u[rows, steps]
        drafted = running.draft(w, x[active], xi)
        if known is not None:  # a gain spreads what it moves over all coordinates: a test must not see those given
            pinned = known[active].unsqueeze(1)
            drafted = Draft(m=drafted.m.masked_fill(pinned, 0.0), x=drafted.x.masked_fill(pinned, 0.0))
        if w.full:
            n = steps.shape[1]
            m = recorder.predict_x0(drafted.x.flatten(0, 1), steps.flatten(), active.repeat_interleave(n))
            m = m.view(drafted.x.shape)
        else:
            chain = rows.expand_as(steps)
            m = drafted.m.clone()
            m[w.valid] = recorder.predict_x0(drafted.x[w.valid], steps[w.valid], chain[w.valid])
        outcome = verifier(tables, w, drafted, m, xi, u)
        if outcome.spent is not None:
            table.redraw(active, steps, outcome.spent)
        running.observe(w, drafted, m, outcome)
        x[active] = outcome.x
        k[active] = at + outcome.accepted + 1
        recorder.round(active, at, w.sizes, outcome.accepted, outcome.rejected)
        active = active[k[active] < K]
    return Sample(x0=show(x.view(B, *chunk), inpaint), stats=recorder.stats())


def check_speculative(schedule: Schedule) -> None:
    """Raise ScheduleError if the chain has steps that speculation cannot couple."""
    if bool((schedule.sigma[:-1] <= 0).any()):
        raise ScheduleError(
            "speculation is exact only where every step but the last adds noise; this schedule has deterministic "
            "steps (DDIM with eta = 0): use sample_ddim, or eta > 0"
        )


def _sample_sequential(
    denoise: Denoise, schedule: Schedule, noise: Noise | Tensor, generator: Generator, inpaint: Inpainting | None
) -> Sample:
    noise = prepare_noise(noise, schedule, generator, inpaint)
    shape, device = noise.start.shape, noise.start.device
    tables = schedule.on(device)
    recorder = Recorder(denoise, schedule, tuple(shape), device, inpaint=inpaint)
    x, chain = noise.start.reshape(shape[0], -1), torch.arange(shape[0], device=device)
    one, none = torch.ones_like(chain), torch.zeros_like(chain)
    for step in range(schedule.num_steps):
        k = torch.full_like(chain, step)
        m = recorder.predict_x0(x, k, chain)
        x = tables.A[step] * m + tables.B[step] * x + tables.sigma[step] * noise.steps[step].view_as(x)
        recorder.round(chain, k, one, none, none)
    return Sample(x0=show(x.view(shape), inpaint), stats=recorder.stats(drafts=False))


def prepare_noise(
    noise: Noise | Tensor, schedule: Schedule, generator: Generator, inpaint: Inpainting | None
) -> Noise:
    """The whole noise, drawn where it is missing, checked; 0 at inpainted coordinates."""
    noise = as_noise(noise, schedule, generator)
    if inpaint is None:
        return noise
    inpaint.check(tuple(noise.start.shape))
    return replace(noise, start=inpaint.hide(noise.start), steps=inpaint.hide(noise.steps))


def show(x: Tensor, inpaint: Inpainting | None) -> Tensor:
    """x: (B, Tp, Da) with inpainted coordinates filled in."""
    return x if inpaint is None else inpaint.show(x)


def _prior(warm_start: Tensor | None, start: Tensor, inpaint: Inpainting | None) -> Tensor:
    """(B, D) x0 for the first draft: the warm start, or 0, the middle of the normalised range."""
    if warm_start is None:
        return torch.zeros_like(start).flatten(1)
    if warm_start.shape != start.shape:
        raise ValueError(f"warm_start must have the noise's shape {tuple(start.shape)}, got {tuple(warm_start.shape)}")
    prior = warm_start.to(start).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return (prior if inpaint is None else inpaint.hide(prior)).flatten(1)
