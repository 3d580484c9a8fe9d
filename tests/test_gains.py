"""Structures of gains: fitted to what they can hold, applied row by row, stored, and refused where damaged."""

import functools

import pytest
import torch
from closed_form import assert_same_law, two_modes
from windows import window_at

from diffpolicy_spec import Gains, Picard, Schedule, calibrate, load_policy, sample_ddpm, sample_speculative
from diffpolicy_spec.gains import STRUCTURES, Kronecker, LowRank
from diffpolicy_spec.gains.fitting import KroneckerFit, LowRankFit, Perturbations, estimate
from diffpolicy_spec.gains.kronecker import nearest_kronecker, recompose
from diffpolicy_spec.gains.lowrank import in_subspace
from diffpolicy_spec.gains.shrinkage import shrink

K, TP, DA = 30, 4, 3
D = TP * DA


@functools.cache
def structured(name: str) -> tuple[Gains, torch.Tensor]:
    """Gains of each structure with random contents, and the same written out by its formula."""
    g = torch.Generator().manual_seed(len(name))
    timesteps = torch.arange(K - 1, -1, -1)
    if name == "dense":
        G = torch.randn(K, D, D, generator=g)
        return Gains(G, timesteps), G
    if name == "kronecker":
        T, A = torch.randn(K, TP, TP, 2, generator=g), torch.randn(K, DA, 2, DA, generator=g)
        return Gains(Kronecker(T, A), timesteps), torch.einsum("ktsr,karc->ksatc", T, A).reshape(K, D, D)
    c, S = torch.randn(K, generator=g), torch.randn(K, 5, 5, generator=g)
    U = torch.linalg.qr(torch.randn(D, 5, generator=g))[0]
    return Gains(LowRank(c, U, S), timesteps), c[:, None, None] * torch.eye(D) + U @ S @ U.T


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_says_what_it_is(name):
    gains, G = structured(name)
    assert (gains.structure, gains.shape) == (name, (K, D, D))
    torch.testing.assert_close(gains.G, G, atol=1e-5, rtol=1e-5)
    assert gains.bytes_stored == sum(v.nbytes for n, v in gains.state_dict().items() if n != "gains.timesteps")
    assert f"{name}, K=30, D=12" in repr(gains)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("starts", [[2], [27], [2, 9, 2], [25, 0, 14]])
