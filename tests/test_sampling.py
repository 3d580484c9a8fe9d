"""What the samplers accept, refuse and report."""

import pytest
import torch
from closed_form import Mixture, two_modes

from diffpolicy_spec import (
    Nearest,
    Noise,
    Parent,
    Picard,
    Schedule,
    ScheduleError,
    draw_noise,
    sample_ddim,
    sample_ddpm,
    sample_speculative,
)
from diffpolicy_spec.noise import NoiseTable
from diffpolicy_spec.verification import VERIFIERS

CONFIG = {"num_train_timesteps": 40, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
SCHEDULE = Schedule.from_diffusers(CONFIG)
TARGET = two_modes(6)
DENOISE = TARGET.denoiser(SCHEDULE)


def noise(batch=4, seed=0, schedule=SCHEDULE):
    return draw_noise((batch, 6, 1), schedule, torch.Generator().manual_seed(seed))


def test_a_window_schedule_by_step_is_obeyed_and_saves_rows():
    sizes = [4] * 20 + [16] * 20
    seen = []

    def denoise(x, t, chain):
        k = SCHEDULE.num_steps - 1 - t  # timesteps count down from K - 1
        seen.append((int(k.min()), len(x)))
        return DENOISE(x, t, chain)

    one = noise(1)
    varied = sample_speculative(denoise, SCHEDULE, one, drafter=Nearest(), window=sizes)
    assert all(rows == min(sizes[k], SCHEDULE.num_steps - k) for k, rows in seen)
    wide = sample_speculative(DENOISE, SCHEDULE, one, drafter=Nearest(), window=torch.tensor(16))
    assert int(varied.stats.evaluations) < int(wide.stats.evaluations)


def test_a_batch_of_generators_draws_each_chain_on_its_own():
    def generators(seeds):
        return [torch.Generator().manual_seed(s) for s in seeds]

    three = draw_noise((3, 6, 1), SCHEDULE, generators([5, 6, 7]))
    last = draw_noise((1, 6, 1), SCHEDULE, generators([7]))
    assert torch.equal(three.start[2:], last.start)
    assert torch.equal(three.steps[:, 2:], last.steps)
    assert torch.equal(three.uniforms[:, 2:], last.uniforms)
    with pytest.raises(ValueError, match="one generator per chain"):
        draw_noise((3, 6, 1), SCHEDULE, generators([1]))


def test_the_same_generator_gives_the_same_sample():
    start = torch.randn(3, 6, 1)
    runs = [sample_speculative(DENOISE, SCHEDULE, start, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(runs[0].x0, runs[1].x0)
    other = sample_speculative(DENOISE, SCHEDULE, start, generator=torch.Generator().manual_seed(2))
    assert not torch.equal(runs[0].x0, other.x0)


def test_parent_pays_a_call_for_its_draft_and_reuses_the_leaf():
    calls = []

    def denoise(x, t, chain):
        calls.append(len(x))
        return DENOISE(x, t, chain)

    stats = sample_speculative(denoise, SCHEDULE, noise(1, seed=3), drafter=Parent(), window=8).stats
    assert calls[0] == 1  # nothing is known at the start
    # a call of one row at the start and after each rejection, and nowhere else (but for a last row left over)
    singles = sum(rows == 1 for rows in calls[:-1])
    assert singles == 1 + int(stats.rejected) or singles == int(stats.rejected)


def test_ours_needs_fewer_calls_than_the_published_two_call_form():
    many = noise(64, seed=4)
    calls = {
        name: float(sample_speculative(DENOISE, SCHEDULE, many, drafter=d, window=16).stats.calls.double().mean())
        for name, d in {"parent": Parent(), "nearest": Nearest(), "picard": Picard()}.items()
    }
    assert calls["picard"] < calls["nearest"] < calls["parent"] < 40


def test_a_good_warm_start_saves_calls_and_none_is_the_default():
    target = Mixture(torch.ones(1, dtype=torch.float64), torch.full((1, 6), 0.7, dtype=torch.float64),
                     0.01 * torch.eye(6, dtype=torch.float64)[None])  # fmt: skip
    many = noise(64, seed=5)

    def calls(warm):
        sample = sample_speculative(target.denoiser(SCHEDULE), SCHEDULE, many, window=40, warm_start=warm)
        return float(sample.stats.calls.double().mean())

    plan = torch.full((64, 6, 1), 0.7)
    assert calls(plan) < calls(None) - 0.5
    assert calls(torch.full_like(plan, torch.nan)) == calls(None)


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_the_same_generator_gives_the_same_sample_with_every_verifier(verifier):
    def draw(seed):
        generator = [torch.Generator().manual_seed(seed + i) for i in range(4)]
        return sample_speculative(DENOISE, SCHEDULE, noise(), generator=generator, verifier=VERIFIERS[verifier],
                                  window="all").x0  # fmt: skip

    assert torch.equal(draw(1), draw(1))


@pytest.mark.parametrize("each", [False, True], ids=["one generator", "one a chain"])
def test_a_round_notes_what_it_spent_and_draws_only_that_anew(each: bool):
    """Block verification: noises of committed steps and beyond the window are kept, those it looked at are not."""
    given, source = noise(8), [torch.Generator().manual_seed(i) for i in range(8)]
    table = NoiseTable(8, 40, given.start[0].numel(), torch.device("cpu"))
    table.load(given, source if each else source[0], None)
    before = table.xi.clone(), table.u.clone()
    chain, steps = torch.tensor([1, 6]), torch.tensor([[3, 4, 5], [10, 11, 12]])
    rows = torch.tensor([[False, True, True], [False, False, True]])
    table.prepare(chain, 3, torch.tensor([3, 3]))
    table.redraw(chain, steps, rows)
    changed = torch.zeros(8, 41, dtype=torch.bool)
    changed[[1, 1, 6], [4, 5, 12]] = True
    assert torch.equal((table.xi != before[0]).all(-1), changed)
    assert torch.equal((table.xi != before[0]).any(-1), changed)
    assert torch.equal(table.u != before[1], changed)
    assert torch.equal(given.uniforms.T, before[1][:, :-1])


def test_the_time_split_adds_up():
    time = sample_speculative(DENOISE, SCHEDULE, noise()).stats.time
    assert time.network > 0
    assert time.draft > 0
    assert time.verify > 0
    assert time.other >= 0
    assert 0 < time.overhead < 1
    assert time.network + time.draft + time.verify + time.sync + time.other == pytest.approx(time.total)
    sequential = sample_ddpm(DENOISE, SCHEDULE, noise()).stats.time  # drafts nothing: its updates are "other"
    assert sequential.draft == sequential.verify == 0
    assert sequential.other > 0


def test_network_in_half_precision_keeps_the_state_in_float32():
    def denoise(x, t, chain):
        assert x.dtype == torch.float32
        return DENOISE(x, t, chain).to(torch.bfloat16)

    assert sample_speculative(denoise, SCHEDULE, noise()).x0.dtype == torch.float32


@pytest.mark.parametrize("sampler", [sample_ddpm, sample_speculative])
def test_a_network_that_returns_nan_is_named_with_its_timesteps(sampler):
    def denoise(x, t, chain):
        return torch.where((t == 7).view(-1, 1, 1), torch.nan, DENOISE(x, t, chain))

    with pytest.raises(FloatingPointError, match="first at timestep 7"):
        sampler(denoise, SCHEDULE, noise())


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"\(B, Tp, Da\)"):
        sample_speculative(DENOISE, SCHEDULE, torch.randn(6))
    with pytest.raises(ValueError, match="NaN"):
        sample_ddpm(DENOISE, SCHEDULE, torch.full((1, 6, 1), torch.nan))
    with pytest.raises(ValueError, match="no chains"):
        sample_ddpm(DENOISE, SCHEDULE, torch.zeros(0, 6, 1))
    steps = torch.full((40, 1, 6, 1), torch.inf)
    with pytest.raises(ValueError, match="NaN"):
        sample_ddpm(DENOISE, SCHEDULE, Noise(torch.zeros(1, 6, 1), steps, torch.rand(40, 1)))
    with pytest.raises(ValueError, match="does not fit a schedule of 40"):
        sample_ddpm(DENOISE, SCHEDULE, Noise(torch.randn(1, 6, 1), torch.randn(39, 1, 6, 1), torch.rand(39, 1)))
    with pytest.raises(ValueError, match="window must be at least 1"):
        sample_speculative(DENOISE, SCHEDULE, noise(), window=0)
    with pytest.raises(ValueError, match="one number for each of 40"):
        sample_speculative(DENOISE, SCHEDULE, noise(), window=[4, 4])
    with pytest.raises(ValueError, match="warm_start"):
        sample_speculative(DENOISE, SCHEDULE, noise(), warm_start=torch.zeros(1, 6, 1))
    with pytest.raises(ValueError, match="denoise returned"):
        sample_ddpm(lambda x, t, chain: x[:, :2], SCHEDULE, noise())
    with pytest.raises(ValueError, match="memory"):
        Picard(memory=-1)


def test_chains_that_do_not_fit_a_sampler_are_refused():
    ddim = Schedule.from_diffusers(CONFIG, 10, eta=0.0)
    start = torch.randn(1, 6, 1)
    with pytest.raises(ScheduleError, match="eta = 0"):
        sample_speculative(DENOISE, ddim, start)
    with pytest.raises(ScheduleError, match="sample_ddim"):
        sample_ddpm(DENOISE, ddim, start)
    with pytest.raises(ScheduleError, match="sample_ddpm"):
        sample_ddim(DENOISE, SCHEDULE, start)
