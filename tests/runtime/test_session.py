"""Rounds of fixed shapes against the loop: the same noise gives the same samples, whatever is padded and re-used."""

from __future__ import annotations

import pytest
import torch
from closed_form import two_modes

from diffpolicy_spec import Inpainting, Noise, SamplerConfig, bind, draw_noise
from diffpolicy_spec.runtime import RuntimeConfig, Session

CONFIG = {"num_train_timesteps": 40, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
TARGET = two_modes(6)
DEVICE = torch.device("cpu")
SAMPLERS = {
    "ddpm": SamplerConfig("ddpm"),
    "ddim": SamplerConfig("ddim", 10),
    "paradigms": SamplerConfig("paradigms", options={"window": 12}),
    "tree": SamplerConfig("tree", options={"children": [2, 1, 1], "depth": 3}),
    "parent": SamplerConfig(options={"drafter": "parent", "window": 12}),
    "nearest": SamplerConfig(options={"drafter": "nearest", "window": "all"}),
    "drift": SamplerConfig(options={"drafter": "drift_nearest", "window": 12}),
    "model": SamplerConfig(options={"drafter": "model", "window": 6}),
    "picard": SamplerConfig(options={"drafter": "picard", "corrector": False, "memory": 2, "window": 12}),
    "corrector": SamplerConfig(options={"drafter": "picard", "corrector": True, "window": 20}),
}


def small(x, t, chain):
    return 0.5 * x.tanh()


def made(config: SamplerConfig, batch: int, rounds: int = 1, **options) -> tuple:
    sampler = bind(config, CONFIG, has_draft=True)
    draft = small if sampler.uses_draft else None
    session = Session(sampler.chains, TARGET.denoiser(sampler.schedule), sampler.schedule, (batch, 6, 1), DEVICE,
                      draft=draft, config=RuntimeConfig("static", rounds), **options)  # fmt: skip
    return sampler, session


def noise_of(sampler, batch: int, seed: int = 0) -> Noise:
    return draw_noise((batch, 6, 1), sampler.schedule, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("batch", "rounds"), [(1, 1), (5, 1), (1, 4), (5, 30)])
def test_the_same_noise_gives_the_same_samples(name: str, batch: int, rounds: int):
    """Chunk after chunk in one session, with fewer chains than it has room for, and several rounds at once."""
    sampler, session = made(SAMPLERS[name], 8 if batch > 1 else 1, rounds)
    denoise = TARGET.denoiser(sampler.schedule)
    for seed in range(3):
        noise, plan = noise_of(sampler, batch, seed), 0.3 * torch.ones(batch, 6, 1)
        generators = [[torch.Generator().manual_seed(seed + i) for i in range(batch)] for _ in range(2)]
        expected = sampler(denoise, noise, generator=generators[0], warm_start=plan, draft=small)
        ours = session(noise, generator=generators[1], warm_start=sampler.warm(plan))
        torch.testing.assert_close(ours.x0, expected.x0, atol=2e-4, rtol=2e-4)
        fields = ["calls", "evaluations", "accepted", "rejected", "tested_at", "accepted_lengths"]
        # A model drafts every row of the width, also those that are padding.
        for field in fields + ["draft_calls"] * (name != "model"):
            assert torch.equal(getattr(ours.stats, field), getattr(expected.stats, field)), field


def test_block_verification_draws_what_its_own_generators_draw():
    config = SamplerConfig(options={"drafter": "nearest", "verifier": "block", "window": 12})
    sampler, session = made(config, 4)
    noise = noise_of(sampler, 3)
    pairs = [[torch.Generator().manual_seed(i) for i in range(3)] for _ in range(2)]
    expected = sampler(TARGET.denoiser(sampler.schedule), noise, generator=pairs[0])
    ours = session(noise, generator=pairs[1])
    torch.testing.assert_close(ours.x0, expected.x0, atol=2e-4, rtol=2e-4)
    assert torch.equal(ours.stats.calls, expected.stats.calls)


@pytest.mark.parametrize("name", ["ddpm", "nearest", "tree", "corrector"])
def test_known_coordinates_may_change_from_chunk_to_chunk(name: str):
    mask = torch.zeros(2, 6, 1, dtype=torch.bool)
    mask[:, 0] = True
    given = [Inpainting(mask, torch.full((2, 6, 1), value)) for value in (0.2, -0.4)]
    sampler, session = made(SAMPLERS[name], 2, inpaint=given[0])
    for seed, inpaint in enumerate(given):
        whole = noise_of(sampler, 2, seed)
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        expected = sampler(TARGET.denoiser(sampler.schedule), whole, generator=generators[0], draft=small,
                           inpaint=inpaint)  # fmt: skip
        hidden = Noise(inpaint.hide(whole.start), inpaint.hide(whole.steps), whole.uniforms)
        ours = session(hidden, generator=generators[1], inpaint=inpaint)
        assert torch.equal(ours.x0[:, 0], inpaint.values[:, 0])
        if name != "tree":  # what a tree draws depends on the order of draws
            torch.testing.assert_close(ours.x0, expected.x0, atol=2e-4, rtol=2e-4)
