"""Drafters: what each drafts, what it costs, what it refuses. That none of it moves the law: test_exactness.py."""

from __future__ import annotations

import pytest
import torch
from closed_form import two_modes
from windows import window_at

from diffpolicy_spec import Nearest, Parent, Picard, Schedule, draw_noise, sample_speculative
from diffpolicy_spec.drafting import Model
from diffpolicy_spec.verification import VERIFIERS, verify_steps

CONFIG = {"num_train_timesteps": 40, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
SCHEDULE = Schedule.from_diffusers(CONFIG)
TARGET = two_modes(3)
DENOISE = TARGET.denoiser(SCHEDULE)
TABLES = SCHEDULE.on("cpu")


def noise_of(batch: int, seed: int = 0):
    return draw_noise((batch, 3, 1), SCHEDULE, torch.Generator().manual_seed(seed))


def speculate(drafter, batch: int = 1, **options):
    options = {"window": 8, "generator": torch.Generator().manual_seed(1)} | options
    return sample_speculative(DENOISE, SCHEDULE, noise_of(batch), drafter=drafter, **options).stats


def first_window(batch: int = 2, rows: int = 6, opening: bool = True):
    g = torch.Generator().manual_seed(3)
    window = window_at([10] * batch, [rows] * batch, SCHEDULE.num_steps, opening=opening)
    return window, torch.randn(batch, 3, generator=g), torch.randn(batch, rows, 3, generator=g)


def step(draft, xi, i: int) -> torch.Tensor:
    """The state after row i, by the chain's own step."""
    k = 10 + i
    return TABLES.A[k] * draft.m[:, i] + TABLES.B[k] * draft.x[:, i] + TABLES.sigma[k] * xi[:, i]


@pytest.mark.parametrize("drafter", [
    Nearest(), Parent(), Nearest("drift"), Parent("drift"), Model(), Picard(memory=0), Picard(corrector=True),
], ids=str)  # fmt: skip
def test_drafted_states_are_the_chains_steps_with_the_drafted_x0(drafter):
    """Whatever m is: x_{i+1} = A m_i + B x_i + sigma xi_i, to the last drafted row."""
    window, x, xi = first_window()
    prior = torch.full((2, 3), 0.2)
    draft = drafter.start(TABLES, prior, lambda w, states, steps: states.tanh()).draft(window, x, xi)
    assert torch.equal(draft.x[:, 0], x)
    for i in range(5):
        torch.testing.assert_close(draft.x[:, i + 1], step(draft, xi, i), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("drafter", [
    Nearest(), Nearest("drift"), Model(), Picard(memory=3), Picard(memory=0, corrector=True, sweeps=2),
], ids=str)  # fmt: skip
def test_a_draft_does_not_depend_on_its_own_noise_or_a_later_one(drafter):
    """Also in a second round, when there are evaluations to move along."""
    running = drafter.start(TABLES, torch.zeros(2, 3), lambda w, states, steps: states.tanh())
    for opening in (True, False):
        window, x, xi = first_window(opening=opening)
        first = running.draft(window, x, xi)
        for i in range(6):
            other = xi.clone()
            other[:, i:] = 9.0
            moved = running.draft(window, x, other)
            assert torch.equal(moved.m[:, : i + 1], first.m[:, : i + 1])
            assert torch.equal(moved.x[:, : i + 1], first.x[:, : i + 1])
        m = first.x.cos()
        running.observe(window, first, m, verify_steps(TABLES, window, first, m, xi, torch.full((2, 6), 0.5)))


def test_a_frozen_drift_repeats_the_mean_increment():
    """x_{i+1} - x_i - sigma xi_i is the same for all rows: mu(x) - x at the state evaluated last."""
    window, x, xi = first_window()
    running = Nearest("drift").start(TABLES, torch.zeros(2, 3), None)
    first = running.draft(window, x, xi)
    m = first.x.cos()
    outcome = verify_steps(TABLES, window, first, m, xi, torch.full((2, 6), 0.5))
    running.observe(window, first, m, outcome)
    b, row = torch.arange(2), outcome.freshest
    k = 10 + row
    drift = TABLES.A[k, None] * m[b, row] + (TABLES.B[k, None] - 1) * first.x[b, row]
    second = running.draft(window, x, xi)
    sigma = TABLES.sigma[window.steps].unsqueeze(-1)
    increments = (second.x[:, 1:] - second.x[:, :-1]) - (sigma * xi)[:, :-1]
    torch.testing.assert_close(increments, drift.unsqueeze(1).expand_as(increments), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_a_model_costs_a_draft_call_for_every_drafted_step(verifier: str):
    stats = speculate(Model(), verifier=VERIFIERS[verifier], draft=lambda x, t, c: 0.5 * x.tanh())
    assert int(stats.drafted) > 0
    assert torch.equal(stats.draft_calls, stats.drafted)


@pytest.mark.parametrize(("sweeps", "first_sweeps"), [(1, 2), (2, 6), (3, 1)])
def test_a_corrector_costs_its_sweeps_and_one_a_round(sweeps: int, first_sweeps: int):
    drafter = Picard(corrector=True, sweeps=sweeps, first_sweeps=first_sweeps)
    stats = speculate(drafter, draft=lambda x, t, c: 0.5 * x.tanh())
    rounds = int(stats.calls)
    assert rounds > 1
    assert int(stats.draft_calls) == (rounds - 1) * (sweeps + 1) + first_sweeps + 1


@pytest.mark.parametrize("drafter", [Parent(), Nearest(), Picard()])
def test_drafters_without_a_draft_network_do_not_call_it(drafter):
    def refuse(x, t, chain):
        raise AssertionError("called")

    assert int(speculate(drafter, batch=4, draft=refuse).draft_calls.sum()) == 0


def test_a_perfect_draft_network_needs_one_call_a_window():
    for drafter in (Model(), Picard(corrector=True, sweeps=8, first_sweeps=8)):
        stats = speculate(drafter, batch=50, draft=DENOISE)
        assert float(stats.calls.double().mean()) < 5.2  # 40 steps, 8 rows a round
        assert float(stats.acceptance_rate.nanmean()) > 0.99


def test_a_better_draft_network_saves_calls():
    wrong = two_modes(3, weight=0.5, distance=1.0).denoiser(SCHEDULE)
    noise = {"poor": lambda x, t, c: torch.zeros_like(x), "near": wrong}
    for drafter in (Model(), Picard(memory=1, corrector=True)):
        calls = {name: float(speculate(drafter, 200, draft=d).calls.double().mean()) for name, d in noise.items()}
        assert calls["near"] < calls["poor"] - 0.5


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_draft_network_that_is_never_finite_costs_calls_only(value: float):
    for drafter in (Model(), Picard(corrector=True)):
        sample = sample_speculative(DENOISE, SCHEDULE, noise_of(20), drafter=drafter, window=8,
                                    draft=lambda x, t, c: torch.full_like(x, value))  # fmt: skip
        assert bool(torch.isfinite(sample.x0).all())
        assert int(sample.stats.calls.max()) <= SCHEDULE.num_steps


def test_a_draft_network_of_the_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"the draft network returned \(1, 2, 1\) for rows \(1, 3, 1\)"):
        speculate(Model(), draft=lambda x, t, c: x[:, :2])


@pytest.mark.parametrize("drafter", [Model(), Picard(corrector=True)])
def test_a_missing_draft_network_is_refused_and_the_message_says_how_to_get_one(drafter):
    with pytest.raises(ValueError, match="dps-train draft=PATH, or pass draft="):
        speculate(drafter)


@pytest.mark.parametrize("make", [
    lambda: Nearest("x1"), lambda: Parent("increment"), lambda: Picard(memory=-1), lambda: Picard(sweeps=0),
    lambda: Picard(first_sweeps=0), lambda: Picard(ridge=0.0),
])  # fmt: skip
def test_options_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match=r"frozen draft has form x0 or drift|Picard needs"):
        make()
