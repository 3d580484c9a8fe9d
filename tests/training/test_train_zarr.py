"""dps-train from a replay buffer: a Push-T policy by command, and the commands that read the dataset again."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffpolicy_spec.checkpoints import load_policy
from diffpolicy_spec.data import DataError, write_replay_buffer
from diffpolicy_spec.envs import make_env
from diffpolicy_spec.envs.pusht_geometry import keypoints
from diffpolicy_spec.training.calibrate import draw_conditions
from diffpolicy_spec.training.moments import draw_moments

TINY = [
    "model.unet.down_dims=[8,16]", "model.unet.diffusion_step_embed_dim=8", "batch_size=16", "lr=0.003", "max_steps=60",
    "warmup_steps=5", "log_every=10", "val_every=30", "num_threads=1",
]  # fmt: skip


def record(path, lengths=(30, 22, 26)):
    """The agent goes to a block that lies still, from somewhere else each time."""
    rng = np.random.default_rng(0)
    rows = {"state": [], "keypoint": [], "action": []}
    for n in lengths:
        agent, block = rng.uniform(50, 450, 2), np.array([*rng.uniform(200, 300, 2), rng.uniform(0, 6)])
        for way in np.linspace(0, 1, n):
            here = agent + way * (block[:2] - agent)
            rows["state"].append([*here, *block])
            rows["keypoint"].append(keypoints(block))
            rows["action"].append(agent + min(way + 0.1, 1) * (block[:2] - agent))
    data = {key: np.array(values, dtype=np.float32) for key, values in rows.items()}
    write_replay_buffer(path, data, np.cumsum(lengths))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return record(tmp_path_factory.mktemp("data") / "pusht.zarr")


def train(*overrides):
    pytest.importorskip("hydra")
    command = [sys.executable, "-m", "diffpolicy_spec.training.cli", *TINY, *map(str, overrides)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "pusht"
    done = train("task=pusht_keypoints", f"dataset={store}", f"output={output}")
    assert done.returncode == 0, done.stderr
    return output


def test_what_a_run_leaves(trained):
    policy = load_policy(trained / "policy")
    assert (policy.config.task, policy.config.action_repr, policy.config.action_dim) == ("pusht_keypoints", "raw", 2)
    assert dict(policy.config.obs_dims) == {"keypoint": 18, "agent_pos": 2}
    training = json.loads((trained / "policy" / "config.json").read_text())["training"]
    assert training["dataset"] == "pusht.zarr"
    assert training["data"]["episodes"] == 2  # one of three is for validation
    losses = [json.loads(line) for line in (trained / "loss.jsonl").read_text().splitlines()]
    assert losses[-1]["train_loss"] < 0.8 * losses[0]["train_loss"]
    assert losses[-1]["val_loss"] > 0


def test_the_policy_drives_the_task(trained):
    """Actions are pixels, near those of the demonstrations."""
    policy = load_policy(trained / "policy")
    with make_env("pusht_keypoints") as env:
        obs, _ = env.reset(seed=0, options={"state": [100, 100, 300, 300, 1.0]})
        seen = {k: torch.tensor(np.array([[v, v]]), dtype=torch.float32) for k, v in obs.items()}
        chunk = policy.predict_action(seen, generator=torch.Generator().manual_seed(0))["action"][0].numpy()
        assert chunk.shape == (8, 2)
        assert (chunk > 0).all()
        assert (chunk < 512).all()
        for action in [*chunk, *[chunk[-1]] * 10]:
            obs, *_ = env.step(action)
    np.testing.assert_allclose(obs["agent_pos"], chunk[-1], atol=1.0)


def test_calibration_and_benchmarks_read_the_store_too(trained, store):
    policy = load_policy(trained / "policy")
    assert draw_conditions(policy, store, 5, "train", seed=0).shape[0] == 5
    assert draw_moments(policy, store, 5, "valid", seed=0).obs["keypoint"].shape == (5, 2, 18)
    with pytest.raises(DataError, match="not 'test'"):
        draw_conditions(policy, store, 5, "test", seed=0)


def test_state_policies_and_zip_files(tmp_path):
    store = record(tmp_path / "pusht.zip")
    done = train("task=pusht", f"dataset={store}", f"output={tmp_path / 'run'}", "max_steps=10", "train_filter=null")
    assert done.returncode == 0, done.stderr
    assert dict(load_policy(tmp_path / "run" / "policy").config.obs_dims) == {"state": 5}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=lift"], "has no 'data/object'; there are: action, keypoint, state"),
        (["task=pusht_keypoints", "action_key=keypoint"], "(30, 9, 2), expected (N, A)"),
        (["task=pusht_keypoints", "action_key=state"], "actions have 5 dimensions, the policy config says 2"),
        (["task=pusht", "dataset=nothing.zarr"], "dataset nothing.zarr does not exist"),
        (["task=pusht"], "dataset data/pusht.zarr does not exist"),
    ],
)
def test_what_does_not_fit_is_said(store, tmp_path, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)
    if "dataset" not in " ".join(overrides) and overrides != ["task=pusht"]:
        overrides = [*overrides, f"dataset={store}"]
    done = train(*overrides, f"output={tmp_path / 'run'}")
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (Path(tmp_path) / "run" / "policy").exists()
