"""Windows by step: dynamic programming against all policies of a small chain; acceptance from counted rounds."""

import itertools

import numpy as np
import pytest
import torch
from tiny_policy import tiny_obs, tiny_policy

from diffpolicy_spec import SamplerConfig, draw_noise
from diffpolicy_spec.choice.acceptance import acceptance, count_tests
from diffpolicy_spec.choice.rounds import Rounds, Watched
from diffpolicy_spec.choice.windows import expected_seconds, plan_windows


def seconds_of(windows, accept, cost, k=0):
    """Expected seconds from step k on, outcome by outcome."""
    K = len(cost)
    if k == K:
        return 0.0
    rows = min(windows[k], K - k)
    total, reached = cost[rows - 1], 1.0
    for j in range(rows - 1):
        total += reached * (1 - accept[k + j, j]) * seconds_of(windows, accept, cost, k + j + 1)
        reached *= accept[k + j, j]
    return total + reached * seconds_of(windows, accept, cost, k + rows)


@pytest.mark.parametrize("seed", range(8))
def test_no_policy_is_quicker_than_the_planned_one(seed):
    rng, K = np.random.default_rng(seed), 5
    accept, cost = rng.random((K, K)) ** 0.3, np.cumsum(rng.random(K)) + 2 * rng.random()
    windows, V = plan_windows(accept, cost)
    every = itertools.product(*(range(1, K - k + 1) for k in range(K)))
    best = min(seconds_of(policy, accept, cost) for policy in every)
    assert V[0] == pytest.approx(best)
    assert seconds_of(windows, accept, cost) == pytest.approx(best)
    assert ((1 <= windows) & (windows <= K - np.arange(K))).all()


def test_expected_seconds_of_given_windows():
    rng, K = np.random.default_rng(1), 6
    accept, cost = rng.random((K, K)), np.cumsum(rng.random(K))
    for windows in ([1] * K, [3] * K, [2, 5, 1, 4, 2, 1]):
        expected = expected_seconds(np.array(windows), accept, cost)
        assert expected[0] == pytest.approx(seconds_of(windows, accept, cost))
    assert expected_seconds(np.ones(K, dtype=np.int64), accept, cost)[0] == pytest.approx(K * cost[0])


def test_windows_whose_best_is_known():
    K = 20
    always, rising = np.ones((K, K)), np.arange(1.0, K + 1)
    windows, V = plan_windows(always, np.ones(K))  # rows are free and all are accepted: one round
    assert (windows[0], V[0]) == (K, 1.0)
    windows, V = plan_windows(np.zeros((K, K)), rising)  # nothing is accepted: the second row is always lost
    assert windows.tolist() == [1] * K
    assert V[0] == K
    _, V = plan_windows(always, 10 + rising**2)  # rounds of 10 + w^2: best near w = sqrt(10), 20 = 6 x 3 + 2
    assert V[0] == 6 * 19 + 14
    # Nothing is accepted in the first half: windows open only behind it, or across its last step.
    late = np.where(np.arange(K)[:, None] < K // 2, 0.0, 1.0) * np.ones(K)
    windows, _ = plan_windows(late, 1 + 0.01 * rising)
    assert windows[: K // 2].tolist() == [1] * (K // 2)
    assert windows[K // 2] == K // 2


@pytest.fixture(scope="module")
def drawn():
    """Rounds of a real sampler beside what it reports itself."""
    policy = tiny_policy()
    sampler = policy.bind(SamplerConfig(num_inference_steps=25, options={"drafter": "nearest", "window": 6}))
    watched = Watched(sampler)
    noise = draw_noise((12, 16, 10), sampler.schedule, torch.Generator().manual_seed(0))
    output = policy.predict_action(tiny_obs(12), sampler=watched, noise=noise)
    return watched.rounds(), output.sample, policy.predict_action(tiny_obs(12), sampler=sampler, noise=noise)


def test_watching_a_sampler_changes_nothing(drawn):
    _, sample, unwatched = drawn
    torch.testing.assert_close(sample.x0, unwatched.sample.x0)


def test_rounds_seen_from_outside_are_those_the_sampler_reports(drawn):
    rounds, sample, _ = drawn
    stats = sample.stats
    assert rounds.calls.tolist() == stats.calls.tolist()
    assert rounds.evaluations.tolist() == stats.evaluations.tolist()
    assert rounds.total(rounds.committed.astype(float)).tolist() == [25] * 12
    assert 0 < int(stats.rejected.sum()) < int(rounds.calls.sum())  # both kinds of rounds are there
    tests, passes = count_tests([rounds])
    assert tests.sum(1).tolist() == stats.tested_at.sum(0).tolist()
    assert passes.sum(1).tolist() == stats.accepted_at.sum(0).tolist()
    assert (passes <= tests).all()


def test_tests_are_counted_by_distance():
    rounds = Rounds(
        chain=np.array([0, 0, 0]), start=np.array([0, 2, 5]), rows=np.array([4, 3, 1]), committed=np.array([2, 3, 1]),
        num_steps=6,
    )  # fmt: skip
    tests, passes = count_tests([rounds, rounds])
    assert {(int(k), int(i)): int(tests[k, i]) for k, i in zip(*tests.nonzero(), strict=True)} == {
        (0, 0): 2, (1, 1): 2, (2, 0): 2, (3, 1): 2
    }  # fmt: skip
    assert {(int(k), int(i)) for k, i in zip(*passes.nonzero(), strict=True)} == {(0, 0), (2, 0), (3, 1)}


def test_acceptance_is_recovered_from_counts():
    rng, K = np.random.default_rng(0), 50
    k, i = np.arange(K)[:, None], np.arange(K)
    truth = np.clip(0.98 - 0.3 * np.exp(-k / 6) - 0.06 * np.log1p(i), 0, 1)
    tests = rng.poisson(np.where(i <= k, 40 * np.exp(-i / 15), 0)).astype(float)
    estimate = acceptance(tests, rng.binomial(tests.astype(int), truth).astype(float))
    well_known = tests > 10
    assert np.abs(estimate - truth)[well_known].mean() < 0.03
    assert np.abs(estimate - truth)[well_known].max() < 0.12
    assert ((estimate > 0) & (estimate <= 1)).all()


def test_what_was_never_tested_takes_the_step_s_mean():
    tests, passes = np.zeros((30, 30)), np.zeros((30, 30))
    assert (acceptance(tests, passes) == 1).all()
    tests[:15, 0], passes[:15, 0] = 1000, 900
    tests[15:, 0], passes[15:, 0] = 1000, 300
    estimate = acceptance(tests, passes)
    np.testing.assert_allclose(estimate[3, [0, 29]], 0.9, atol=0.02)
    np.testing.assert_allclose(estimate[25, [0, 29]], 0.3, atol=0.02)