@pytest.mark.parametrize("fixed", [None, 12, K])
def test_gains_apply_each_row_its_own_step(name, starts, fixed):
    gains, G = structured(name)
    window = window_at(starts, [8, 3, 5][: len(starts)], K, fixed=fixed)
    dx = torch.randn(*window.steps.shape, D, generator=torch.Generator().manual_seed(1))
    out = gains.apply(window, dx)
    assert out.shape == dx.shape
    assert torch.isfinite(out).all()
    for b, i in window.valid.nonzero().tolist():
        torch.testing.assert_close(out[b, i], dx[b, i] @ G[window.steps[b, i]], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", STRUCTURES)
def test_gains_survive_storage_in_half_precision(name):
    gains, G = structured(name)
    state = gains.state_dict()
    assert {value.dtype for key, value in state.items() if key != "gains.timesteps"} == {torch.float16}
    back = Gains.from_state_dict(state)
    assert back.structure == name
    assert {value.dtype for value in back.matrices.tensors()} == {torch.float32}
    assert torch.equal(back.timesteps, gains.timesteps)
    assert float((back.G - G).norm() / G.norm()) < 1e-3
    moved = back.to("cpu")
    assert (moved.structure, moved.shape) == (name, back.shape)


def test_gains_stored_before_there_were_structures_are_dense():
    gains = Gains.from_state_dict(load_policy("lift").speculation)
    assert (gains.structure, gains.shape) == ("dense", (100, 160, 160))
    assert set(gains.state_dict()) == {"gains.G", "gains.timesteps"}


@pytest.mark.parametrize(("name", "change", "message"), [
    ("kronecker", {"gains.kronecker.A": None}, "lack gains.kronecker.A"),
    ("kronecker", {"gains.kronecker.A": torch.zeros(K, DA, 3, DA)}, r"A \(K, Da, R, Da\).*calibrate again"),
    ("kronecker", {"gains.kronecker.T": torch.zeros(K, TP, TP)}, r"T \(K, Tp, Tp, R\)"),
    ("kronecker", {"gains.kronecker.T": torch.full((K, TP, TP, 2), torch.inf)}, "infinite values in gains.kronecker.T"),
    ("kronecker", {"gains.timesteps": torch.arange(3)}, r"K = 30 steps need timesteps \(K,\), got \(3,\)"),
    ("kronecker", {"gains.G": torch.zeros(K, D, D)}, "unknown structure"),
    ("kronecker", {"gains.kronecker.B": torch.zeros(2)}, "unknown structure.*kronecker.B"),
    ("lowrank", {"gains.lowrank.c": None}, "lack gains.lowrank.c"),
    ("lowrank", {"gains.lowrank.S": torch.zeros(K, 5, 4)}, r"S \(K, R, R\)"),
    ("lowrank", {"gains.lowrank.U": torch.full((D, 5), torch.nan)}, "NaN"),
    ("lowrank", {"gains.timesteps": None}, "calibrate again"),
    ("lowrank", {"gains.kronecker.T": torch.zeros(K, TP, TP, 2)}, "unknown structure"),
    ("dense", {"gains.banded.G": torch.zeros(K, D, D)}, "unknown structure.*kronecker, lowrank"),
])  # fmt: skip
def test_damaged_gains_are_refused(name, change, message):
    state = structured(name)[0].state_dict() | change
    with pytest.raises(ValueError, match=message):
        Gains.from_state_dict({key: value for key, value in state.items() if value is not None})


def test_gains_of_a_newer_release_are_not_taken_for_none():
    with pytest.raises(ValueError, match=r"unknown structure.*gains\.fourier\.F"):
        Gains.from_state_dict({"gains.fourier.F": torch.zeros(3), "gains.timesteps": torch.arange(3)})


@pytest.mark.parametrize("n", [2 * D, 5 * D + 2])
def test_a_structure_is_fitted_exactly_to_pairs_of_its_own_kind(n):
    g = torch.Generator().manual_seed(n)
    directions = Perturbations(D, g, torch.device("cpu"))
    fits = {"kronecker": KroneckerFit(3, TP, DA, 10**6), "lowrank": LowRankFit(structured("lowrank")[0].matrices.U)}
    for name, fit in fits.items():
        truth = structured(name)[1][:3]
        for G in truth:
            dx = 0.1 * torch.cat([directions.draw(n // 2), directions.draw(n - n // 2)])
            torch.testing.assert_close(fit.add(dx, dx @ G, 0.0), G, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(fit.result().explicit(), truth, atol=2e-4, rtol=2e-4)
    found = fits["kronecker"].result()  # two terms, and at most rounding beside them
    size = found.T.square().sum((0, 1, 2)).sqrt() * found.A.square().sum((0, 1, 3)).sqrt()
    assert float(size[2:].sum()) < 1e-3 * float(size[:2].sum())


def test_nearest_structures_are_the_nearest():
    """No matrix of the structure that is a little different is nearer: the residual is orthogonal to the structure."""
    G = torch.randn(D, D, generator=torch.Generator().manual_seed(0))
    T, A = nearest_kronecker(G, TP, noise=0.0, terms=2)
    rest = (G - recompose(T, A)).view(TP, DA, TP, DA)
    for r in range(2):
        torch.testing.assert_close(torch.einsum("satc,ac->st", rest, A[:, r]), torch.zeros(TP, TP), atol=1e-4, rtol=0)
        torch.testing.assert_close(torch.einsum("satc,ts->ac", rest, T[..., r]), torch.zeros(DA, DA), atol=1e-4, rtol=0)
    U = structured("lowrank")[0].matrices.U
    c, S = in_subspace(G, U, noise=0.0)
    rest = G - c * torch.eye(D) - U @ S @ U.T
    torch.testing.assert_close(U.T @ rest @ U, torch.zeros(5, 5), atol=1e-5, rtol=0)
    assert abs(float(rest.trace())) < 1e-4


def test_perturbations_cover_all_directions_evenly():
    directions = Perturbations(D, torch.Generator().manual_seed(0), torch.device("cpu"))
    many = torch.stack([directions.draw(D) for _ in range(4000)])
    for dx in many[:5]:
        torch.testing.assert_close(dx.T @ dx, D * torch.eye(D), atol=1e-4, rtol=1e-4)
    assert directions.draw(2 * D + 5).shape == (2 * D + 5, D)
    # each row alone: mean 0, covariance I; the standard errors are 1 / sqrt(4000) = 0.016 and about 0.02
    rows = many[:, 0]
    assert float(rows.mean(0).abs().max()) < 0.08
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(D), atol=0.12, rtol=0)


def test_the_noise_of_an_estimate_is_what_it_says():
    """Pairs whose gain differs from chain to chain: the error of the mean is the stated one."""
    g = torch.Generator().manual_seed(0)
    truth, found = torch.randn(D, D, generator=g), []
    directions = Perturbations(D, g, torch.device("cpu"))
    for _ in range(60):
        each = truth + 0.5 * torch.randn(6 * D, D, D, generator=g)
        dx = torch.cat([directions.draw(3 * D), directions.draw(3 * D)])
        found.append(estimate(dx, (dx[:, None] @ each).squeeze(1), 0.0))
    error = torch.stack([e.G - truth for e in found]).square().mean().sqrt()
    stated = torch.tensor([e.noise for e in found]).square().mean().sqrt()
    assert 0.8 < float(error / stated) < 1.25


def test_an_estimate_is_symmetric_where_only_noise_is_not():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(D, D, generator=g)
    directions, odd = Perturbations(D, g, torch.device("cpu")), []
    for truth in (root @ root.T / D, root):
        dx = torch.cat([directions.draw(3 * D), directions.draw(3 * D)])
        dm = dx @ truth + 2 * torch.randn(dx.shape, generator=g)
        least = (dx.T @ dm) / len(dx)
        G = estimate(dx, dm, 0.0).G
        odd.append(float((G - G.T).norm() / (least - least.T).norm()))
    assert odd[0] < 0.5
    assert odd[1] > 0.8


def test_shrinking_takes_noise_out():
    g = torch.Generator().manual_seed(0)
    signal = 3 * torch.outer(torch.randn(40, generator=g), torch.randn(25, generator=g))
    noise = 0.7 * torch.randn(40, 25, generator=g)
    u, s, vh = torch.linalg.svd(signal + noise, full_matrices=False)
    shrunk = shrink(s, (40, 25), 0.7)
    assert int((shrunk > 0).sum()) == 1
    best = float((((u * shrunk) @ vh) - signal).norm())
    assert best < float((s[0] * torch.outer(u[:, 0], vh[0]) - signal).norm())
    assert int((shrink(torch.linalg.svdvals(noise), (40, 25), 0.75) > 0).sum()) == 0
    assert torch.equal(shrink(s, (40, 25), 0.0), s)


TWO_MODES = two_modes(6, seed=5)
SCHEDULE = Schedule.from_diffusers({"num_train_timesteps": 12, "beta_schedule": "squaredcos_cap_v2",
                                    "prediction_type": "epsilon", "clip_sample": False})  # fmt: skip


@functools.cache
def sequential() -> torch.Tensor:
    torch.manual_seed(1)
    return sample_ddpm(TWO_MODES.denoiser(SCHEDULE), SCHEDULE, torch.randn(60_000, 3, 2)).x0.flatten(1)


@pytest.mark.parametrize("structure", ["kronecker", "lowrank"])
def test_structured_gains_keep_the_law(structure):
    """Gains of few pairs (poor on purpose) beside the sequential sampler, on two modes with chunks of 3 x 2.

    With 40,000 against 60,000 a KS distance of 0.018 is seen.
    """
    denoise = TWO_MODES.denoiser(SCHEDULE)
    gains = calibrate(denoise, SCHEDULE, (20, 3, 2), structure=structure, generator=torch.Generator().manual_seed(0))
    assert gains.structure == structure
    torch.manual_seed(2)
    drafter = Picard(memory=1, gains=gains)
    ours = sample_speculative(denoise, SCHEDULE, torch.randn(40_000, 3, 2), drafter=drafter, window=8).x0.flatten(1)
    assert_same_law(ours, sequential(), TWO_MODES)
