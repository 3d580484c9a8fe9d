"""The checkpoints that come with the package."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import diffpolicy_spec
from diffpolicy_spec.checkpoints import CheckpointError, shipped_names
from diffpolicy_spec.checkpoints.shipped import SHIPPED, resolve
from diffpolicy_spec.envs.tasks import get_task
from diffpolicy_spec.eval.episode_table import read_stores
from diffpolicy_spec.samplers import SamplerConfig


def lift_observation(batch=2):
    """The gripper above a cube: values that occur in Lift."""
    step = {
        "object": [0.01, -0.02, 0.82, 0.0, 0.0, 0.1, 0.995, 0.02, 0.01, -0.15],
        "robot0_eef_pos": [-0.08, 0.0, 0.97],
        "robot0_eef_quat": [0.998, -0.01, 0.06, 0.0],
        "robot0_gripper_qpos": [0.0208, -0.0208],
    }
    return {key: torch.tensor(value).expand(batch, 2, -1) for key, value in step.items()}


def can_observation():
    """The can held above the left bin's floor, on its way up."""
    return {
        "object": [0.0, 0.0, 0.018, 0.70, 0.71, 0.0, 0.0, 0.05, -0.30, 0.92, 0.0, 0.0, 0.3, 0.954],
        "robot0_eef_pos": [0.05, -0.30, 0.94],
        "robot0_eef_quat": [0.998, -0.01, 0.06, 0.0],
        "robot0_gripper_qpos": [0.025, -0.025],
    }


def square_observation():
    """The nut held high, half-way to the peg, its handle towards +y."""
    return {
        "object": [0.0, -0.06, 0.0, 1.0, 0.0, 0.0, 0.0, 0.06, 0.15, 0.99, 0.0, 0.0, 0.707, 0.707],
        "robot0_eef_pos": [0.06, 0.21, 0.99],
        "robot0_eef_quat": [0.707, 0.707, 0.0, 0.0],
        "robot0_gripper_qpos": [0.0158, -0.0158],
    }


def test_the_tasks_with_experts_are_there():
    assert {"lift", "can", "square"} <= set(shipped_names())


@pytest.mark.parametrize("name", shipped_names())
def test_size_and_provenance(name):
    folder = SHIPPED / name
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 16e6
    training = json.loads((folder / "config.json").read_text())["training"]
    assert training["steps_done"] == training["settings"]["max_steps"]
    assert len(training["data"]["sha256"]) == 64


def test_lift_plans():
    policy = diffpolicy_spec.load_policy("lift")
    assert policy.config.task == "lift"
    assert policy.config.action_repr == "absolute_rot6d"
    sampler, generator = policy.bind(SamplerConfig(method="ddpm")), torch.Generator().manual_seed(0)
    out = policy.predict_action(lift_observation(), sampler=sampler, generator=generator)
    assert out.action.shape == (2, 8, 10)
    position, gripper = out.action[..., :3], out.action[..., 9]
    # Near the robot, on the way down to the cube, gripper open.
    assert (position - torch.tensor([-0.05, 0.0, 0.93])).abs().max() < 0.2
    assert (position[:, -1, 2] < 0.97).all()
    assert (gripper < -0.8).all()
    rows = out.action[..., 3:9].unflatten(-1, (2, 3))
    torch.testing.assert_close(rows @ rows.mT, torch.eye(2).expand(2, 8, 2, 2), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("name", "observation", "target"),
    [("can", can_observation(), [0.16, 0.35]), ("square", square_observation(), [0.23, 0.10])],
)
def test_can_and_square_carry_what_they_hold_to_its_place(name, observation, target):
    policy = diffpolicy_spec.load_policy(name)
    assert policy.config.task == name
    assert policy.config.obs_dims == dict(get_task(name).obs)
    obs = {key: torch.tensor(value).expand(4, 2, -1) for key, value in observation.items()}
    sampler, generator = policy.bind(SamplerConfig(method="ddpm")), torch.Generator().manual_seed(0)
    out = policy.predict_action(obs, sampler=sampler, generator=generator)
    position, gripper = out.action[..., :3], out.action[..., 9]
    assert (gripper > 0.8).all()  # it holds on
    before = (obs["robot0_eef_pos"][:, -1, :2] - torch.tensor(target)).norm(dim=-1)
    after = (position[:, -1, :2] - torch.tensor(target)).norm(dim=-1)
    assert (after < before - 0.01).all()
    rows = out.action[..., 3:9].unflatten(-1, (2, 3))
    torch.testing.assert_close(rows @ rows.mT, torch.eye(2).expand(4, 8, 2, 2), rtol=0, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("lift", 19), ("can", 16), ("square", 13)])
def test_success_over_20_unseen_episodes(name, least, tmp_path):
    """Bounds that a policy at 98, 90 and 80 % stays above with about 95 % probability; one run is always the same."""
    command = [
        *(sys.executable, "-m", "diffpolicy_spec.eval.cli", f"task={name}", f"policy={name}", "sampler=ddpm100"),
        *("num_episodes=20", "seed=100000", "num_envs=10", "video=false", f"output={tmp_path / name}"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    results = read_stores([tmp_path / name / "store"])
    (cell,) = results.cells
    episodes = results.episodes(cell)
    assert len(episodes.success) == 20
    assert episodes.success.sum() >= least


def test_lifts_draft_network_is_small_and_saves_calls():
    policy = diffpolicy_spec.load_policy("lift")
    assert sum(value.numel() * value.element_size() for value in policy.draft_network.stored().values()) <= 1e6

    def calls(corrector):
        options = {"window": "all", "corrector": corrector, "gain": False}
        sampler, generator = policy.bind(SamplerConfig(options=options)), torch.Generator().manual_seed(0)
        return policy.predict_action(lift_observation(6), sampler=sampler, generator=generator).sample.stats.calls

    with_it, without = calls(True), calls(False)
    assert int(with_it.sum()) < 0.85 * int(without.sum())


def test_names_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("lift") == resolve(Path("lift")) == SHIPPED / "lift"
    shutil.copytree(SHIPPED / "lift", tmp_path / "lift")
    assert resolve("lift") == SHIPPED / "lift"
    assert resolve("./lift") == resolve(Path("lift")) == Path("lift")
    with pytest.raises(CheckpointError, match=r"'transport' is neither .* nor a shipped policy \(shipped: .*lift"):
        diffpolicy_spec.load_policy("transport")
