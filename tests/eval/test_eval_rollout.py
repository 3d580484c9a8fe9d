"""Rollouts on the real environment: an episode is a function of its seed, and everything is reported."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from diffpolicy_spec.eval.errors import EpisodeLostError
from diffpolicy_spec.eval.rollout import call_policy, chunk_generator, run_episodes, warm_up
from diffpolicy_spec.eval.subscribers import Recorder, Subscriber
from diffpolicy_spec.eval.worlds import LocalWorld, Lost
from diffpolicy_spec.samplers import SamplerConfig

SEEDS = [100000, 100001, 100002]
STEPS = 12  # one and a half chunks


class Trace(Subscriber):
    """Everything that happened, by seed."""

    def __init__(self):
        self.actions, self.plans, self.first, self.events = {}, {}, {}, []

    def on_episode_start(self, event):
        self.events.append(("start", event.seed))
        self.first[event.seed] = event.observation["object"]
        self.actions[event.seed], self.plans[event.seed] = [], []

    def on_chunk(self, event):
        self.events.append(("chunk", event.record.seed))
        self.plans[event.record.seed].append(event.plan)

    def on_step(self, event):
        self.events.append(("step", event.seed))
        self.actions[event.seed].append(event.action)

    def on_episode_end(self, record):
        self.events.append(("end", record.seed))


def rollout(policy, envs, seeds, config=None, max_steps=STEPS):
    trace, recorder = Trace(), Recorder()
    sampler = policy.bind(config or SamplerConfig(method="speculative"))
    run_episodes(policy, sampler, LocalWorld(envs), seeds, subscribers=[trace, recorder], max_steps=max_steps)
    return trace, recorder


@pytest.fixture(scope="module")
def reference(policy, envs):
    return rollout(policy, envs[:1], SEEDS)


def test_noise_of_a_chunk():
    def draw(seed, chunk):
        return torch.randn(4, generator=chunk_generator(seed, chunk))

    assert torch.equal(draw(3, 1), draw(3, 1))
    others = [draw(3, 1), draw(3, 2), draw(4, 1), draw(1, 3)]
    assert len({tuple(x.tolist()) for x in others}) == 4


def test_records(reference):
    _, recorder = reference
    assert [e.seed for e in recorder.episodes] == SEEDS
    assert all(e.steps == STEPS and e.chunks == 2 for e in recorder.episodes)
    assert [(c.seed, c.chunk) for c in recorder.chunks] == [(s, i) for s in SEEDS for i in range(2)]
    assert [c.call for c in recorder.chunks] == list(range(6))
    for c in recorder.chunks:
        assert c.batch == 1
        assert c.latency_ms >= c.sampler_ms >= c.network_ms > 0
        assert c.network_ms + c.draft_ms + c.verify_ms + c.other_ms == pytest.approx(c.latency_ms)
        assert 1 <= c.calls <= 11
        assert c.wasted == c.evaluations - c.calls - c.accepted
        assert sum(c.accepted_at) == c.accepted
        assert sum(c.tested_at) == c.accepted + c.rejected
        assert len(c.tested_at) == len(c.accepted_at) == 10


def test_order_of_events(reference):
    trace, _ = reference
    one = [("chunk",)] + [("step",)] * 8 + [("chunk",)] + [("step",)] * 4
    assert trace.events == [(kind, s) for s in SEEDS for (kind,) in [("start",), *one, ("end",)]]


def test_executes_the_right_part_of_the_plan(reference, policy):
    trace, _ = reference
    for seed in SEEDS:
        executed, plans = np.array(trace.actions[seed]), trace.plans[seed]
        assert all(p.shape == (16, 10) for p in plans)
        # The plan starts at the oldest observation: action To - 1 belongs to now.
        np.testing.assert_array_equal(executed[:8], plans[0][1:9])
        np.testing.assert_array_equal(executed[8:], plans[1][1:5])


def test_record_says_what_was_executed(reference):
    trace, recorder = reference
    for episode in recorder.episodes:
        executed = np.array(trace.actions[episode.seed], np.float64)
        assert episode.actions_sha == hashlib.sha256(executed.tobytes()).hexdigest()[:16]
        assert episode.wall_s > 0
    assert len({e.actions_sha for e in recorder.episodes}) == len(SEEDS)


def test_same_seed_same_episode_in_any_order(reference, policy, envs):
    before, _ = reference
    after, _ = rollout(policy, envs[:1], SEEDS[::-1])
    for seed in SEEDS:
        np.testing.assert_array_equal(before.first[seed], after.first[seed])
        np.testing.assert_array_equal(before.actions[seed], after.actions[seed])
    assert not np.array_equal(before.first[SEEDS[0]], before.first[SEEDS[1]])
    assert not np.array_equal(before.actions[SEEDS[0]], before.actions[SEEDS[1]])


def test_lockstep_uses_the_same_noise(policy, envs):
    config = SamplerConfig(method="ddpm")
    one, _ = rollout(policy, envs[:1], SEEDS, config)
    two, recorder = rollout(policy, envs, SEEDS, config)
    assert sorted(e.seed for e in recorder.episodes) == SEEDS
    assert [(c.seed, c.chunk, c.call, c.batch) for c in recorder.chunks] == [
        (100000, 0, 0, 2), (100000, 1, 1, 2), (100001, 0, 0, 2), (100001, 1, 1, 2),
        (100002, 0, 2, 1), (100002, 1, 3, 1),
    ]  # fmt: skip
    for seed in SEEDS:
        np.testing.assert_array_equal(one.first[seed], two.first[seed])
        # The first chunk of a sequential sampler differs by the batched network's rounding only.
        np.testing.assert_allclose(one.plans[seed][0], two.plans[seed][0], atol=1e-4)


def test_history_starts_with_the_first_observation(policy, envs, monkeypatch):
    seen = []
    original = policy.predict_action

    def spy(obs, **kwargs):
        seen.append((obs, kwargs["previous_plan"]))
        return original(obs, **kwargs)

    monkeypatch.setattr(policy, "predict_action", spy)
    trace, _ = rollout(policy, envs, SEEDS[:1] + SEEDS[1:2], max_steps=9)
    (first, no_plan), (second, plan) = seen
    assert tuple(first) == policy.config.obs_keys
    assert first["object"].shape == (2, 2, 10)
    np.testing.assert_array_equal(first["object"][:, 0], first["object"][:, 1])
    np.testing.assert_array_equal(first["object"][0, 0], trace.first[SEEDS[0]])
    assert not np.array_equal(second["object"][:, 0], second["object"][:, 1])
    assert no_plan is None
    assert plan.shape == (2, 16, 10)
    assert torch.isfinite(plan).all()


def test_previous_plan_is_dropped_at_reset(policy, envs, monkeypatch):
    plans = []
    original = policy.predict_action

    def spy(obs, **kwargs):
        plans.append(kwargs["previous_plan"])
        return original(obs, **kwargs)

    monkeypatch.setattr(policy, "predict_action", spy)
    rollout(policy, envs[:1], SEEDS[:2], max_steps=9)
    assert [p is None for p in plans] == [True, False, True, False]


def test_a_new_episode_beside_an_old_one_has_no_plan(policy, envs, monkeypatch):
    """Three seeds on two environments, the first of which ends early."""
    plans = []
    original = policy.predict_action

    def spy(obs, **kwargs):
        plans.append(kwargs["previous_plan"])
        return original(obs, **kwargs)

    monkeypatch.setattr(policy, "predict_action", spy)
    original_step, count = envs[0].step, [0]

    def ends_early(action):
        count[0] += 1
        observation, reward, terminated, truncated, info = original_step(action)
        return observation, reward, terminated, truncated or count[0] == 3, info

    monkeypatch.setattr(envs[0], "step", ends_early)
    _, recorder = rollout(policy, envs, SEEDS, max_steps=STEPS)
    assert {e.seed: e.steps for e in recorder.episodes} == {100000: 3, 100001: STEPS, 100002: STEPS}
    old, new = plans[1]  # the survivor keeps its place, the new episode joins behind it
    assert torch.isfinite(old).all()
    assert torch.isnan(new).all()


def observation_of(policy):
    rng = np.random.default_rng(3)
    return [{key: rng.uniform(-0.5, 0.5, size) for key, size in policy.config.obs_dims.items()}] * 2


@pytest.mark.parametrize("config", [SamplerConfig("ddpm"), SamplerConfig("speculative")], ids=["ddpm", "speculative"])
def test_a_batch_of_episodes_and_one_have_the_same_law(policy, config):
    """Chunks of 600 seeds drawn one by one, and of 600 others eight at a time, from the same observation.

    40 projections of the plan in a two-sample Kolmogorov-Smirnov test each, at a level of 1e-3 altogether. In a batch,
    chains are independent: neighbours' projections are uncorrelated (|r| sqrt(n) above 4.5 has probability 1e-5).
    """
    from scipy.stats import ks_2samp

    sampler, history = policy.bind(config), observation_of(policy)

    def plans(seeds):
        output, _ = call_policy(
            policy, sampler, [history] * len(seeds), [chunk_generator(s, 0) for s in seeds], [None] * len(seeds)
        )
        return output.plan.flatten(1).numpy()

    one = np.concatenate([plans([seed]) for seed in range(600)])
    batch = np.concatenate([plans(range(600 + i, 608 + i)) for i in range(0, 600, 8)])
    directions = np.random.default_rng(0).normal(size=(one.shape[1], 40))
    p = [ks_2samp(a, b).pvalue for a, b in zip((one @ directions).T, (batch @ directions).T, strict=True)]
    assert min(p) > 1e-3 / 40
    wrong = batch + 0.25 * batch.std(0)  # what the test is able to see
    seen = [ks_2samp(a, b).pvalue for a, b in zip((one @ directions).T, (wrong @ directions).T, strict=True)]
    assert min(seen) < 1e-3 / 40
    first = (batch @ directions[:, 0]).reshape(-1, 8)
    neighbours = np.corrcoef(first[:, :-1].ravel(), first[:, 1:].ravel())[0, 1]
    assert abs(neighbours) * np.sqrt(first[:, 1:].size) < 4.5


def test_an_episode_without_its_environment_begins_anew(reference, policy, envs):
    _, recorder_before = reference

    class Breaks(LocalWorld):
        lost = 0

        def execute(self, actions):
            answers = super().execute(actions)
            if self.lost < 2:
                self.lost += 1
                answers[0] = Lost("was killed by SIGKILL")
            return answers

    trace, recorder = Trace(), Recorder()
    sampler = policy.bind(SamplerConfig("speculative"))
    run_episodes(policy, sampler, Breaks(envs[:1]), SEEDS, subscribers=[trace, recorder], max_steps=STEPS)
    assert [e.actions_sha for e in recorder.episodes] == [e.actions_sha for e in recorder_before.episodes]
    assert [(c.seed, c.chunk) for c in recorder.chunks] == [(s, i) for s in SEEDS for i in range(2)]
    Breaks.lost = -10
    with pytest.raises(EpisodeLostError, match=r"3 processes died over the episode with seed 100000, .*SIGKILL"):
        run_episodes(policy, sampler, Breaks(envs[:1]), SEEDS, max_steps=STEPS)


def test_warm_up_leaves_nothing_behind(reference, policy, envs):
    before, _ = reference
    sampler = policy.bind(SamplerConfig(method="speculative"))
    warm_up(policy, sampler, LocalWorld(envs[:1]), seed=5, calls=2)
    after, recorder = rollout(policy, envs[:1], SEEDS[:1])
    assert len(recorder.chunks) == 2
    np.testing.assert_array_equal(before.actions[SEEDS[0]], after.actions[SEEDS[0]])
