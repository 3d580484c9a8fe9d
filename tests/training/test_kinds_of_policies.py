"""dps-calibrate, dps-bench, dps-train draft=... and dps-certify for Transformers and policies with cameras."""

import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tiny_dataset import write_dataset
from tiny_policy import CAMERAS, SCHEDULER, TRANSFORMER, obs_for, tiny_policy

from diffpolicy_spec import SamplerConfig, load_policy
from diffpolicy_spec.certify.cli import run as certify
from diffpolicy_spec.checkpoints import CheckpointError
from diffpolicy_spec.data import DataError, read_robomimic
from diffpolicy_spec.policies import ConditioningError, EncoderConfig, ObservationError
from diffpolicy_spec.training import bench, calibrate
from diffpolicy_spec.training.draft import train_draft
from diffpolicy_spec.training.moments import draw_moments, moments_of

SHORT = {**SCHEDULER, "num_train_timesteps": 20}
SIZES = {camera: shape[1:] for camera, shape in CAMERAS["image_shapes"].items()}
KINDS = {
    "transformer": TRANSFORMER,
    "cameras": CAMERAS,
    "cameras alone": {**CAMERAS, "obs_dims": {}},
    "local": {"conditioning": "local"},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "demos.hdf5", cameras=SIZES)


def settings(name, *overrides, **changes):
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        cfg = OmegaConf.to_container(compose(name, overrides=list(overrides)), resolve=True)
    return cfg | changes


@pytest.mark.parametrize("kind", KINDS)
def test_calibrated_measured_and_certified(tmp_path, dataset, kind):
    folder = tmp_path / "policy"
    tiny_policy(scheduler=SHORT, **KINDS[kind]).save(folder)
    given = {"checkpoint": str(folder), "dataset": str(dataset)}
    few = {"moments": 4, "timed": 2, "num_inference_steps": 6, "probes": 1, "finalists": 2, "threads": [1]}
    calibrate.run(settings("calibrate", **given, **few, chains=6, perturbations=1))
    policy = load_policy(folder)
    assert policy.bind().drafter.gains is not None
    assert [choice.num_inference_steps for choice in policy.choices] == [6]
    bench.run(settings("bench", **given, moments=4, timed=2, num_inference_steps=6, output=str(tmp_path / "b.json")))
    assert len(json.loads((tmp_path / "b.json").read_text())["samplers"]) == 3
    steps = "sampler.num_inference_steps=10"
    verdict = certify(settings("certify", steps, **given, output=str(tmp_path / "c"), num_observations=2, chunks=50,
                               splits=0, batch=512))  # fmt: skip
    assert not verdict.different
    assert verdict.observations == 2


@pytest.mark.parametrize("kind", ["transformer", "cameras"])
def test_a_draft_network_is_distilled(tmp_path, dataset, kind):
    folder = tmp_path / "policy"
    tiny_policy(scheduler=SHORT, **KINDS[kind]).save(folder)
    cfg = settings("train", draft=str(folder), dataset=str(dataset))
    cfg["distill"] |= {"hidden": 8, "depth": 1, "max_steps": 4, "rounds": 2, "chains": 3, "batch_size": 16}
    train_draft(cfg)
    policy = load_policy(folder)
    sampler = policy.bind(SamplerConfig("speculative", 10, options={"drafter": "model"}))
    out = policy.predict_action(obs_for(policy.config), sampler=sampler, generator=torch.Generator().manual_seed(0))
    assert (out.sample.stats.draft_calls > 0).all()


def test_moments_have_the_images_of_their_frames(dataset):
    policy = tiny_policy(scheduler=SHORT, **CAMERAS)
    episodes = read_robomimic(dataset, policy.config.obs_dims, filter_key="train", image_shapes=CAMERAS["image_shapes"])
    drawn = draw_moments(policy, dataset, 20, "train", seed=0)
    assert drawn.obs["front"].dtype == torch.uint8
    assert drawn.obs["front"].shape == (20, 2, 3, 40, 40)
    for i in range(20):
        place = [
            (episode, int(np.argmin(np.abs(episode.obs["object"] - drawn.obs["object"][i, 1].numpy()).sum(1))))
            for episode in episodes
            if (episode.obs["object"] == drawn.obs["object"][i, 1].numpy()).all(1).any()
        ]
        (episode, frame) = place[0]
        for camera in SIZES:
            expected = episode.images[camera].read([max(frame - 1, 0), frame]).transpose(0, 3, 1, 2)
            assert np.array_equal(drawn.obs[camera][i].numpy(), expected)


