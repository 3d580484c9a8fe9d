"""Inpainting: a masked chain is the sequential sampler with the known coordinates overwritten before every call."""

from __future__ import annotations

import pytest
import torch
from closed_form import assert_same_law, two_modes

from diffpolicy_spec import Nearest, Parent, Picard, SamplerConfig, Schedule, bind, calibrate, draw_noise
from diffpolicy_spec.drafting import Model
from diffpolicy_spec.inpainting import Inpainting
from diffpolicy_spec.sampling import sample_ddim, sample_ddpm, sample_speculative
from diffpolicy_spec.trees import sample_tree
from diffpolicy_spec.verification import VERIFIERS

D, N, REFERENCE = 4, 40_000, 120_000  # sees a KS distance of 0.016
CONFIG = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon",
          "clip_sample": False}  # fmt: skip
TARGET = two_modes(D, seed=2)
DDPM, DDIM = Schedule.from_diffusers(CONFIG, 10), Schedule.from_diffusers(CONFIG, 10, eta=0.7)
DENOISE = TARGET.denoiser(DDPM)  # the timesteps of both chains are the same
MASK = torch.tensor([True, False, True, False]).view(1, D, 1)
VALUES = torch.tensor([0.4, torch.nan, -0.2, torch.nan]).view(1, D, 1)
GAINS = calibrate(DENOISE, DDPM, (512, D, 1), generator=torch.Generator().manual_seed(2))

DRAFTERS = {
    "parent": Parent(), "drift": Nearest("drift"), "nearest": Nearest(), "model": Model(),
    "secant": Picard(memory=3), "gain": Picard(memory=1, gains=GAINS), "corrector": Picard(memory=1, corrector=True),
}  # fmt: skip


def known(batch: int) -> Inpainting:
    return Inpainting(MASK.expand(batch, -1, -1), VALUES.expand(batch, -1, -1))


def noise_of(batch: int, seed: int, schedule: Schedule = DDPM):
    return draw_noise((batch, D, 1), schedule, torch.Generator().manual_seed(seed))


def draft(x, t, chain):
    return 0.5 * x.tanh()


def overwrite_every_step(denoise, schedule: Schedule, noise, inpaint: Inpainting) -> torch.Tensor:
    """Written out: pin, call, step; and pin the result."""
    x, chain = noise.start, torch.arange(len(noise.start))
    for k in range(schedule.num_steps):
        x = torch.where(inpaint.mask, inpaint.values, x)
        step = torch.full_like(chain, k)
        m = schedule.predict_x0(denoise(x, schedule.timesteps[step], chain), x, step)
        x = schedule.A[k].float() * m + schedule.B[k].float() * x + schedule.sigma[k].float() * noise.steps[k]
    return torch.where(inpaint.mask, inpaint.values, x)


