"""Policies written for LeRobot, read back. tools/upstream/check_lerobot_folder.py lets LeRobot itself load them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_policy import CAMERAS, SCHEDULER, TRANSFORMER, obs_for, tiny_config, tiny_policy
from upstream_checks import check_chunk, check_features
from upstream_fixtures import fixture

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.lerobot import lerobot_losses, read_lerobot, write_lerobot
from diffpolicy_spec.checkpoints.lerobot.write_config import lerobot_features
from diffpolicy_spec.checkpoints.parts import build_policy
from diffpolicy_spec.checkpoints.robomimic import read_robomimic
from diffpolicy_spec.noise import draw_noise
from diffpolicy_spec.policies.config import EncoderConfig, UnetConfig
from diffpolicy_spec.samplers import SamplerConfig

RAW = {"action_repr": "raw", "task": ""}
IMAGES = {
    "image_shapes": {"front": (3, 44, 48), "wrist": (3, 44, 48)},
    "encoder": EncoderConfig(crop=(36, 37), keypoints=4, features=8),
}


def read_back(policy, folder):
    """The folder's policy, and what write_lerobot told."""
    told = write_lerobot(policy, folder)
    return build_policy(read_lerobot(folder), folder), told


def joined(obs, config):
    """Observations under LeRobot's names."""
    return {
        name: torch.cat([torch.as_tensor(obs[key]) for key in keys], dim=-1)
        for name, keys in lerobot_features(config).items()
    }


def check_same(policy, other, tolerance=1e-5):
    """The same chunk from the same noise."""
    obs = obs_for(policy.config)
    sampler = policy.bind(SamplerConfig("ddpm", num_inference_steps=10))
    noise = draw_noise((3, policy.config.horizon, policy.config.action_dim), sampler.schedule)
    expected = policy.predict_action(obs, sampler=sampler, noise=noise)
    found = other.predict_action(joined(obs, policy.config), sampler=other.bind(sampler.config), noise=noise)
    torch.testing.assert_close(found.plan, expected.plan, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found.action, expected.action, atol=tolerance, rtol=tolerance)


def shaken(policy):
    """Running statistics and temperatures away from their defaults."""
    for name, buffer in policy.encoder.named_buffers():
        if name.endswith(("temperature", "running_mean", "running_var")):
            buffer += 0.5
    return policy


def test_vectors(tmp_path):
    policy = tiny_policy()
    other, told = read_back(policy, tmp_path / "out")
    assert other.config.obs_dims == {"observation.state": 9, "observation.environment_state": 10}
    check_same(policy, other)
    text = " ".join(told)
    assert "'observation.state' is robot0_eef_pos and then robot0_eef_quat and then robot0_gripper_qpos" in text
    assert "absolute_rot6d" in text
    assert "lift" in text


def test_one_vector_is_given_twice(tmp_path):
    policy = tiny_policy(obs_dims={"state": 5}, **RAW)
    other, told = read_back(policy, tmp_path / "out")
    assert other.config.obs_dims == {"observation.state": 5, "observation.environment_state": 5}
    check_same(policy, other)
    assert "weights are zero" in " ".join(told)
    changed = {"observation.state": torch.zeros(1, 2, 5), "observation.environment_state": torch.randn(1, 2, 5)}
    kept = {**changed, "observation.environment_state": torch.zeros(1, 2, 5)}
    x, t = torch.randn(1, 16, 10), torch.tensor([3])
    with torch.no_grad():
        outputs = [other.network(x, t, other.encode(obs)) for obs in (changed, kept)]
    torch.testing.assert_close(outputs[0], outputs[1])


@pytest.mark.parametrize(
    "encoder",
    [
        {},
        {"norm": "batch", "shared": True},
        {"resize": (40, 36), "crop": (36, 32), "imagenet_norm": True},
        {"resize": (40, 36), "crop": None},
        {"resize": (33, 47), "crop": (31, 44)},
        {"crop": None},
    ],
)
def test_images(tmp_path, encoder):
    """Any order of features, temperatures, ImageNet's normalisation."""
    images = {**IMAGES, "encoder": replace(IMAGES["encoder"], **encoder)}
    order = ("wrist", "robot0_eef_quat", "front", "object", "robot0_eef_pos", "robot0_gripper_qpos")
    policy = shaken(tiny_policy(feature_order=order, n_obs_steps=3, **images, **RAW))
    other, _ = read_back(policy, tmp_path / "out")
    assert other.config.obs_dims == {"observation.state": 19}
    assert list(other.config.image_shapes) == ["observation.images.front", "observation.images.wrist"]
    assert (other.config.encoder.resize, other.config.encoder.crop) == (
        policy.config.encoder.resize, policy.config.encoder.crop,
    )  # fmt: skip
    check_same(policy, other)


