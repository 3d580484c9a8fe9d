"""The tables against diffusers' own schedulers, over whole trajectories."""

import itertools
import warnings

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffpolicy_spec.schedule import Schedule, ScheduleError

COMMON = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}


def prediction(x, t):
    """Any smooth function of state and time: clipped now and then, and not so steep that rounding errors grow."""
    return 0.9 * torch.sin(1.2 * x + 0.05 * t) + 0.2 * x.roll(1, -1)


def diffusers_trajectory(scheduler, n, x, noise, step):
    scheduler.set_timesteps(n)
    states = []
    for i, t in enumerate(scheduler.timesteps):
        x = step(scheduler, prediction(x, t), t, x, noise[i])
        states.append(x)
    return torch.stack(states)


def our_trajectory(schedule, x, noise):
    tables, states = schedule.on("cpu"), []
    for k in range(schedule.num_steps):
        rows = torch.full((x.shape[0],), k)
        m = schedule.predict_x0(prediction(x, schedule.timesteps[k]), x, rows)
        x = tables.A[k] * m + tables.B[k] * x + tables.sigma[k] * noise[k]
        states.append(x)
    return torch.stack(states)


def ddpm_step(monkeypatch):
    """diffusers draws the noise of a DDPM step itself: hand it ours."""

    def step(scheduler, out, t, x, noise):
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: noise)
        return scheduler.step(out, t, x).prev_sample

    return step


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize(("spacing", "offset", "n"), [
    ("leading", 0, 100), ("leading", 0, 10), ("leading", 1, 7), ("trailing", 0, 16), ("trailing", 0, 100),
    ("linspace", 0, 13), ("linspace", 0, 50),
])  # fmt: skip
def test_ddpm_agrees_with_diffusers(monkeypatch, prediction_type, variance, spacing, offset, n):
    for clip, clip_range in ((True, 1.0), (True, 0.7), (False, 1.0)):
        config = COMMON | {
            "prediction_type": prediction_type, "variance_type": variance, "timestep_spacing": spacing,
            "steps_offset": offset, "clip_sample": clip, "clip_sample_range": clip_range,
        }  # fmt: skip
        if prediction_type == "epsilon" and not clip:
            config["beta_schedule"] = "linear"  # abar_T of the cosine schedule is 1e-9: unclipped x0 is 1e4
        x, noise = torch.randn(3, 4, 2), torch.randn(n, 3, 4, 2)
        scheduler = DDPMScheduler(**config)
        theirs = diffusers_trajectory(scheduler, n, x, noise, ddpm_step(monkeypatch))
        ours = our_trajectory(Schedule.from_diffusers(scheduler, n), x, noise)
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("spacing", "offset", "n"), [
    ("leading", 0, 100), ("leading", 0, 10), ("leading", 1, 7), ("trailing", 0, 20),
])  # fmt: skip
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_agrees_with_diffusers(prediction_type, spacing, offset, n, eta):
    for clip, to_one in itertools.product((True, False), (True, False)):
        config = COMMON | {
            "beta_schedule": "scaled_linear", "beta_end": 0.05, "prediction_type": prediction_type,
            "timestep_spacing": spacing, "steps_offset": offset, "clip_sample": clip, "set_alpha_to_one": to_one,
        }  # fmt: skip
        x, noise = torch.randn(3, 4, 2), torch.randn(n, 3, 4, 2)
        scheduler = DDIMScheduler(**config)

        def step(s, out, t, x, z):
            return s.step(out, t, x, eta=eta, variance_noise=z if eta > 0 else None).prev_sample

        theirs = diffusers_trajectory(scheduler, n, x, noise, step)
        ours = our_trajectory(Schedule.from_diffusers(scheduler, n, eta=eta), x, noise)
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "trained"])
@pytest.mark.parametrize("rescale", [False, True])
def test_betas_agree_with_diffusers(beta_schedule, rescale):
    config = {"num_train_timesteps": 50, "rescale_betas_zero_snr": rescale, "prediction_type": "v_prediction"}
    config |= (
        {"trained_betas": [0.01 + 0.001 * i for i in range(50)]}
        if beta_schedule == "trained"
        else {"beta_schedule": beta_schedule}
    )
    theirs = DDPMScheduler(**config).alphas_cumprod.flip(0).double()
    torch.testing.assert_close(Schedule.from_diffusers(config).abar, theirs, atol=1e-6, rtol=1e-4)


