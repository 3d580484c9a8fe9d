"""The diffusers-facing loop: diffusers' own chunk step by step, the closed-form law when it speculates."""

from __future__ import annotations

import pytest
import torch
from closed_form import assert_normal, assert_same_law, gaussian, two_modes
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import nn

import diffpolicy_spec as dps

SETTINGS = [
    {}, {"prediction_type": "sample"}, {"prediction_type": "v_prediction"}, {"variance_type": "fixed_large"},
    {"clip_sample_range": 0.5}, {"clip_sample": False, "thresholding": True}, {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"}, {"beta_schedule": "linear", "beta_end": 0.1},
]  # fmt: skip


def ddpm(n: int = 20, **settings):
    return DDPMScheduler(**{"num_train_timesteps": n, "beta_schedule": "squaredcos_cap_v2", **settings})


def network(seed: int = 0):
    """A small conditional network of one's own: (x, t, condition) -> (N, 4, 2)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(8 + 1 + 3, 32), nn.Mish(), nn.Linear(32, 8))

    def call(x, t, condition):
        inputs = torch.cat([x.flatten(1), t[:, None] / 20, condition], dim=1)
        return net(inputs).view_as(x)

    return call


def diffusers_loop(scheduler, call, condition, steps: int, generator, **options):
    """As people write it."""
    x = torch.randn((len(condition), 4, 2), generator=generator)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = call(x, t.expand(len(x)), condition)
            x = scheduler.step(out, t, x, generator=generator, **options).prev_sample
    return x


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("steps", [20, 7])
def test_step_by_step_it_is_diffusers_loop(settings, steps: int):
    call, condition = network(), torch.randn(3, 3)
    own = diffusers_loop(ddpm(**settings), call, condition, steps, torch.Generator().manual_seed(4))
    loop = dps.DenoisingLoop(ddpm(**settings), "ddpm", num_inference_steps=steps)
    ours = loop(lambda x, t, c: call(x, t, condition[c]), (3, 4, 2), generator=torch.Generator().manual_seed(4))
    assert float((ours - own).abs().max()) < 1e-5 * max(1.0, float(own.abs().max()))
    assert loop.last_sample_stats.calls.tolist() == [steps] * 3
    assert len(loop.timesteps) == steps


def test_ddim_with_noise_step_by_step():
    scheduler, call, condition = DDIMScheduler(20), network(), torch.randn(3, 3)
    own = diffusers_loop(scheduler, call, condition, 10, torch.Generator().manual_seed(4), eta=0.6)
    loop = dps.DenoisingLoop(scheduler, "ddim", step_options={"eta": 0.6})
    ours = loop(lambda x, t, c: call(x, t, condition[c]), (3, 4, 2), generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-5)
    with pytest.raises(dps.AccelerateError, match="nothing random"):
        dps.DenoisingLoop(scheduler)


# Closed-form targets; `closed_form.ALPHA`, 1e-6 a comparison and at most 9 of them in a test: the chance of a false
# alarm in these tests is below 3e-5.
N = 20_000


def test_speculating_it_draws_the_closed_form_law():
    scheduler = ddpm(100, clip_sample=False, prediction_type="epsilon")
    scheduler.set_timesteps(10)
    target, schedule = gaussian(3, stretch=1.0), dps.Schedule.from_diffusers(scheduler, 10)
    loop = dps.DenoisingLoop(scheduler)
    drawn = loop(target.denoiser(schedule), (N, 3, 1), generator=torch.Generator().manual_seed(0))
    assert_normal(drawn.flatten(1), *target.chain_law(schedule))
    assert loop.last_sample_stats.num_steps == 10, "what set_timesteps was called with"
    assert float(loop.last_sample_stats.calls.double().mean()) < 8


def test_speculating_it_draws_the_law_of_two_modes():
    scheduler = ddpm(12, prediction_type="sample")
    target, schedule = two_modes(2, seed=1), dps.Schedule.from_diffusers(scheduler, 12)
    denoise, shape = target.denoiser(schedule), (N, 2, 1)
    drawn = dps.DenoisingLoop(scheduler)(denoise, shape, generator=torch.Generator().manual_seed(1))
    sequential = dps.DenoisingLoop(scheduler, "ddpm")(denoise, shape, generator=torch.Generator().manual_seed(2))
    assert_same_law(drawn.flatten(1), sequential.flatten(1), target)


def test_a_law_that_is_a_little_off_is_seen():
    scheduler = ddpm(12, prediction_type="sample")
    target, schedule = two_modes(2, seed=1), dps.Schedule.from_diffusers(scheduler, 12)
    denoise, shape = target.denoiser(schedule), (N, 2, 1)
    drawn = dps.DenoisingLoop(scheduler)(lambda x, t, c: 1.03 * denoise(x, t, c), shape)
    sequential = dps.DenoisingLoop(scheduler, "ddpm")(denoise, shape, generator=torch.Generator().manual_seed(2))
    with pytest.raises(AssertionError):
        assert_same_law(drawn.flatten(1), sequential.flatten(1), target)


def test_chains_have_their_own_conditions():
    call, condition = network(), torch.randn(4, 3)
    loop = dps.DenoisingLoop(ddpm(), dps.SamplerConfig("speculative", options={"window": 8}))
    noise = torch.randn(4, 4, 2, dtype=torch.float64)
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    together = loop(lambda x, t, c: call(x, t, condition[c]), noise, generator=generators)
    assert together.dtype == torch.float64
    one = [torch.Generator().manual_seed(2)]
    alone = loop(lambda x, t, c: call(x, t, condition[2:3][c]), noise[2:3], generator=one)
    torch.testing.assert_close(alone, together[2:3], atol=1e-5, rtol=1e-5)


def test_inpainting_and_warm_starts():
    call, condition = network(), torch.randn(1, 3)
    mask = torch.zeros(1, 4, 2, dtype=torch.bool)
    mask[:, 0] = True
    known = dps.Inpainting(mask, torch.full((1, 4, 2), 0.25))
    drawn = dps.DenoisingLoop(ddpm())(
        lambda x, t, c: call(x, t, condition[c]), (1, 4, 2), inpaint=known, warm_start=torch.zeros(1, 4, 2)
    )
    assert (drawn[:, 0] == 0.25).all()


def test_gains_for_other_chunks_are_an_error():
    gains = dps.Gains(torch.zeros(20, 5, 5), torch.arange(20).flip(0)).state_dict()
    loop = dps.DenoisingLoop(ddpm(), speculation=gains)
    with pytest.raises(ValueError, match="gains were fitted for D = 5"):
        loop(lambda x, t, c: torch.zeros_like(x), (1, 4, 2))


def test_what_cannot_be_is_said():
    with pytest.raises(dps.AccelerateError, match="DPMSolverMultistepScheduler"):
        dps.DenoisingLoop(DPMSolverMultistepScheduler())
    with pytest.raises(dps.AccelerateError, match="variance_type"):
        dps.DenoisingLoop(ddpm(variance_type="learned"))
    with pytest.raises(dps.AccelerateError, match="predict_epsilon=True"):
        dps.DenoisingLoop(ddpm(), step_options={"predict_epsilon": True})
    with pytest.raises(ValueError, match="unknown sampling method 'fast'"):
        dps.DenoisingLoop(ddpm(), "fast")
    with pytest.raises(dps.ScheduleError, match="num_inference_steps"):
        dps.DenoisingLoop(ddpm(), num_inference_steps=21)
    with pytest.raises(ValueError, match=r"\(B, Tp, Da\)"):
        dps.DenoisingLoop(ddpm())(lambda x, t, c: x, (4, 2))


def test_the_ten_lines_of_the_page():
    """docs/accelerate.md shows this policy."""

    class MyPolicy:
        def __init__(self, net, scheduler):
            self.net, self.loop = net, dps.DenoisingLoop(scheduler)

        def plan(self, cond):
            return self.loop(lambda x, t, chain: self.net(x, t, cond[chain]), (len(cond), 4, 2))

    policy = MyPolicy(network(), ddpm())
    assert policy.plan(torch.randn(3, 3)).shape == (3, 4, 2)
    assert policy.loop.last_sample_stats.calls.shape == (3,)