@pytest.mark.parametrize(("schedule", "sampler"), [(DDPM, sample_ddpm), (DDIM, sample_ddim)])
def test_the_sequential_samplers_overwrite_every_step_path_by_path(schedule, sampler):
    noise, inpaint = noise_of(64, 0, schedule), known(64)
    expected = overwrite_every_step(DENOISE, schedule, noise, inpaint)
    torch.testing.assert_close(sampler(DENOISE, schedule, noise, inpaint=inpaint).x0, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    return overwrite_every_step(DENOISE, DDPM, noise_of(REFERENCE, 1), known(REFERENCE))[:, [1, 3], 0]


def assert_inpainted_law(x0: torch.Tensor, reference: torch.Tensor) -> None:
    inpaint = known(len(x0))
    assert torch.equal(x0[inpaint.mask], inpaint.values[inpaint.mask])
    assert_same_law(x0[:, [1, 3], 0], reference)


@pytest.mark.parametrize(("drafter", "verifier"), [
    ("parent", "steps"), ("drift", "block"), ("nearest", "block"), ("model", "steps"), ("secant", "block"),
    ("gain", "steps"), ("gain", "block"), ("corrector", "block"),
])  # fmt: skip
def test_speculation_keeps_the_law_of_overwriting(drafter: str, verifier: str, reference):
    generator = torch.Generator().manual_seed(9)
    sample = sample_speculative(DENOISE, DDPM, noise_of(N, 7), generator=generator, drafter=DRAFTERS[drafter],
                                verifier=VERIFIERS[verifier], window=8, draft=draft, inpaint=known(N))  # fmt: skip
    assert float(sample.stats.calls.double().mean()) < 10
    assert_inpainted_law(sample.x0, reference)


def test_a_tree_keeps_the_law_of_overwriting(reference):
    generator = torch.Generator().manual_seed(9)
    sample = sample_tree(DENOISE, DDPM, noise_of(N, 8), generator=generator, children=2, depth=3, inpaint=known(N))
    assert_inpainted_law(sample.x0, reference)


def test_forgetting_the_mask_is_caught(reference):
    """The battery sees the difference between inpainting and pasting the values in at the end."""
    x0 = sample_ddpm(DENOISE, DDPM, noise_of(N, 7)).x0
    with pytest.raises(AssertionError, match="KS distance"):
        assert_inpainted_law(torch.where(MASK, VALUES, x0), reference)


@pytest.mark.parametrize("sampler", [
    *[SamplerConfig(options={"drafter": d, "verifier": v, "window": 6}) for d in ("nearest", "drift", "picard", "model")
      for v in VERIFIERS],
    SamplerConfig(options={"drafter": "picard", "gain": True, "window": 6}),
    SamplerConfig("tree", options={"children": 2, "depth": 3}), SamplerConfig("ddpm"), SamplerConfig("paradigms"),
], ids=lambda c: f"{c.method} {'-'.join(map(str, c.options.values()))}")  # fmt: skip
def test_values_that_the_network_ignores_change_nothing(sampler):
    """They do not enter v: no acceptance, no count and no free coordinate moves, whatever is pinned, noised or not."""
    def blind(x, t, chain):
        return DENOISE(torch.where(MASK, 0.0, x), t, chain)

    bound = bind(SamplerConfig(sampler.method, 10, options=sampler.options), CONFIG, GAINS.state_dict(), has_draft=True)
    runs = []
    for shift in (0.0, 1.0, 50.0):
        noise = noise_of(32, 3)
        noise.start[MASK.expand(32, -1, -1)] += shift
        inpaint = Inpainting(MASK.expand(32, -1, -1), torch.full((32, D, 1), shift))
        sample = bound(blind, noise, generator=torch.Generator().manual_seed(4), inpaint=inpaint,
                       draft=lambda x, t, c: 0.5 * torch.where(MASK, 0.0, x).tanh())  # fmt: skip
        assert bool((sample.x0[:, [0, 2]] == shift).all())
        runs.append((sample.x0[:, [1, 3]], sample.stats.calls, sample.stats.accepted_at))
    for run in runs[1:]:
        for ours, theirs in zip(run, runs[0], strict=True):
            assert torch.equal(ours, theirs)


def test_networks_see_the_known_values_at_every_call():
    seen = []

    def watch(x, t, chain):
        seen.append(x[:, [0, 2], 0])
        return DENOISE(x, t, chain)

    def watch_draft(x, t, chain):
        seen.append(x[:, [0, 2], 0])
        return draft(x, t, chain)

    for verifier in VERIFIERS.values():
        for drafter in DRAFTERS.values():
            sample_speculative(watch, DDPM, noise_of(5, 0), drafter=drafter, verifier=verifier, draft=watch_draft,
                               window=6, inpaint=known(5))  # fmt: skip
    sample_tree(watch, DDPM, noise_of(5, 0), inpaint=known(5))
    assert torch.equal(torch.cat(seen), VALUES[0, [0, 2], 0].expand(len(torch.cat(seen)), -1))


def test_chains_may_know_different_coordinates():
    """A chain with nothing known is the plain sampler's, one with everything known costs no rejection."""
    mask = torch.zeros(3, D, 1, dtype=torch.bool)
    mask[1], mask[2, 0] = True, True
    values = torch.full((3, D, 1), 0.3)
    noise = noise_of(3, 5)
    ours = sample_speculative(DENOISE, DDPM, noise, inpaint=Inpainting(mask, values))
    plain = sample_speculative(DENOISE, DDPM, noise)
    torch.testing.assert_close(ours.x0[0], plain.x0[0])
    assert torch.equal(ours.x0[1], values[1])
    assert int(ours.stats.rejected[1]) == 0
    assert float(ours.x0[2, 0]) == pytest.approx(0.3)


@pytest.mark.parametrize(("change", "message"), [
    ({"mask": MASK.float().expand(2, -1, -1)}, "mask must be bool, got torch.float32"),
    ({"mask": MASK}, r"must have the noise's shape \(2, 4, 1\), got \(1, 4, 1\)"),
    ({"values": torch.zeros(2, 3, 1)}, r"must have the noise's shape \(2, 4, 1\)"),
    ({"values": torch.full((2, 4, 1), torch.nan)}, "NaN or infinite"),
    ({"values": torch.full((2, 4, 1), torch.inf)}, "NaN or infinite"),
])  # fmt: skip
@pytest.mark.parametrize("method", ["ddpm", "ddim", "paradigms", "tree", "speculative"])
def test_what_does_not_fit_is_refused_by_every_method(method: str, change, message: str):
    inpaint = Inpainting(**{"mask": known(2).mask, "values": known(2).values} | change)
    sampler = bind(SamplerConfig(method, 10), CONFIG)
    with pytest.raises(ValueError, match=message):
        sampler(DENOISE, noise_of(2, 0), inpaint=inpaint)
