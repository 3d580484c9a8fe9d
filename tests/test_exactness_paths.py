"""Exactness path by path: chains alone and in a batch, replays of the sequential chain, bounds and books."""

from __future__ import annotations

import pytest
import torch
from closed_form import Mixture, gaussian
from exactness_cases import CASES, KINDS, TREES, draft_of, drafter_of, schedule_of, speculate, tree

from diffpolicy_spec import Noise, Picard, Schedule, calibrate, draw_noise, sample_ddpm, sample_speculative
from diffpolicy_spec.trees import sample_tree
from diffpolicy_spec.verification import VERIFIERS

NAME = "two modes D=2 K=20"
TARGET, SCHEDULE = CASES[NAME].target, schedule_of(NAME)
DENOISE = TARGET.denoiser(SCHEDULE)


def options_of(kind: str) -> dict:
    return {"drafter": drafter_of(kind, NAME), "draft": draft_of(kind, NAME, SCHEDULE)}


def noise_of(batch: int, seed: int, schedule: Schedule = SCHEDULE) -> Noise:
    return draw_noise((batch, 2, 1), schedule, torch.Generator().manual_seed(seed))


def generators(chains: range) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in chains]


def samplers():
    for kind in KINDS:
        for verifier in VERIFIERS:
            yield pytest.param(speculate_with(kind, verifier), id=f"{kind}, {verifier}")
    for shape, options in TREES.items():
        yield pytest.param(
            lambda start, g, inner=DENOISE, o=options: sample_tree(inner, SCHEDULE, start, generator=g, **o), id=shape
        )


def speculate_with(kind: str, verifier: str, window: int = 6):
    def sampler(start, generator, denoise=DENOISE):
        return sample_speculative(denoise, SCHEDULE, start, generator=generator, verifier=VERIFIERS[verifier],
                                  window=window, **options_of(kind))  # fmt: skip

    return sampler


@pytest.mark.parametrize("sampler", list(samplers()))
def test_one_chain_alone_is_that_chain_in_a_batch(sampler):
    """Path by path: a chain is a function of its own start and generator, redrawn noise and siblings included."""
    n = 24
    start = torch.randn(n, 2, 1, generator=torch.Generator().manual_seed(12))
    batched, same = sampler(start, generators(range(n))), 0
    for i in range(n):
        alone = sampler(start[i : i + 1], generators(range(i, i + 1)))
        same += torch.allclose(alone.x0[0], batched.x0[i], atol=1e-4)
        assert alone.stats.calls[0] <= SCHEDULE.num_steps
    assert same >= n - 1  # the last bits of a batch may turn one acceptance in thousands


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("kind", ["nearest", "picard", "model"])
def test_the_callers_noise_is_left_as_it_was(kind: str, batch: int):
    noise = noise_of(batch, 3)
    before = Noise(noise.start.clone(), noise.steps.clone(), noise.uniforms.clone())
    for verifier in VERIFIERS.values():
        sample_speculative(DENOISE, SCHEDULE, noise, verifier=verifier, window=20, **options_of(kind))
    sample_tree(DENOISE, SCHEDULE, noise)
    for name in ("start", "steps", "uniforms"):
        assert torch.equal(getattr(noise, name), getattr(before, name)), name


def test_blocks_draw_anew_and_steps_do_not():
    """The same given noise, another generator: step verification needs nothing more, block verification does."""
    noise = noise_of(16, 4)

    def draw(verifier, seed):
        return sample_speculative(DENOISE, SCHEDULE, noise, verifier=VERIFIERS[verifier], window=8,
                                  generator=torch.Generator().manual_seed(seed)).x0  # fmt: skip

    assert torch.equal(draw("steps", 0), draw("steps", 1))
    assert torch.equal(draw("block", 0), draw("block", 0))
    assert not torch.equal(draw("block", 0), draw("block", 1))


