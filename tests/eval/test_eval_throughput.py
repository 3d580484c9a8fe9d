"""benchmarks/rollouts.py measures what it says: the same steps, by the bare loop and by ours."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from diffpolicy_spec.envs.config import EnvConfig
from diffpolicy_spec.eval.workers import make_environment

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("rollouts_program", ROOT / "benchmarks" / "rollouts.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its processes find it by name
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_both_do_the_same_in_the_simulator(program, tmp_path):
    lift = EnvConfig("lift", "absolute_rot6d")
    policy, envs = program.constant("lift"), [make_environment(lift, False) for _ in range(2)]
    seeds = [program.SEED, program.SEED + 1, program.SEED + 2]
    assert program.bare(envs, policy.action, seeds, 10) == 30
    after_bare = envs[0].unwrapped.sim_state()
    kept = program.Kept(tmp_path / "store", "lift", 10)
    program.run_episodes(
        policy, None, program.LocalWorld(envs[:1]), seeds, subscribers=[program.Recorder(kept)], max_steps=10
    )
    assert kept.steps == 30
    np.testing.assert_array_equal(envs[0].unwrapped.sim_state(), after_bare)
    for env in envs:
        env.close()


def test_table(program):
    rows = [{"environments": 1, "bare": 100.0, "one": 95.0, "num_envs": 90.0, "num_workers": 96.0},
            {"environments": 2, "bare": 101.0, "num_envs": 150.0, "num_workers": 202.0}]  # fmt: skip
    text = program.table(rows, "lift")
    assert "| 1 | 100 | 95 (0.95x) | 90 (0.90x) | 96 (0.96x) |" in text
    assert "| 2 | 101 | - | 150 (1.49x) | 202 (2.00x) |" in text
