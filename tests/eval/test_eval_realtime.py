"""Rollouts in a world that does not wait, on the real environment."""

from __future__ import annotations

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from diffpolicy_spec.eval.episode_table import read_stores
from diffpolicy_spec.eval.evaluate import evaluate
from diffpolicy_spec.eval.pacing import LOCKSTEP, Pace
from diffpolicy_spec.eval.rollout import run_episodes
from diffpolicy_spec.eval.subscribers import Recorder, Subscriber
from diffpolicy_spec.eval.worlds import LocalWorld
from diffpolicy_spec.samplers import SamplerConfig

SEEDS = [100000, 100001]
STEPS = 30


class Trace(Subscriber):
    """By seed: plans, the steps at which they were asked for, and executed actions."""

    def __init__(self):
        self.plans, self.asked, self.actions = {}, {}, {}

    def on_chunk(self, event):
        seed = event.record.seed
        self.plans.setdefault(seed, []).append(event.plan)
        self.asked.setdefault(seed, []).append(len(self.actions.setdefault(seed, [])))

    def on_step(self, event):
        self.actions.setdefault(event.seed, []).append(event.action)


def rollout(policy, env, pace, config="ddpm"):
    trace, recorder = Trace(), Recorder()
    sampler = policy.bind(SamplerConfig(method=config))
    run_episodes(policy, sampler, LocalWorld([env]), SEEDS, subscribers=[trace, recorder], max_steps=STEPS, pace=pace)
    return trace, recorder


@pytest.fixture(scope="module")
def waiting(policy, envs):
    return rollout(policy, envs[0], LOCKSTEP)


def test_no_latency_is_the_ordinary_rollout(policy, envs, waiting):
    _, recorder = rollout(policy, envs[0], Pace(20.0, 0.0))
    assert [e.actions_sha for e in recorder.episodes] == [e.actions_sha for e in waiting[1].episodes]
    assert {(c.waited, c.stale, c.held, c.deadline_missed) for c in recorder.chunks} == {(0, 0, 0, False)}


def test_each_step_executes_what_the_newest_plan_has_for_it(policy, envs):
    trace, recorder = rollout(policy, envs[0], Pace(20.0, 120.0))  # 3 steps late
    for seed in SEEDS:
        assert trace.asked[seed] == [0, 8, 16, 24]
        for step, action in enumerate(trace.actions[seed]):
            newest = max(i for i, asked in enumerate(trace.asked[seed]) if i == 0 or asked + 3 <= step)
            assert np.array_equal(action, trace.plans[seed][newest][1 + step - trace.asked[seed][newest]])
    assert [(c.waited, c.stale, c.held) for c in recorder.chunks] == [(0, 0, 0), *[(3, 3, 0)] * 3] * 2


def test_holding_repeats_the_last_pose(policy, envs):
    trace, recorder = rollout(policy, envs[0], Pace(20.0, 120.0, "hold", "absolute_rot6d"))
    for seed in SEEDS:
        actions = np.array(trace.actions[seed])
        for start in (8, 16, 24):
            assert (actions[start : start + 3] == actions[start - 1]).all()
            assert (actions[start + 3] != actions[start - 1]).any()
    assert [(c.held, c.deadline_missed) for c in recorder.chunks] == [(0, False), *[(3, True)] * 3] * 2


def test_a_chunk_that_is_too_late_altogether_moves_one_step(policy, envs):
    trace, recorder = rollout(policy, envs[0], Pace(50.0, 400.0))  # 20 steps late, a plan has 15
    late = recorder.chunks[1]
    assert (late.waited, late.stale, late.held, late.deadline_missed) == (20, 15, 13, True)
    actions, plans = trace.actions[SEEDS[0]], trace.plans[SEEDS[0]]
    assert np.array_equal(actions[14], plans[0][15])
    assert all(np.array_equal(actions[k], plans[0][15]) for k in range(15, 28))
    assert np.array_equal(actions[28], plans[1][15])


def test_latency_is_measured_where_none_is_given(policy, envs):
    _, recorder = rollout(policy, envs[0], Pace(1000.0), "speculative")
    later = [c for c in recorder.chunks if c.chunk > 0]
    assert [c.waited for c in later] == [int(np.ceil(round(c.latency_ms, 9))) for c in later]
    assert all(c.waited > 0 for c in later)


def config(checkpoint, output, *overrides):
    given = [f"policy={checkpoint}", f"output={output}", "num_episodes=2", "max_steps=20", "video=false",
             "report=false", *overrides]  # fmt: skip
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        return OmegaConf.to_container(compose("eval", overrides=given), resolve=True)


def test_the_command_files_each_rate_as_a_cell_and_repeats_it(checkpoint, tmp_path):
    asked = ["samplers=[ddpm100,speculative]", "realtime.control_hz=[10,20]", "realtime.latency=75"]
    results = evaluate(config(checkpoint, tmp_path / "a", *asked))
    assert [(c.sampler, c.mode, c.control_hz, c.latency, c.meanwhile) for c in results.cells.values()] == [
        (name, "realtime", hz, 75.0, "continue") for name in ("ddpm100", "speculative") for hz in (10.0, 20.0)
    ]
    for key, cell in results.cells.items():
        chunks = results.tables[key].chunks
        assert set(chunks["waited"][chunks.episode.searchsorted([0, 1])].tolist()) == {0}
        assert chunks["stale"].max() == {10.0: 1, 20.0: 2}[cell.control_hz]
    again = evaluate(config(checkpoint, tmp_path / "b", *asked))
    for key, table in results.tables.items():
        assert again.tables[key].actions_sha.tolist() == table.actions_sha.tolist()
    # The same folder takes the world that waits, too.
    both = evaluate(config(checkpoint, tmp_path / "a", "sampler=ddpm100"))
    assert len(both.cells) == len(read_stores([tmp_path / "a" / "store"]).cells) == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["realtime.control_hz=0"], "control_hz must be positive"),
        (["realtime.control_hz=fast"], r"realtime\.control_hz must be a rate"),
        (["realtime.control_hz=[]"], r"realtime\.control_hz must be a rate"),
        (["realtime.control_hz=20", "realtime.latency=soon"], r"realtime\.latency must be measured or"),
        (["realtime.control_hz=20", "realtime.latency=-1"], "latency must be zero or positive"),
        (["realtime.control_hz=20", "realtime.meanwhile=dance"], "continue, hold"),
        (["realtime.control_hz=20", "num_envs=2"], "num_envs"),
    ],
)
def test_what_cannot_be_is_named(checkpoint, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        evaluate(config(checkpoint, tmp_path / "out", *overrides))
    assert not (tmp_path / "out").exists()
