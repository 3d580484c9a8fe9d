"""The checkpoints that come with the package."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import diffpolicy_spec
from diffpolicy_spec.checkpoints import CheckpointError, shipped_names
from diffpolicy_spec.checkpoints.shipped import SHIPPED, resolve
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


def test_lift_is_there():
    assert "lift" in shipped_names()


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
    with pytest.raises(CheckpointError, match=r"'can' is neither .* nor a shipped policy \(shipped: .*lift"):
        diffpolicy_spec.load_policy("can")
