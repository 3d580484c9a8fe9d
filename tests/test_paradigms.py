"""ParaDiGMS: with tolerance 0 the sequential chain; with more, nearer for smaller tolerances, in fewer calls."""

import pytest
import torch
from closed_form import assert_same_law, two_modes
from coupling_inputs import properties
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpolicy_spec import Noise, Schedule, draw_noise, sample_ddim, sample_ddpm, sample_paradigms

CONFIG = {"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
SCHEDULE = Schedule.from_diffusers(CONFIG)
CHAINS = {
    "ddpm, epsilon": ({"prediction_type": "epsilon", "clip_sample": False, "beta_schedule": "linear", "beta_end": 0.2},
                      50, None),
    "ddpm, noisy last step": ({"variance_type": "fixed_large", "timestep_spacing": "trailing"}, 20, None),
    "ddim, eta 0": ({"clip_sample": False}, 10, 0.0),
    "ddim, eta 0.6, v": ({"prediction_type": "v_prediction"}, 25, 0.6),
}  # fmt: skip


def run(tolerance, window):
    target = two_modes(4)
    denoise = target.denoiser(SCHEDULE)
    noise = draw_noise((32, 4, 1), SCHEDULE, torch.Generator().manual_seed(1))
    ours = sample_paradigms(denoise, SCHEDULE, noise, window=window, tolerance=tolerance)
    return ours, sample_ddpm(denoise, SCHEDULE, noise)


@pytest.mark.parametrize("window", [1, 7, 50])
def test_tolerance_zero_is_the_sequential_sample(window):
    ours, exact = run(0.0, window)
    torch.testing.assert_close(ours.x0, exact.x0, atol=2e-5, rtol=1e-4)
    if window == 1:
        assert bool((ours.stats.calls == 50).all())


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("window", [4, 64])
def test_tolerance_zero_is_the_sequential_sample_of_every_chain(name, window):
    changes, K, eta = CHAINS[name]
    schedule = Schedule.from_diffusers(CONFIG | changes, K, eta=eta)
    denoise = two_modes(4).denoiser(schedule)
    noise = draw_noise((16, 4, 1), schedule, torch.Generator().manual_seed(2))
    exact = (sample_ddpm if eta is None else sample_ddim)(denoise, schedule, noise)
    ours = sample_paradigms(denoise, schedule, noise, window=window, tolerance=0.0)
    torch.testing.assert_close(ours.x0, exact.x0, atol=5e-5, rtol=1e-4)


def test_a_larger_tolerance_costs_fidelity_and_saves_calls():
    runs = [run(tolerance, 16) for tolerance in (0.001, 0.1, 1.0)]
    calls = [float(ours.stats.calls.double().mean()) for ours, _ in runs]
    errors = [float((ours.x0 - exact.x0).abs().mean()) for ours, exact in runs]
    assert calls[0] > calls[1] > calls[2]
    assert errors[0] < errors[1] < errors[2]
    assert calls[1] < 50


def test_a_large_tolerance_is_another_law():
    """Approximate, and seen to be: the battery that exact samplers pass tells it from the sequential sampler."""
    target, schedule = two_modes(2), Schedule.from_diffusers(CONFIG, 20)
    denoise = target.denoiser(schedule)

    def sample(sampler, seed, **options):
        noise = draw_noise((8_000, 2, 1), schedule, torch.Generator().manual_seed(seed))
        return sampler(denoise, schedule, noise, **options).x0.flatten(1)

    exact = sample(sample_ddpm, 3)
    assert_same_law(sample(sample_paradigms, 4, window=20, tolerance=1e-3), exact, target)
    with pytest.raises(AssertionError, match=r"KS distance|mode weights"):
        assert_same_law(sample(sample_paradigms, 4, window=20, tolerance=20.0), exact, target)


@settings(properties, max_examples=12)
@given(window=st.integers(1, 60), tolerance=st.one_of(st.just(0.0), st.floats(-4.0, 1.0).map(lambda p: 10.0**p)),
       seed=st.integers(0, 1000))  # fmt: skip
def test_whatever_window_and_tolerance_it_ends_and_its_books_balance(window, tolerance, seed):
    inner, rows, calls = two_modes(3).denoiser(SCHEDULE), 0, 0

    def denoise(x, t, chain):
        nonlocal rows, calls
        rows, calls = rows + len(x), calls + 1
        return inner(x, t, chain)

    noise = draw_noise((4, 3, 1), SCHEDULE, torch.Generator().manual_seed(seed))
    ours, K = sample_paradigms(denoise, SCHEDULE, noise, window=window, tolerance=tolerance), SCHEDULE.num_steps
    stats = ours.stats
    assert bool(torch.isfinite(ours.x0).all())
    assert int(stats.evaluations.sum()) == rows
    assert int(stats.calls.max()) == calls
    # a round settles one state at least and a window at most
    assert bool((stats.calls <= K).all())
    assert bool((stats.calls >= -(-K // window)).all())
    assert bool((stats.evaluations <= stats.calls * min(window, K)).all())
    assert bool((stats.rejected == 0).all())
    torch.testing.assert_close(stats.accepted + stats.calls, torch.full((4,), K))
    if tolerance == 0.0:
        exact = sample_ddpm(inner, SCHEDULE, noise)
        torch.testing.assert_close(ours.x0, exact.x0, atol=2e-5, rtol=1e-4)


def test_one_chain_alone_is_that_chain_in_a_batch():
    denoise = two_modes(4).denoiser(SCHEDULE)
    noise = draw_noise((8, 4, 1), SCHEDULE, torch.Generator().manual_seed(5))
    batched = sample_paradigms(denoise, SCHEDULE, noise, window=9, tolerance=0.05)
    for i in range(8):
        one = Noise(noise.start[i : i + 1], noise.steps[:, i : i + 1], noise.uniforms[:, i : i + 1])
        alone = sample_paradigms(denoise, SCHEDULE, one, window=9, tolerance=0.05)
        assert int(alone.stats.calls) == int(batched.stats.calls[i])
        torch.testing.assert_close(alone.x0[0], batched.x0[i], atol=1e-5, rtol=1e-4)


def test_a_window_wider_than_the_chain_is_the_chain():
    (wide, _), (whole, _) = run(0.1, 500), run(0.1, 50)
    assert torch.equal(wide.x0, whole.x0)
    assert torch.equal(wide.stats.calls, whole.stats.calls)


def test_bad_options_are_refused():
    noise = torch.randn(1, 4, 1)
    with pytest.raises(ValueError, match="tolerance"):
        sample_paradigms(lambda x, t, c: x, SCHEDULE, noise, tolerance=-1)
    with pytest.raises(ValueError, match="tolerance"):
        sample_paradigms(lambda x, t, c: x, SCHEDULE, noise, tolerance=float("nan"))
    with pytest.raises(ValueError, match="window"):
        sample_paradigms(lambda x, t, c: x, SCHEDULE, noise, window=0)
