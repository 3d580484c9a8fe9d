"""Gains: fitted to what is known in closed form, stored, and refused where they do not belong."""

import pytest
import torch
from closed_form import Mixture, gaussian
from windows import window_at

from diffpolicy_spec import Gains, Picard, Schedule, calibrate, sample_speculative
from diffpolicy_spec.calibration import fit_gains

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
    window = window_at(starts, [8] * len(starts), 30)
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
    with pytest.raises(ValueError, match=r"unknown structure of gains .*known: auto, dense, kronecker, lowrank"):
        calibrate(target.denoiser(SCHEDULE), SCHEDULE, (4, 3, 1), structure="banded")
    with pytest.raises(ValueError, match="use more chains"):
        calibrate(target.denoiser(SCHEDULE), SCHEDULE, (1, 3, 1), max_bytes=100)
    with pytest.raises(ValueError, match="2 pairs at least"):
        calibrate(target.denoiser(SCHEDULE), SCHEDULE, (1, 3, 1), structure="kronecker", perturbations=1)


def linear(G, schedule):
    """A network that predicts x0 = x @ G_k, at every step another one; G: (K, D, D)."""
    step = {int(t): k for k, t in enumerate(schedule.timesteps)}

    def denoise(x, t, chain):
        k = torch.tensor([step[int(value)] for value in t])
        return torch.einsum("nd,nde->ne", x.flatten(1), G[k]).view_as(x)

    return denoise


def linear_schedule(steps):
    return Schedule.from_diffusers({"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2",
                                    "prediction_type": "sample", "clip_sample": False}, steps)  # fmt: skip


def of_structure(name, steps, Tp, Da):
    """(K, D, D) matrices that only this structure holds: full rank, or full in time and action."""
    g = torch.Generator().manual_seed(0)
    D = Tp * Da
    if name == "kronecker":
        parts = zip(torch.randn(steps, Tp, Tp, generator=g), torch.randn(steps, Da, Da, generator=g), strict=True)
        G = torch.stack([torch.kron(T, A) for T, A in parts])
    else:
        U = torch.linalg.qr(torch.randn(D, 4, generator=g))[0]
        G = U @ torch.randn(steps, 4, 4, generator=g) @ U.T
    return 0.5 * G / torch.linalg.matrix_norm(G, 2)[:, None, None]


@pytest.mark.parametrize("structure", ["kronecker", "lowrank"])
def test_calibration_finds_gains_of_a_structure_and_chooses_it(structure):
    """Chunks of 8 x 4 where dense gains do not fit: both others are fitted, the one that predicts is kept."""
    schedule, G = linear_schedule(5), of_structure(structure, 5, 8, 4)
    options = {"ridge": 0.0, "max_bytes": 9_000, "generator": torch.Generator().manual_seed(0)}
    denoise = linear(G, schedule)
    chosen = calibrate(denoise, schedule, (100, 8, 4), **options)
    assert chosen.structure == structure
    assert chosen.bytes_stored <= 9_000 < 2 * G.numel()
    torch.testing.assert_close(chosen.G, G, atol=1e-4, rtol=1e-3)
    fitted = fit_gains(denoise, schedule, (100, 8, 4), structures=["kronecker", "lowrank"], **options)
    assert fitted[structure].error < 1e-3
    assert max(fit.error for fit in fitted.values()) > 0.3


