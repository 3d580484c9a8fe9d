"""ParaDiGMS: with tolerance 0 the sequential chain; with more, nearer for smaller tolerances, in fewer calls."""

import pytest
import torch
from closed_form import two_modes

from diffpolicy_spec import Schedule, draw_noise, sample_ddpm, sample_paradigms

SCHEDULE = Schedule.from_diffusers({"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2",
                                    "prediction_type": "sample"})  # fmt: skip


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


def test_a_larger_tolerance_costs_fidelity_and_saves_calls():
    runs = [run(tolerance, 16) for tolerance in (0.001, 0.1, 1.0)]
    calls = [float(ours.stats.calls.double().mean()) for ours, _ in runs]
    errors = [float((ours.x0 - exact.x0).abs().mean()) for ours, exact in runs]
    assert calls[0] > calls[1] > calls[2]
    assert errors[0] < errors[1] < errors[2]
    assert calls[1] < 50


def test_bad_options_are_refused():
    noise = torch.randn(1, 4, 1)
    with pytest.raises(ValueError, match="tolerance"):
        sample_paradigms(lambda x, t, c: x, SCHEDULE, noise, tolerance=-1)
    with pytest.raises(ValueError, match="window"):
        sample_paradigms(lambda x, t, c: x, SCHEDULE, noise, window=0)