@pytest.mark.parametrize("name", [f"lerobot_{n}" for n in ("images_separate", "images_shared", "state_env", "ddim")])
def test_there_and_back(name, tmp_path):
    """LeRobot's own folder, read and written again: the same names, and what LeRobot computed."""
    path, io, _ = fixture(name, tmp_path)
    policy, told = read_back(build_policy(read_lerobot(path), path), tmp_path / "again")
    assert told == []
    check_features(policy, io)
    check_chunk(policy, io)
    written, given = (load_file(folder / "model.safetensors") for folder in (tmp_path / "again", path))
    assert written.keys() == given.keys()
    assert all(torch.equal(written[n], given[n]) for n in given)
    settings = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "again", path)]
    # What differs: statistics are min and max of every kind; how it was trained; what is ignored without images.
    ignored = {"normalization_mapping", "device", "drop_n_last_frames", "spatial_softmax_num_keypoints"}
    differing = {key for key in settings[1] if settings[0][key] != settings[1][key]}
    assert differing <= ignored


def test_from_another_project(tmp_path):
    """robomimic's policy in LeRobot's folder."""
    path, _, _ = fixture("robomimic_rot6d", tmp_path)
    policy = build_policy(read_robomimic(path), path)
    other, told = read_back(policy, tmp_path / "out")
    check_same(policy, other)
    assert "3e-5" in told[-1]


def test_a_chain_of_fewer_steps_and_ddim(tmp_path):
    scheduler = {**SCHEDULER, "_class_name": "DDIMScheduler", "clip_sample_range": 2.0}
    policy = tiny_policy(scheduler=scheduler, num_inference_steps=8, **RAW)
    other, _ = read_back(policy, tmp_path / "out")
    assert other.config.num_inference_steps == 8
    assert other.bind().config.method == "ddim"
    torch.testing.assert_close(other.bind().schedule.A, policy.bind().schedule.A)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (TRANSFORMER, "transformer"),
        ({"conditioning": "local"}, "local"),
        ({"conditioning": "inpainting"}, "inpainting"),
        ({"first_action": 2}, "from action"),
        ({"horizon": 18, "unet": UnetConfig((8, 16), diffusion_step_embed_dim=8)}, "divisible by 4"),
        ({"scheduler": {**SCHEDULER, "variance_type": "fixed_large"}}, "fixed_large"),
        ({"scheduler": {**SCHEDULER, "prediction_type": "v_prediction"}}, "predict"),
        (CAMERAS, "of one size"),
        ({**IMAGES, "encoder": EncoderConfig(pool="average")}, "pool 'average'"),
        ({**IMAGES, "encoder": EncoderConfig(keypoints=4, features=6)}, "6 features"),
        ({**IMAGES, "encoder": EncoderConfig(keypoints=4, features=8, resize=(40, 40), crop=(30, 36))}, "one ratio"),
        ({**IMAGES, "obs_dims": {}}, "state vector"),
    ],
)
def test_what_lerobot_has_no_place_for(tmp_path, changes, told):
    policy = tiny_policy(**changes)
    with pytest.raises(CheckpointError, match=told):
        write_lerobot(policy, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_losses_are_told():
    config = replace(IMAGES["encoder"], crop=(36, 37), random_crop_in_use=True, crop_rounding="down")
    losses = lerobot_losses(tiny_policy(**{**IMAGES, "encoder": config}))
    assert len(losses) == 2  # 48 - 37 = 11: 5.5 is 6 for LeRobot
    assert lerobot_losses(tiny_policy(**IMAGES)) == []


def test_only_a_lerobot_folder_is_replaced(tmp_path):
    policy = tiny_policy()
    policy.save(tmp_path / "native")
    with pytest.raises(FileExistsError, match="not a LeRobot policy folder"):
        write_lerobot(policy, tmp_path / "native")
    write_lerobot(policy, tmp_path / "out")
    write_lerobot(policy, tmp_path / "out")
    (tmp_path / "file").write_text("{}")
    with pytest.raises(FileExistsError):
        write_lerobot(policy, tmp_path / "file")


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ({"object": 2, "robot0_eef_pos": 3}, {"observation.state": ("robot0_eef_pos",),
                                              "observation.environment_state": ("object",)}),
        ({"keypoint": 4, "agent_pos": 2}, {"observation.state": ("agent_pos",),
                                           "observation.environment_state": ("keypoint",)}),
        ({"a": 2, "b": 3, "c": 1}, {"observation.state": ("a",), "observation.environment_state": ("b", "c")}),
        ({"robot0": 2, "robot1": 3}, {"observation.state": ("robot0",), "observation.environment_state": ("robot1",)}),
    ],
)  # fmt: skip
def test_which_vector_is_the_state(dims, expected):
    assert lerobot_features(tiny_config(obs_dims=dims)) == expected
