"""Converted policies are calibrated, certified and given drafts from datasets whose keys are others than theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tiny_dataset import write_dataset
from tiny_policy import CAMERAS, OBS_DIMS, tiny_policy
from upstream_fixtures import fixture

from diffpolicy_spec import SamplerConfig, load_policy
from diffpolicy_spec.certify.cli import run as certify
from diffpolicy_spec.checkpoints.diffusion_policy import read_diffusion_policy
from diffpolicy_spec.checkpoints.parts import build_policy
from diffpolicy_spec.checkpoints.pickles import read_pickled
from diffpolicy_spec.data import DataError, observation_shapes, read_robomimic, write_replay_buffer
from diffpolicy_spec.tools.convert import convert
from diffpolicy_spec.training import bench
from diffpolicy_spec.training.calibrate import draw_conditions
from diffpolicy_spec.training.calibrate import run as calibrate
from diffpolicy_spec.training.cli import run as train
from diffpolicy_spec.training.moments import draw_moments, observe
from diffpolicy_spec.training.observations import Names, episodes_for

LEROBOT = {"observation.state": ["robot0_eef_pos", "robot0_eef_quat"], "observation.environment_state": "object"}
FEW = {"chains": 6, "perturbations": 1, "moments": 3, "timed": 2, "probes": 1, "finalists": 2, "threads": [1],
       "num_inference_steps": 6}  # fmt: skip


def settings(name, *overrides, **changes):
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        cfg = OmegaConf.to_container(compose(name, overrides=list(overrides)), resolve=True)
    return cfg | changes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """robomimic's keys, and a camera."""
    return write_dataset(tmp_path_factory.mktemp("data") / "demos.hdf5", cameras={"agentview_image": (40, 40)})


@pytest.fixture
def lerobot(tmp_path):
    """LeRobot's folder, saved by its own code, converted."""
    path, _, _ = fixture("lerobot_state_env", tmp_path / "theirs")
    convert(path, tmp_path / "lerobot", tell=lambda _: None)
    return tmp_path / "lerobot"


@pytest.fixture
def single_obs(tmp_path):
    """diffusion_policy's checkpoint, as one whose config does not name the keys that `obs` is joined of."""
    path, _, _ = fixture("dp_unet_lowdim_global", tmp_path / "theirs")
    payload = read_pickled(path)
    del payload["cfg"]["task"]["obs_keys"]
    policy = build_policy(read_diffusion_policy(path, payload=payload), path)
    assert dict(policy.config.obs_dims) == {"obs": 19}
    policy.save(tmp_path / "single")
    return tmp_path / "single"


def test_lerobots_policy_with_robomimics_keys(lerobot, dataset, tmp_path):
    given = {"checkpoint": str(lerobot), "dataset": str(dataset)}
    wanted = r"observes observation.state \(7\), observation.environment_state \(10\)"
    with pytest.raises(DataError, match=rf"{wanted}; .*demos.hdf5 gives object \(10\), .*say which are which"):
        calibrate(settings("calibrate", **given, **FEW))
    calibrate(settings("calibrate", **given, **FEW, obs_map=LEROBOT))
    policy = load_policy(lerobot)
    assert policy.bind(SamplerConfig(options={"gain": True})).drafter.gains is not None
    assert len(policy.choices) == 1
    few = {"moments": 3, "timed": 2, "num_inference_steps": 6, "output": str(tmp_path / "bench.json")}
    bench.run(settings("bench", **given, **few, obs_map=LEROBOT))
    assert (tmp_path / "bench.json").is_file()
    verdict = certify(settings("certify", "sampler.num_inference_steps=6", **given, output=str(tmp_path / "verdict"),
                               obs_map=LEROBOT, num_observations=2, chunks=50, splits=0, batch=512))  # fmt: skip
    assert verdict.observations == 2
    cfg = settings("train", draft=str(lerobot), dataset=str(dataset), obs_map={"lift": LEROBOT})  # by task, too
    cfg["distill"] |= {"hidden": 8, "depth": 1, "max_steps": 4, "rounds": 2, "chains": 3, "batch_size": 16}
    train(cfg)
    assert load_policy(lerobot).draft_network is not None


def test_what_is_joined_is_joined_in_the_order_that_is_told(lerobot, dataset):
    policy = load_policy(lerobot)
    read = read_robomimic(dataset, OBS_DIMS, filter_key="train")
    for order in (LEROBOT["observation.state"], LEROBOT["observation.state"][::-1]):
        episodes = episodes_for(policy, dataset, "train", Names(given={**LEROBOT, "observation.state": order}))
        assert [episode.name for episode in episodes] == [episode.name for episode in read]
        for found, stored in zip(episodes, read, strict=True):
            assert set(found.obs) == set(policy.config.obs_dims)
            expected = np.concatenate([stored.obs[key] for key in order], axis=1)
            np.testing.assert_array_equal(found.obs["observation.state"], expected)
            np.testing.assert_array_equal(found.obs["observation.environment_state"], stored.obs["object"])


