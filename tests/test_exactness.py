"""Exactness: every drafter, window and batch against the sequential sampler and, where there is one, the analytic law.

`closed_form.ALPHA` states the false-alarm rate. Wrong samplers must fail the same battery.
"""

from __future__ import annotations

import functools
import zlib

import pytest
import torch
from closed_form import Mixture, assert_normal, assert_same_law, gaussian, two_modes

from diffpolicy_spec import (
    Nearest,
    Noise,
    Parent,
    Picard,
    Schedule,
    calibrate,
    draw_noise,
    sample_ddim,
    sample_ddpm,
    sample_speculative,
)

N, REFERENCE = 100_000, 400_000
BATCH = 25_000

# name: target, K, changes of the scheduler config, eta
TARGETS = {
    "gaussian D=1 K=5": (gaussian(1), 5, {}, None),
    "anisotropic D=8 K=10": (gaussian(8, stretch=1.5), 10, {}, None),
    "two modes D=2 K=20": (two_modes(2), 20, {}, None),
    "two modes D=32 K=8": (two_modes(32), 8, {"prediction_type": "epsilon"}, None),
    "clipped D=2 K=16": (two_modes(2, seed=3), 16, {"clip_sample": True, "clip_sample_range": 0.4}, None),
    "fixed_large, noisy last step D=3 K=9": (
        two_modes(3), 9, {"variance_type": "fixed_large", "timestep_spacing": "trailing",
                          "prediction_type": "v_prediction"}, None),
    "ddim eta=0.6 D=2 K=10": (two_modes(2, seed=5), 10, {}, 0.6),
}  # fmt: skip


def schedule_of(name: str) -> Schedule:
    _, K, changes, eta = TARGETS[name]
    config = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample",
              "clip_sample": False}  # fmt: skip
    return Schedule.from_diffusers(config | changes, K, eta=eta)


def run(name: str, sampler, n: int, seed: int) -> torch.Tensor:
    """n samples (n, D) in batches; seeds derive from `seed` and differ between cases."""
    target, schedule = TARGETS[name][0], schedule_of(name)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for begin in range(0, n, BATCH):
        b = min(BATCH, n - begin)
        noise = draw_noise((b, target.dim, 1), schedule, generator)
        parts.append(sampler(target.denoiser(schedule), schedule, noise).x0.flatten(1))
    return torch.cat(parts)


@functools.cache
def reference(name: str) -> torch.Tensor:
    sampler = sample_ddpm if TARGETS[name][3] is None else sample_ddim
    return run(name, sampler, REFERENCE, seed=1)


@functools.cache
def gains(name: str):
    target, schedule = TARGETS[name][0], schedule_of(name)
    return calibrate(target.denoiser(schedule), schedule, (512, target.dim, 1),
                     generator=torch.Generator().manual_seed(2))  # fmt: skip


def drafter_of(kind: str, name: str):
    return {
        "parent": Parent,
        "nearest": Nearest,
        "picard": lambda: Picard(memory=0),
        "secant": lambda: Picard(memory=3),
        "gain": lambda: Picard(memory=1, gains=gains(name)),
        "gain, one sweep": lambda: Picard(memory=0, gains=gains(name), sweeps=1),
        "warm start": lambda: Picard(memory=1, gains=gains(name)),
    }[kind]()


def speculate(kind: str, name: str, window: int):
    """A sampler of the battery's form."""

    def sampler(denoise, schedule, noise):
        warm = None
        if kind == "warm start":  # any plan that does not know the noise, missing for half of the chains
            warm = torch.full_like(noise.start, 0.3)
            warm[::2] = torch.nan
        return sample_speculative(denoise, schedule, noise, drafter=drafter_of(kind, name), window=window,
                                  warm_start=warm)  # fmt: skip

    return sampler


KINDS = ("parent", "nearest", "picard", "secant", "gain", "gain, one sweep", "warm start")


def cases():
    """Windows 1, 4, 16 and K; a window of one row drafts nothing, so one drafter stands for all there."""
    for name, (_, K, _, _) in TARGETS.items():
        yield name, "secant", 1
        for kind in KINDS:
            for window in sorted({4, min(16, K), K}):
                yield name, kind, window


@pytest.mark.parametrize(("name", "kind", "window"), list(cases()))
def test_speculation_keeps_the_law(name: str, kind: str, window: int):
    seed = zlib.crc32(f"{name}{kind}{window}".encode())
    samples = run(name, speculate(kind, name, window), N, seed)
    assert_same_law(samples, reference(name), TARGETS[name][0])
    if name in ("gaussian D=1 K=5", "anisotropic D=8 K=10"):
        assert_normal(samples, *TARGETS[name][0].chain_law(schedule_of(name)))


