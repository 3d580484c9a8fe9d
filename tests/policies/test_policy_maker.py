"""Chunks for a loop: what is asked for is what is drawn."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from tiny_policy import CAMERAS, obs_for, tiny_policy

from diffpolicy_spec import Deadline, RuntimeConfig, SamplerConfig, draw_noise
from diffpolicy_spec.control import PlanRequest
from diffpolicy_spec.policies import ObservationError
from diffpolicy_spec.policies.maker import PolicyMaker, open_policy, runtime_config, sampler_config
from diffpolicy_spec.policies.reload import WatchedPolicy

DDIM = SamplerConfig("ddim", 6)


def request(policy, number: int = 0, seed: int | None = 0, **options) -> PlanRequest:
    obs = {key: value[0] for key, value in obs_for(policy.config, 1, seed=number).items()}
    return PlanRequest(number, options.pop("obs", obs), time.monotonic(), seed=seed, **options)


@pytest.mark.parametrize("changes", [{}, CAMERAS])
def test_a_chunk_is_what_the_policy_predicts(changes: dict):
    policy = tiny_policy(**changes)
    maker = PolicyMaker(policy)
    plan = maker.make(request(policy, 5, seed=3))
    output = policy.predict_action(obs_for(policy.config, 1, seed=5), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(torch.from_numpy(plan.actions), output.action_pred[0, 1:].double())
    assert plan.actions.shape == (15, 10)
    assert plan.id == 5
    assert plan.exact
    assert plan.policy == maker.info.policy
    stats = output.sample.stats
    assert (plan.cost.calls, plan.cost.evaluations) == (int(stats.calls), int(stats.evaluations))
    assert (plan.cost.accepted, plan.cost.rejected) == (int(stats.accepted), int(stats.rejected))
    assert 0 < plan.cost.latency_ms < 60_000
    assert maker.poll() == ()


def test_chunks_without_a_seed_are_all_different():
    policy = tiny_policy()
    maker, other = PolicyMaker(policy, policy.bind(DDIM)), PolicyMaker(policy, policy.bind(DDIM))
    drawn = [m.make(request(policy, seed=None)).actions for m in (maker, maker, other)]
    assert not np.allclose(drawn[0], drawn[1])
    assert not np.allclose(drawn[0], drawn[2])


def test_drafts_come_from_the_chunk_before_but_never_from_its_own_noise(monkeypatch):
    policy = tiny_policy()
    maker, given = PolicyMaker(policy), []
    predict = policy.predict_action

    def spy(obs, **options):
        given.append(options["previous_plan"])
        return predict(obs, **options)

    monkeypatch.setattr(policy, "predict_action", spy)
    for seed in (1, 2, 2, None, None):
        maker.make(request(policy, seed=seed))
    assert [plan is None for plan in given] == [True, False, True, False, False]


def test_deadlines_and_steps_are_the_requests():
    policy = tiny_policy()
    maker = PolicyMaker(policy, finish_steps=3)
    now = time.monotonic()
    plans = [maker.make(request(policy, deadline=d, finish_steps=n)) for d, n in ((now, None), (now, 2), (1e12, 2))]
    assert [plan.exact for plan in plans] == [False, False, True]
    assert [plan.cost.calls for plan in plans[:2]] == [3, 2]
    assert all(np.isfinite(plan.actions).all() for plan in plans)


def test_committed_actions_are_continued():
    policy = tiny_policy()
    committed = np.random.default_rng(0).normal(1, 0.2, size=(4, 10))
    plan = PolicyMaker(policy).make(request(policy, committed=committed))
    np.testing.assert_allclose(plan.actions[:4], committed, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_is_raised_and_the_next_chunk_is_made():
    policy = tiny_policy()
    maker = PolicyMaker(policy, policy.bind(DDIM))
    good = request(policy)
    with pytest.raises(ObservationError, match="NaN"):
        maker.make(request(policy, obs={**good.obs, "object": np.full((2, 10), np.nan)}))
    with pytest.raises(ObservationError, match="lack"):
        maker.make(request(policy, obs={"object": good.obs["object"]}))
    with pytest.raises(ValueError, match="committed"):
        maker.make(request(policy, committed=np.zeros((99, 10))))
    assert maker.make(good).exact


def test_a_watched_policy_is_followed(tmp_path):
    tiny_policy(0).save(tmp_path / "policy")
    watched = WatchedPolicy(tmp_path / "policy", sampler=DDIM, settle=0.0, look_every=0.0)
    maker = PolicyMaker(watched)
    maker.make(request(watched.policy))
    tiny_policy(1).save(tmp_path / "policy")
    end, told = time.monotonic() + 30, ()
    while not told:
        told = maker.poll()
        assert time.monotonic() < end
    assert [t.kind for t in told] == ["policy_swapped"]
    plan = maker.make(request(watched.policy))
    assert plan.policy == maker.info.policy == watched.info.policy
    (tmp_path / "policy" / "config.json").write_text("{")
    told = ()
    while not told:
        told = maker.poll()
        assert time.monotonic() < end
    assert [t.kind for t in told] == ["policy_refused"]
    assert "config.json" in told[0].message


@pytest.mark.parametrize("mode", ["eager", "static"])
def test_a_checkpoint_is_opened_warm(tmp_path, mode: str):
    tiny_policy(0).save(tmp_path / "policy")
    sampler = {"name": "mine", "method": "speculative", "options": {"window": 16}, "num_inference_steps": None}
    maker = open_policy(tmp_path / "policy", sampler=sampler, runtime={"mode": mode}, chunks=1, inpainted=True)
    assert maker.info.sampler == "speculative, 100 steps, window 16"
    assert maker.info.policy.startswith("policy ")
    assert maker._policy.runtime.mode == mode
    assert maker.make(request(maker._policy, committed=np.ones((2, 10)))).exact


def test_samplers_and_runtimes_are_read_as_config_files_have_them():
    assert sampler_config(None) is None
    assert sampler_config(DDIM) is DDIM
    read = sampler_config({"method": "ddim", "num_inference_steps": 6, "runtime": {"mode": "static"}})
    assert read == SamplerConfig("ddim", 6, runtime=RuntimeConfig("static"))
    assert runtime_config(None) == RuntimeConfig()
    with pytest.raises(ValueError, match=r"sampler: .*steps"):
        sampler_config({"method": "ddim", "steps": 6})
    with pytest.raises(ValueError, match=r"runtime: .*way"):
        runtime_config({"way": "eager"})


def test_a_chunk_that_is_late_is_near_the_exact_one():
    """The same noise, finished after most of the chain: the result is that of the chain, nearly."""
    policy = tiny_policy()
    obs, sampler = obs_for(policy.config, 1), policy.bind(SamplerConfig("ddpm"))
    noise = draw_noise((1, 16, 10), sampler.schedule, torch.Generator().manual_seed(0))
    exact = policy.predict_action(obs, sampler=sampler, noise=noise)

    class Clock:
        calls = 0

        def __call__(self):
            self.calls += 1
            return float(self.calls)

    late = policy.predict_action(obs, sampler=sampler, noise=noise, deadline=Deadline(88.0, 4, Clock()))
    assert late.sample.stats.finished_at.item() > 70
    early = policy.predict_action(obs, sampler=sampler, noise=noise, deadline=Deadline(-1.0, 4, Clock()))
    assert early.sample.stats.finished_at.item() == 0
    far, near = ((p.plan - exact.plan).square().mean().sqrt() for p in (early, late))
    assert near < 0.5 * far
