"""Samplers: plain functions (denoise, schedule, noise, *, options) -> Sample.

`denoise(x, t, chain)` gets rows x: (N, Tp, Da), their timesteps t: (N,) long and chain: (N,) long, which of the B
samples a row belongs to (conditioning is gathered with it), and returns the network's prediction (N, Tp, Da). Rows must
not influence each other: evaluation mode, no batch statistics. `noise` is x_0 ~ N(0, I): (B, Tp, Da), or a whole
`Noise`; what it lacks, and what a verifier has spent, is drawn with `generator`. `inpaint` pins known coordinates.
States are float32 whatever the network runs in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .chains import Chains, run
from .deadline import Deadline
from .drafting import Drafter
from .inpainting import Inpainting
from .networks import Denoise, Networks
from .noise import Generator, Noise, as_noise
from .schedule import Schedule, ScheduleError
from .sequential import Sequential
from .speculation import Speculation
from .stats import Sample
from .verification import Verifier, verify_steps
from .window import DEFAULT_WINDOW, WindowSize

__all__ = ["Denoise", "draw", "prepare_noise", "sample_ddim", "sample_ddpm", "sample_speculative"]


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
    return draw(Sequential, denoise, schedule, noise, generator=generator, inpaint=inpaint)


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
    return draw(Sequential, denoise, schedule, noise, generator=generator, inpaint=inpaint)


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
    return draw(
        lambda networks: Speculation(networks, drafter=drafter, verifier=verifier, window=window), denoise, schedule,
        noise, generator=generator, warm_start=warm_start, draft=draft, inpaint=inpaint,
    )  # fmt: skip


@torch.no_grad()
def draw(
    make: Callable[[Networks], Chains],
    denoise: Denoise,
    schedule: Schedule,
    noise: Noise | Tensor,
    *,
    generator: Generator = None,
    warm_start: Tensor | None = None,
    draft: Denoise | None = None,
    inpaint: Inpainting | None = None,
    deadline: Deadline | None = None,
) -> Sample:
    """Chains of one kind, made, begun with this noise, and run. Arguments as in `sample_speculative` and `run`."""
    noise = prepare_noise(noise, schedule, generator, inpaint)
    (B, Tp, Da), device = noise.start.shape, noise.start.device
    chains = make(Networks(denoise, schedule, (B, Tp, Da), device, draft=draft, inpaint=inpaint))
    chains.begin(noise, generator=generator, warm_start=warm_start, inpaint=inpaint)
    return run(chains, deadline)


def prepare_noise(
    noise: Noise | Tensor, schedule: Schedule, generator: Generator, inpaint: Inpainting | None
) -> Noise:
    """The whole noise, drawn where it is missing, checked; 0 at inpainted coordinates."""
    noise = as_noise(noise, schedule, generator)
    if inpaint is None:
        return noise
    inpaint.check(tuple(noise.start.shape))
    return replace(noise, start=inpaint.hide(noise.start), steps=inpaint.hide(noise.steps))