def test_auto_is_dense_where_that_fits_and_something_else_for_large_chunks():
    """16 x 10 as the shipped policy's, and 64 x 14; 13 steps are the fewest for which that is more than 20 MB."""
    schedule = linear_schedule(13)

    def denoise(x, t, chain):  # smooth over time, the joints mixed by their neighbours
        return 0.4 * x + 0.2 * x.roll(1, 1) + 0.2 * x.roll(-1, 1) + 0.1 * x.roll(1, 2) + 0.1 * x.roll(-1, 2)

    small = calibrate(denoise, schedule, (8, 16, 10), generator=torch.Generator().manual_seed(0))
    assert (small.structure, small.shape) == ("dense", (13, 160, 160))
    large = calibrate(denoise, schedule, (300, 64, 14), generator=torch.Generator().manual_seed(0))
    assert large.structure in ("kronecker", "lowrank")
    assert large.shape == (13, 896, 896)
    assert sum(value.nbytes for value in large.state_dict().values()) <= 20_000_000
    eye, shift, turn = torch.eye(896), torch.eye(64).roll(1, 1), torch.eye(14).roll(1, 1)
    in_time, in_action = torch.kron(shift + shift.T, torch.eye(14)), torch.kron(torch.eye(64), turn + turn.T)
    truth = 0.4 * eye + 0.2 * in_time + 0.1 * in_action
    assert float((large.matrices.explicit()[5] - truth).norm() / truth.norm()) < 0.1


@pytest.mark.parametrize("structure", ["kronecker", "lowrank"])
def test_a_size_limit_is_kept_or_said_to_be_too_small(structure):
    schedule = linear_schedule(5)
    denoise = linear(torch.randn(5, 32, 32, generator=torch.Generator().manual_seed(0)) / 32, schedule)
    sizes = [
        calibrate(denoise, schedule, (40, 8, 4), structure=structure, max_bytes=limit,
                  generator=torch.Generator().manual_seed(0)).bytes_stored
        for limit in (1_000, 2_500, 20_000)
    ]  # fmt: skip
    assert sizes == sorted(set(sizes))
    assert sizes[0] <= 1_000
    assert sizes[1] <= 2_500
    with pytest.raises(ValueError, match=rf"{structure} gains .*max_bytes"):
        calibrate(denoise, schedule, (40, 8, 4), structure=structure, max_bytes=50)
    with pytest.raises(ValueError, match="structure='auto', or allow more"):
        calibrate(denoise, schedule, (40, 8, 4), structure="dense", max_bytes=9_000)


def test_the_error_is_that_of_chains_which_were_not_fitted_to():
    """x0 moves by a gain of each chain's own: what 1 gain for all explains of new chains is known."""
    schedule, g = linear_schedule(4), torch.Generator().manual_seed(0)
    mean, own = torch.randn(6, 6, generator=g), torch.randn(2000, 6, 6, generator=g)

    def denoise(x, t, chain):
        return 0.2 * torch.einsum("nd,nde->ne", x.flatten(1), mean + own[chain]).view_as(x)

    fit = fit_gains(denoise, schedule, (2000, 3, 2), structures=["dense"], holdout=0.25, generator=g)["dense"]
    explained = float(own.square().mean() / (mean.square().mean() + own.square().mean())) ** 0.5
    assert abs(fit.error - explained) < 0.03
    unchecked = fit_gains(denoise, schedule, (9, 3, 2), structures=["dense"], holdout=0.0)["dense"].error
    assert unchecked != unchecked  # NaN


@pytest.mark.parametrize("structure", ["dense", "kronecker", "lowrank"])
def test_gains_of_every_structure_save_calls(structure):
    """A chunk of 6 x 2, smooth in time: what a posterior mean says of neighbours is what gains are for."""
    time = torch.arange(6.0, dtype=torch.float64)
    kernel = torch.exp(-((time[:, None] - time) ** 2) / 8)
    cov = 0.2 * torch.kron(kernel, torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64))
    target = Mixture(torch.ones(1, dtype=torch.float64), torch.zeros(1, 12, dtype=torch.float64),
                     (cov + 1e-4 * torch.eye(12, dtype=torch.float64))[None])  # fmt: skip
    denoise, shape = target.denoiser(SCHEDULE), (200, 6, 2)
    gains = calibrate(denoise, SCHEDULE, shape, structure=structure, generator=torch.Generator().manual_seed(0))

    def calls(drafter):
        torch.manual_seed(0)
        return float(sample_speculative(denoise, SCHEDULE, torch.randn(*shape), drafter=drafter, window=30)
                     .stats.calls.double().mean())  # fmt: skip

    assert calls(Picard(memory=0, gains=gains)) < 0.6 * calls(Picard(memory=0))