def test_diffusion_policys_single_obs_is_the_tasks_keys_in_order(single_obs, dataset, tmp_path):
    calibrate(settings("calibrate", checkpoint=str(single_obs), dataset=str(dataset), choice=False, chains=6,
                       perturbations=1))  # fmt: skip
    policy = load_policy(single_obs)
    assert policy.bind(SamplerConfig(options={"gain": True})).drafter.gains is not None
    # The same checkpoint with its keys known sees the same.
    split = load_policy(fixture("dp_unet_lowdim_global", tmp_path / "split")[0])
    assert dict(split.config.obs_dims) == OBS_DIMS
    names = Names.of(settings("calibrate"))
    assert names.joined == tuple(OBS_DIMS)
    joined = draw_conditions(policy, dataset, 20, "train", 0, names)
    torch.testing.assert_close(joined, draw_conditions(split, dataset, 20, "train", 0), atol=1e-6, rtol=1e-6)
    told = Names(given={"obs": list(OBS_DIMS)})  # without the task
    assert torch.equal(draw_conditions(policy, dataset, 20, "train", 0, told), joined)
    with pytest.raises(DataError, match=r"observes obs \(19\); .*images agentview_image \(40, 40, 3\)"):
        draw_conditions(policy, dataset, 20, "train", 0)
    with pytest.raises(DataError, match=r"observes obs \(19\)"):  # the task's, but not all of them are there
        draw_conditions(policy, dataset, 20, "train", 0, Names(joined=(*OBS_DIMS, "robot1_eef_pos")))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"state": ["object"]}, r"obs_map names state, which the policy does not observe; it observes obs \(19\)"),
        ({"obs": ["object"]}, r"'obs' has 19 dimensions, object \(10\) make 10"),
        ({"obs": ["cube"]}, r"demos.hdf5 has no observation 'cube'; it has object \(10\), robot0_eef_pos \(3\)"),
        ({"obs": ["agentview_image"]}, "has no observation 'agentview_image'"),
        ({"obs": []}, "must be a key or a list of keys"),
    ],
)
def test_wrong_maps(given, message, single_obs, dataset):
    with pytest.raises(DataError, match=message):
        draw_moments(load_policy(single_obs), dataset, 3, "train", 0, Names(given=given))


def test_maps_that_are_none_or_have_no_use(single_obs, tmp_path):
    with pytest.raises(ValueError, match="obs_map must map"):
        Names.of(settings("calibrate", obs_map="object"))
    with pytest.raises(ValueError, match="obs_map is for draft="):
        train(settings("train", obs_map=LEROBOT))
    np.savez(tmp_path / "seen.npz", obs=np.zeros((3, 2, 19), dtype=np.float32))
    with pytest.raises(ValueError, match="obs_map is for dataset="):
        certify(settings("certify", checkpoint=str(single_obs), observations=str(tmp_path / "seen.npz"),
                         obs_map={"obs": ["object"]}))  # fmt: skip


def cameras(*names):
    return tiny_policy(**CAMERAS | {"image_shapes": dict.fromkeys(names, (3, 40, 40))})


def test_cameras_by_lerobots_name_alone_or_as_told(dataset, tmp_path):
    stored = read_robomimic(dataset, OBS_DIMS, image_shapes={"agentview_image": (3, 40, 40)})
    expected = stored[1].images["agentview_image"].read([3, 4]).transpose(0, 3, 1, 2)
    for name in ("observation.images.agentview", "observation.images.agentview_image", "front"):
        policy = cameras(name)
        seen = observe(policy, episodes_for(policy, dataset, None), [(1, 4)])
        np.testing.assert_array_equal(seen[name][0].numpy(), expected)
    two = write_dataset(tmp_path / "two.hdf5", cameras={"left": (40, 40), "right": (40, 40)})
    with pytest.raises(DataError, match=r"front \(3, 40, 40\); .*images left \(40, 40, 3\), right \(40, 40, 3\)"):
        episodes_for(cameras("front"), two, None)
    (first, *_) = episodes_for(cameras("front"), two, None, Names(given={"front": "right"}))
    stored = read_robomimic(two, OBS_DIMS, image_shapes={"right": (3, 40, 40)})
    np.testing.assert_array_equal(first.images["front"].read([0]), stored[0].images["right"].read([0]))
    with pytest.raises(DataError, match="'obs/top' is not there; there are: left,"):
        episodes_for(cameras("front"), two, None, Names(given={"front": "top"}))


@pytest.mark.parametrize("suffix", [".zarr", ".zip"])
def test_replay_buffers(tmp_path, suffix):
    """Push-T as diffusion_policy stores it, for LeRobot's names of it."""
    rng, path = np.random.default_rng(0), tmp_path / f"pusht{suffix}"
    state, images = rng.uniform(0, 512, (60, 5)), rng.integers(0, 256, (60, 40, 40, 3), dtype=np.uint8)
    data = {
        "state": state,
        "action": rng.uniform(0, 512, (60, 2)),
        "img": images,
        "keypoint": rng.normal(size=(60, 9, 2)),
    }
    write_replay_buffer(path, data, [30, 60])
    assert observation_shapes(path) == {"state": (5,), "agent_pos": (2,), "keypoint": (18,), "image": (40, 40, 3)}
    shapes = {"image_shapes": {"observation.image": (3, 40, 40)}, "encoder": CAMERAS["encoder"]}
    policy = tiny_policy(obs_dims={"observation.state": 2}, action_repr="raw", **shapes)
    names = Names.of(settings("calibrate", "task=pusht_image"))
    episodes = episodes_for(policy, path, None, names)
    np.testing.assert_allclose(episodes[1].obs["observation.state"], state[30:, :2].astype(np.float32))
    np.testing.assert_array_equal(episodes[1].images["observation.image"].read([2]), images[32:33])
    assert len(draw_moments(policy, path, 4, None, 0, names)) == 4
    single = tiny_policy(obs_dims={"obs": 20}, action_repr="raw")
    names = Names.of(settings("calibrate", "task=pusht_keypoints"))
    (first, _) = episodes_for(single, path, None, names)
    np.testing.assert_allclose(first.obs["obs"][:, 18:], state[:30, :2].astype(np.float32))
    told = {"observation.state": "keypoint"}
    with pytest.raises(DataError, match=r"'observation.state' has 2 dimensions, keypoint \(18\) make 18"):
        episodes_for(policy, path, None, Names(given=told))