def test_dynamic_thresholding_agrees_with_diffusers(monkeypatch):
    config = COMMON | {"prediction_type": "sample", "thresholding": True, "sample_max_value": 1.5,
                       "dynamic_thresholding_ratio": 0.9}  # fmt: skip
    x, noise = torch.randn(3, 4, 2), torch.randn(20, 3, 4, 2)
    scheduler = DDPMScheduler(**config)
    theirs = diffusers_trajectory(scheduler, 20, x, noise, ddpm_step(monkeypatch))
    torch.testing.assert_close(our_trajectory(Schedule.from_diffusers(scheduler, 20), x, noise), theirs,
                               atol=2e-4, rtol=2e-3)  # fmt: skip


def test_linspace_ddim_takes_the_true_previous_timestep_and_says_so():
    config = COMMON | {"_class_name": "DDIMScheduler", "timestep_spacing": "linspace"}
    with pytest.warns(UserWarning, match="next timestep"):
        schedule = Schedule.from_diffusers(config, 7, eta=0.5)
    prev = torch.cat([schedule.abar[1:], torch.ones(1, dtype=torch.float64)])
    var = (1 - prev) / (1 - schedule.abar) * (1 - schedule.abar / prev)
    torch.testing.assert_close(schedule.sigma, 0.5 * var.sqrt())
    # the marginal variance of x given x0 is preserved: A sqrt... B^2 (1 - abar) + sigma^2 = 1 - abar_prev
    torch.testing.assert_close(schedule.B**2 * (1 - schedule.abar) + schedule.sigma**2, 1 - prev)


def test_the_response_tables_are_the_recursion():
    schedule = Schedule.from_diffusers(COMMON, 12)
    tables = schedule.on("cpu")
    inputs, x = torch.randn(12, 5), torch.randn(5)
    states = [x]
    for k in range(11):
        states.append(tables.B[k] * states[-1] + inputs[k])
    for start in (0, 4):
        window = slice(start, 12)
        ours = tables.decay[window, start, None] * states[start] + tables.response[window, window] @ inputs[window]
        torch.testing.assert_close(ours, torch.stack(states[start:]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("change", "message"), [
    ({"variance_type": "learned"}, "learned"),
    ({"variance_type": "learned_range"}, "learned_range"),
    ({"variance_type": "fixed_large_log"}, "NaN"),
    ({"prediction_type": "flow"}, "flow"),
    ({"beta_schedule": "laplace"}, "laplace"),
    ({"timestep_spacing": "karras"}, "karras"),
    ({"_class_name": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler"),
    ({"thresholding": True, "dynamic_thresholding_ratio": 0.0}, "dynamic_thresholding_ratio"),
    ({"clip_sample_range": -1.0}, "clip_sample_range"),
    ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "v_prediction"),
    ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
    ({"steps_offset": 60}, "steps_offset"),
])  # fmt: skip
def test_what_cannot_be_sampled_is_refused_by_name(change, message):
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_diffusers(COMMON | change, 10)


def test_bad_arguments_are_refused():
    for n in (0, 101):
        with pytest.raises(ScheduleError, match="num_inference_steps"):
            Schedule.from_diffusers(COMMON, n)
    with pytest.raises(ScheduleError, match="eta"):
        Schedule.from_diffusers(COMMON, 10, eta=1.5)
    with pytest.raises(ScheduleError, match="config dict"):
        Schedule.from_diffusers(3)


def test_no_warning_for_the_usual_settings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Schedule.from_diffusers(COMMON, 10, eta=0.0)
        Schedule.from_diffusers(COMMON)


def test_old_releases_take_the_stored_betas():
    """diffusers up to 0.11 rounds a DDPM chain of all steps otherwise than later ones; everything else is the same."""
    config = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}
    old = {**config, "_diffusers_version": "0.11.1"}
    betas = DDPMScheduler(**config).betas
    abar = torch.cumprod(1.0 - betas, dim=0).double()
    expected = betas[0].double() / (1 - abar[0])
    assert 1e-6 < abs(expected - 1) < 1e-4
    assert float(Schedule.from_diffusers(old).A[-1]) == pytest.approx(float(expected), rel=1e-12)
    assert float(Schedule.from_diffusers(config).A[-1]) == 1.0
    same = ({**config, "_diffusers_version": "0.12.0"}, None, None), (old, 10, None), (old, None, 0.0)
    for settings, steps, eta in same:
        ours, theirs = (Schedule.from_diffusers(c, steps, eta=eta) for c in (settings, config))
        assert torch.equal(ours.A, theirs.A)
        assert torch.equal(ours.sigma, theirs.sigma)
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "sample"}  # of later releases: never left out
    assert torch.equal(Schedule.from_diffusers({**old, **zero}).abar, Schedule.from_diffusers({**config, **zero}).abar)
