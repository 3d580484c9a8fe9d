"""Gains: fitted to what is known in closed form, stored, and refused where they do not belong."""

import pytest
import torch
from closed_form import gaussian

from diffpolicy_spec import Gains, Schedule, calibrate
from diffpolicy_spec.window import make_window

SCHEDULE = Schedule.from_diffusers({"num_train_timesteps": 30, "beta_schedule": "squaredcos_cap_v2",
                                    "prediction_type": "epsilon", "clip_sample": False})  # fmt: skip


def test_gains_of_a_gaussian_are_its_posterior_slope():
    target = gaussian(5, stretch=1.0)
    fitted = calibrate(target.denoiser(SCHEDULE), SCHEDULE, (200, 5, 1), ridge=1e-8, batch=77)
    eye, cov = torch.eye(5, dtype=torch.float64), target.covs[0]
    for k, abar in enumerate(SCHEDULE.abar):
        slope = abar.sqrt() * cov @ torch.linalg.inv(abar * cov + (1 - abar) * eye)
        torch.testing.assert_close(fitted.G[k].double(), slope.T, atol=5e-3, rtol=5e-3)


def test_calibration_repeats_itself_and_reports_progress():
    target, seen = gaussian(3), []

    def progress(steps):
        for k in steps:
            seen.append(k)
            yield k

    runs = [
        calibrate(target.denoiser(SCHEDULE), SCHEDULE, (40, 3, 1), generator=torch.Generator().manual_seed(3),
                  progress=progress).G
        for _ in range(2)
    ]  # fmt: skip
    assert torch.equal(*runs)
    assert seen == 2 * list(range(30))


def test_gains_survive_storage_in_half_precision():
    gains = Gains(G=torch.randn(4, 3, 3), timesteps=torch.arange(3, -1, -1))
    back = Gains.from_state_dict(gains.state_dict())
    torch.testing.assert_close(back.G, gains.G, atol=2e-3, rtol=2e-3)
    assert torch.equal(back.timesteps, gains.timesteps)
    assert Gains.from_state_dict({}) is None
    tables = SCHEDULE.on("cpu")
    with pytest.raises(ValueError, match="calibrate again"):
        gains.check(tables, 3)


@pytest.mark.parametrize("starts", [[2], [2, 9, 2], [25, 0, 14]])
def test_gains_apply_each_row_its_own_step(starts):
    gains = Gains(G=torch.randn(30, 4, 4), timesteps=SCHEDULE.timesteps)
    start = torch.tensor(starts)
    window = make_window(torch.arange(len(starts)), start, torch.tensor([8] * len(starts)), 30)
    dx = torch.randn(*window.steps.shape, 4)
    out = gains.apply(window, dx)
    for b, i in window.valid.nonzero().tolist():
        torch.testing.assert_close(out[b, i], dx[b, i] @ gains.G[window.steps[b, i]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("change", "message"), [
    ({"gains.timesteps": None}, "calibrate again"),
    ({"gains.timesteps": torch.arange(3)}, "timesteps"),
    ({"gains.G": torch.zeros(4, 3)}, r"\(K, D, D\)"),
    ({"gains.G": torch.full((4, 3, 3), torch.nan)}, "NaN"),
])  # fmt: skip
def test_damaged_gains_are_refused(change, message):
    state = Gains(G=torch.zeros(4, 3, 3), timesteps=torch.arange(4)).state_dict() | change
    with pytest.raises(ValueError, match=message):
        Gains.from_state_dict({key: value for key, value in state.items() if value is not None})


def test_settings_that_cannot_be_used_are_refused():
    target = gaussian(3)
    for change in ({"perturbations": 0}, {"scale": 0.0}, {"ridge": -1.0}):
        with pytest.raises(ValueError, match="calibration needs"):
            calibrate(target.denoiser(SCHEDULE), SCHEDULE, (4, 3, 1), **change)