def test_a_full_length_chain_keeps_the_law():
    """K = 100, D = 2, the widest window."""
    name = "two modes D=2 K=100"
    TARGETS[name] = (two_modes(2, seed=8), 100, {}, None)
    expected = run(name, sample_ddpm, N, seed=3)
    assert_same_law(run(name, speculate("gain", name, 100), N // 4, seed=4), expected, TARGETS[name][0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [16, 100])
def test_long_chains_of_many_dimensions_keep_the_law(kind: str, window: int, monkeypatch):
    name = "two modes D=32 K=100"
    TARGETS[name] = (two_modes(32, seed=8), 100, {}, None)
    monkeypatch.setattr("test_exactness.BATCH", 2_000)
    expected = slow_reference(name)
    seed = zlib.crc32(f"{kind}{window}".encode())
    assert_same_law(run(name, speculate(kind, name, window), 40_000, seed), expected, TARGETS[name][0])


@functools.cache
def slow_reference(name: str) -> torch.Tensor:
    return run(name, sample_ddpm, 100_000, seed=5)


def test_the_sequential_sampler_has_the_analytic_law():
    for name in ("gaussian D=1 K=5", "anisotropic D=8 K=10"):
        assert_normal(reference(name), *TARGETS[name][0].chain_law(schedule_of(name)))


# --- wrong samplers are caught ---


def accepts_too_often(v, xi, u):
    return torch.log1p(-u) <= 0.15 - ((xi + 0.5 * v) * v).sum(-1)


def reflects_fresh_noise_the_wrong_way(v, xi):
    fresh = torch.randn(xi.shape, generator=torch.Generator().manual_seed(9))
    e = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp(min=1e-30)
    return fresh + (e * fresh).sum(-1, keepdim=True).abs() * e


class SeesItsOwnNoise(Nearest):
    """A draft of x0 that leans towards where the step's own noise goes."""

    def start(self, tables, prior, small):
        running = super().start(tables, prior, small)
        honest = running.draft

        def draft(window, x, xi):
            out = honest(window, x, xi)
            return type(out)(m=out.m + 0.3 * xi, x=out.x + 0.0)

        running.draft = draft
        return running


def test_wrong_samplers_are_caught(monkeypatch):
    name = "two modes D=2 K=20"

    def fails(sampler):
        with pytest.raises(AssertionError, match=r"KS distance|mode weights"):
            assert_same_law(run(name, sampler, N, seed=6), reference(name), TARGETS[name][0])

    with monkeypatch.context() as patch:
        patch.setattr("diffpolicy_spec.verification.accept_reflection", accepts_too_often)
        fails(speculate("nearest", name, 16))
    with monkeypatch.context() as patch:
        patch.setattr("diffpolicy_spec.verification.reflect", reflects_fresh_noise_the_wrong_way)
        fails(speculate("nearest", name, 16))
    fails(lambda d, s, z: sample_speculative(d, s, z, drafter=SeesItsOwnNoise(), window=4))
    # and the same battery passes what is right
    assert_same_law(run(name, speculate("nearest", name, 16), N, seed=6), reference(name), TARGETS[name][0])


# --- batches, replays, bounds ---


@pytest.mark.parametrize("kind", KINDS)
def test_one_chain_alone_is_that_chain_in_a_batch(kind: str):
    """Batched equals unbatched path by path: a chain is a function of its own noise."""
    name = "two modes D=2 K=20"
    target, schedule = TARGETS[name][0], schedule_of(name)
    noise = draw_noise((64, 2, 1), schedule, torch.Generator().manual_seed(12))
    denoise = target.denoiser(schedule)
    options = {"drafter": drafter_of(kind, name), "window": 6}
    batched = sample_speculative(denoise, schedule, noise, **options)
    same = 0
    for i in range(64):
        one = Noise(noise.start[i : i + 1], noise.steps[:, i : i + 1], noise.uniforms[:, i : i + 1])
        alone = sample_speculative(denoise, schedule, one, **options)
        same += torch.allclose(alone.x0[0], batched.x0[i], atol=1e-4)
        assert alone.stats.calls[0] <= schedule.num_steps
    assert same >= 63  # the last bits of a batch may turn one acceptance in thousands


def test_denoise_is_told_which_chain_a_row_belongs_to():
    name = "two modes D=2 K=20"
    target, schedule = TARGETS[name][0], schedule_of(name)
    inner = target.denoiser(schedule)
    shifts = torch.linspace(-1, 1, 32)[:, None, None]

    def denoise(x, t, chain):  # each chain has a target of its own, moved by its shift
        root = schedule.abar[[schedule.timesteps.tolist().index(s) for s in t.tolist()]].sqrt().float().view(-1, 1, 1)
        return inner(x - root * shifts[chain], t, chain) + shifts[chain]

    x0 = sample_speculative(denoise, schedule, torch.randn(32, 2, 1), drafter=Picard(), window=7).x0
    residual = (x0 - shifts).flatten(1)
    assert float(residual.norm(dim=1).max()) < 2.0
    assert float((x0.mean(1).flatten() - shifts.flatten()).abs().mean()) < 0.6


@pytest.mark.parametrize("kind", ["nearest", "parent", "picard"])
@pytest.mark.parametrize("window", [1, 5, 20])
def test_perfect_drafts_reproduce_the_sequential_sample_bit_for_bit(kind: str, window: int):
    """x0 depends on the step only: a draft that has seen it is perfect, and nothing is rejected once it has."""
    schedule = schedule_of("two modes D=2 K=20")
    point = torch.tensor([0.25, -0.5])[:, None]

    def denoise(x, t, chain):
        return point.expand_as(x)

    noise = draw_noise((8, 2, 1), schedule, torch.Generator().manual_seed(3))
    sequential = sample_ddpm(denoise, schedule, noise)
    warm = point.expand(8, 2, 1)
    ours = sample_speculative(denoise, schedule, noise, drafter=drafter_of(kind, ""), window=window, warm_start=warm)
    assert torch.equal(ours.x0, sequential.x0)
    assert int(ours.stats.rejected.sum()) == 0
    best = -(-schedule.num_steps // window)
    assert int(ours.stats.calls.max()) <= best + (1 if kind == "parent" and window > 1 else 0)


def test_a_replay_of_the_sequential_chain_is_accepted_whole():
    """Drafting what the network said on the same noise reproduces a noisy sequential chain to rounding."""
    name = "fixed_large, noisy last step D=3 K=9"
    target, schedule = TARGETS[name][0], schedule_of(name)
    denoise, said = target.denoiser(schedule), []
    noise = draw_noise((16, 3, 1), schedule, torch.Generator().manual_seed(4))

    def listen(x, t, chain):
        out = denoise(x, t, chain)
        k = int((schedule.timesteps == int(t[0])).nonzero())
        said.append(schedule.predict_x0(out, x, torch.full_like(t, k)).flatten(1))
        return out

    sequential = sample_ddpm(listen, schedule, noise)

    class Replay(Picard):
        def start(self, tables, prior, small):
            running = super().start(tables, prior, small)
            running._seen[:, :, 0, 1] = torch.stack(said, dim=1)
            return running

    ours = sample_speculative(denoise, schedule, noise, drafter=Replay(memory=0), window=schedule.num_steps)
    torch.testing.assert_close(ours.x0, sequential.x0, atol=1e-5, rtol=1e-4)
    assert int(ours.stats.calls.max()) == 1


def test_exact_gains_draft_a_gaussian_in_one_call():
    """For a Gaussian x0hat is linear in x: with its slope as gain the prior plan is a perfect draft."""
    target = Mixture(torch.ones(1, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64),
                     gaussian(4, stretch=1.0).covs)  # fmt: skip
    schedule = schedule_of("two modes D=2 K=20")
    gains = calibrate(target.denoiser(schedule), schedule, (256, 4, 1), ridge=1e-6)
    options = {"drafter": Picard(memory=0, gains=gains, sweeps=20), "window": 20}
    stats = sample_speculative(target.denoiser(schedule), schedule, torch.randn(200, 4, 1), **options).stats
    assert float(stats.calls.double().mean()) < 1.2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [1, 3, 20])
def test_the_books_balance(kind: str, window: int):
    name = "two modes D=2 K=20"
    target, schedule = TARGETS[name][0], schedule_of(name)
    K, rows = schedule.num_steps, 0

    def denoise(x, t, chain):
        nonlocal rows
        rows += len(x)
        return target.denoiser(schedule)(x, t, chain)

    drafter = drafter_of(kind, name)
    s = sample_speculative(denoise, schedule, torch.randn(50, 2, 1), drafter=drafter, window=window).stats
    assert int(s.calls.max()) <= K
    assert int(s.evaluations.sum()) == rows
    assert torch.equal(s.drafted, s.evaluations - s.calls)
    assert torch.equal(s.accepted + s.calls, torch.full_like(s.calls, K))  # every round commits accepted + 1
    assert bool((s.rejected <= s.calls).all())
    assert torch.equal(s.accepted_lengths.sum(1), s.calls)
    assert torch.equal(s.accepted_at.sum(1), s.accepted)
    assert torch.equal(s.tested_at.sum(1), s.accepted + s.rejected)
    assert bool((s.accepted_at <= s.tested_at).all())
    assert bool((s.tested_at <= 1).all())  # a step is decided once
    waste = s.rejection_waste
    assert bool(((waste >= 0) & (waste < 1)).all())