def test_denoise_is_told_which_chain_a_row_belongs_to():
    shifts = torch.linspace(-1, 1, 32)[:, None, None]

    def denoise(x, t, chain):  # each chain has a target of its own, moved by its shift
        k = [SCHEDULE.timesteps.tolist().index(s) for s in t.tolist()]
        root = SCHEDULE.abar[k].sqrt().float().view(-1, 1, 1)
        return DENOISE(x - root * shifts[chain], t, chain) + shifts[chain]

    start = torch.randn(32, 2, 1)
    for sample in (
        sample_speculative(denoise, SCHEDULE, start, drafter=Picard(), window=7),
        sample_speculative(denoise, SCHEDULE, start, verifier=VERIFIERS["block"], window=7),
        sample_tree(denoise, SCHEDULE, start),
    ):
        residual = (sample.x0 - shifts).flatten(1)
        assert float(residual.norm(dim=1).max()) < 2.0
        assert float((sample.x0.mean(1).flatten() - shifts.flatten()).abs().mean()) < 0.6


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("kind", ["nearest", "parent", "picard", "model", "corrector"])
@pytest.mark.parametrize("window", [1, 5, 20])
def test_perfect_drafts_reproduce_the_sequential_sample_bit_for_bit(kind: str, window: int, verifier: str):
    """x0 depends on the step only: a draft that has seen it is perfect, and nothing is rejected once it has."""
    point = torch.tensor([0.25, -0.5])[:, None]

    def denoise(x, t, chain):
        return point.expand_as(x)

    noise = noise_of(8, 3)
    expected = sample_ddpm(denoise, SCHEDULE, noise)
    ours = sample_speculative(denoise, SCHEDULE, noise, drafter=drafter_of(kind, ""), verifier=VERIFIERS[verifier],
                              window=window, warm_start=point.expand(8, 2, 1), draft=denoise)  # fmt: skip
    assert torch.equal(ours.x0, expected.x0)
    assert int(ours.stats.rejected.sum()) == 0
    best = -(-SCHEDULE.num_steps // window)
    assert int(ours.stats.calls.max()) <= best + (1 if kind == "parent" and window > 1 else 0)


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_a_replay_of_the_sequential_chain_is_accepted_whole(verifier: str):
    """Drafting what the network said on the same noise reproduces a noisy sequential chain to rounding."""
    name = "fixed_large, noisy last step D=3 K=9"
    target, schedule = CASES[name].target, schedule_of(name)
    denoise, said = target.denoiser(schedule), []
    noise = draw_noise((16, 3, 1), schedule, torch.Generator().manual_seed(4))

    def listen(x, t, chain):
        out = denoise(x, t, chain)
        k = int((schedule.timesteps == int(t[0])).nonzero())
        said.append(schedule.predict_x0(out, x, torch.full_like(t, k)).flatten(1))
        return out

    expected = sample_ddpm(listen, schedule, noise)

    class Replay(Picard):
        def start(self, tables, prior, small):
            running = super().start(tables, prior, small)
            running._seen[:, :-1, 0, 1] = torch.stack(said, dim=1)
            return running

    ours = sample_speculative(denoise, schedule, noise, drafter=Replay(memory=0), verifier=VERIFIERS[verifier],
                              window=schedule.num_steps)  # fmt: skip
    torch.testing.assert_close(ours.x0, expected.x0, atol=1e-5, rtol=1e-4)
    assert int(ours.stats.calls.max()) == 1


def test_exact_gains_draft_a_gaussian_in_one_call():
    """For a Gaussian x0hat is linear in x: with its slope as gain the prior plan is a perfect draft."""
    target = Mixture(torch.ones(1, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64),
                     gaussian(4, stretch=1.0).covs)  # fmt: skip
    gains = calibrate(target.denoiser(SCHEDULE), SCHEDULE, (256, 4, 1), ridge=1e-6)
    options = {"drafter": Picard(memory=0, gains=gains, sweeps=20), "window": 20}
    stats = sample_speculative(target.denoiser(SCHEDULE), SCHEDULE, torch.randn(200, 4, 1), **options).stats
    assert float(stats.calls.double().mean()) < 1.2


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [1, 3, 50, "all"])
def test_the_books_balance(kind: str, window: int | str, verifier: str):
    """A window may be longer than the chain."""
    rows, calls = 0, 0

    def denoise(x, t, chain):
        nonlocal rows, calls
        rows, calls = rows + len(x), calls + 1
        return DENOISE(x, t, chain)

    s = speculate(kind, NAME, window, verifier)(denoise, SCHEDULE, noise_of(30, 5)).stats
    assert int(s.calls.max()) == calls
    check_books(s, rows)


@pytest.mark.parametrize("shape", TREES)
def test_the_books_of_a_tree_balance(shape: str):
    rows = 0

    def denoise(x, t, chain):
        nonlocal rows
        rows += len(x)
        return DENOISE(x, t, chain)

    s = tree(shape)(denoise, SCHEDULE, noise_of(30, 5)).stats
    assert int(s.accepted_lengths.nonzero()[:, 1].max()) <= min(TREES[shape]["depth"], SCHEDULE.num_steps - 1)
    check_books(s, rows)


def check_books(s, rows: int) -> None:
    K = SCHEDULE.num_steps
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
    assert bool(((s.rejection_waste >= 0) & (s.rejection_waste < 1)).all())


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("kind", KINDS)
def test_chains_of_one_step_and_batches_of_one(kind: str, verifier: str):
    schedule = Schedule.from_diffusers({"num_train_timesteps": 50, "prediction_type": "sample"}, 1)
    point = torch.tensor([[0.25], [-0.5]])
    options = {"verifier": VERIFIERS[verifier], "window": 7, "draft": lambda x, t, c: x}
    drafter = drafter_of("secant" if kind in ("gain", "gain, one sweep", "warm start") else kind, NAME)
    sample = sample_speculative(lambda x, t, c: point.expand_as(x), schedule, torch.randn(1, 2, 1), drafter=drafter,
                                **options)  # fmt: skip
    torch.testing.assert_close(sample.x0[0], point)
    assert sample.stats.calls.tolist() == [1]
    assert sample.stats.drafted.tolist() == [0]


def test_a_tree_on_a_chain_of_one_step_is_its_root():
    schedule = Schedule.from_diffusers({"num_train_timesteps": 50, "prediction_type": "sample"}, 1)
    sample = sample_tree(lambda x, t, c: torch.full_like(x, 0.5), schedule, torch.randn(1, 2, 1))
    torch.testing.assert_close(sample.x0, torch.full((1, 2, 1), 0.5))
    assert sample.stats.evaluations.tolist() == [1]