def test_conditions_of_images_are_those_of_the_policy(dataset):
    policy = tiny_policy(scheduler=SHORT, **CAMERAS)
    drawn = calibrate.draw_conditions(policy, dataset, 70, "train", seed=0)
    assert drawn.shape == (70, policy.config.condition_dim)
    assert len(drawn.unique(dim=0)) > 40
    assert torch.equal(drawn[:5], calibrate.draw_conditions(policy, dataset, 5, "train", seed=0))


def test_observations_of_a_file_may_have_images(tmp_path):
    from diffpolicy_spec.certify.observations import conditions_from_file

    policy, obs = tiny_policy(**CAMERAS), obs_for(tiny_policy(**CAMERAS).config, 40)
    np.savez(tmp_path / "seen.npz", **obs)
    found = conditions_from_file(policy, tmp_path / "seen.npz", 40, seed=0)
    torch.testing.assert_close(found, policy.encode(obs), atol=1e-4, rtol=1e-4)
    np.savez(tmp_path / "blind.npz", **{key: value for key, value in obs.items() if key != "wrist"})
    with pytest.raises(ObservationError, match="lack wrist"):
        conditions_from_file(policy, tmp_path / "blind.npz", 40, seed=0)


def test_demonstrations_without_images_are_refused(tmp_path):
    blind = write_dataset(tmp_path / "blind.hdf5")
    policy = tiny_policy(scheduler=SHORT, **CAMERAS)
    with pytest.raises(DataError, match="front"):
        draw_moments(policy, blind, 4, "train", seed=0)
    with pytest.raises(DataError, match="front"):
        calibrate.draw_conditions(policy, blind, 4, "train", seed=0)
    episodes = read_robomimic(blind, policy.config.obs_dims)
    with pytest.raises(DataError, match=r"demo_0.* has no images of 'front', which the policy observes"):
        moments_of(policy, episodes, 2, seed=0)


def test_inpainting_can_be_chosen_for_and_has_no_gains(tmp_path, dataset):
    folder = tmp_path / "policy"
    tiny_policy(scheduler=SHORT, conditioning="inpainting").save(folder)
    few = {"moments": 3, "timed": 2, "num_inference_steps": 6, "probes": 1, "finalists": 2, "threads": [1]}
    given = {"checkpoint": str(folder), "dataset": str(dataset), **few}
    with pytest.raises(ConditioningError, match="gains=false finds its quickest sampler"):
        calibrate.run(settings("calibrate", **given))
    calibrate.run(settings("calibrate", **given, gains=False))
    policy = load_policy(folder)
    sampler = policy.bind(SamplerConfig("auto", 6))
    assert policy.predict_action(obs_for(policy.config), sampler=sampler).action.shape == (3, 8, 10)
    with pytest.raises(ConditioningError, match="certificates"):
        certify(settings("certify", checkpoint=str(folder), dataset=str(dataset), output=str(tmp_path / "c")))


def test_what_is_found_is_stored_beside_own_checkpoints_only(tmp_path, dataset):
    lerobot = tmp_path / "theirs"
    lerobot.mkdir()
    (lerobot / "config.json").write_text(json.dumps({"type": "diffusion"}))
    for command, name in ((calibrate.run, "checkpoint"), (train_draft, "draft")):
        cfg = settings("calibrate" if name == "checkpoint" else "train", **{name: str(lerobot)})
        with pytest.raises(CheckpointError, match=r"is lerobot's checkpoint, .*: dps-convert .*theirs outputs/theirs"):
            command(cfg)


def test_encoders_of_the_recorded_kinds():
    """A camera's share of the condition does not depend on how many observations are encoded at once."""
    policy = tiny_policy(**CAMERAS | {"encoder": EncoderConfig(norm="batch", pool="average")})
    obs = obs_for(policy.config, 70)
    alone = policy.encode({key: value[65:66] for key, value in obs.items()})
    torch.testing.assert_close(policy.encode(obs)[65:66], alone, atol=1e-4, rtol=1e-4)
