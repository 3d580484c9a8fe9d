"""robomimic's .pth files: what robomimic's own code computed with them, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from upstream_checks import check_chunk, check_features, check_network, check_normalizer
from upstream_fixtures import fixture, named

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.fields import Fields
from diffpolicy_spec.checkpoints.parts import build_policy
from diffpolicy_spec.checkpoints.pickles import read_pickled
from diffpolicy_spec.checkpoints.robomimic import read_robomimic
from diffpolicy_spec.checkpoints.robomimic.actions import read_actions
from diffpolicy_spec.policies.normalizer import LinearNormalizer

# 0.5 GB when unpacked.
NAMES = [pytest.param(n, marks=pytest.mark.slow) if "full_size" in n else n for n in named("robomimic_")]


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_robomimic_computes(name, tmp_path):
    path, io, meta = fixture(name, tmp_path)
    parts = read_robomimic(path)
    policy = build_policy(parts, path)
    for check in (check_normalizer, check_features, check_network, check_chunk):
        check(policy, io)
    assert parts.origin["weights"] == meta["weights"]
    assert policy.config.task == "lift"
    assert parts.notes == ()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Fixture -> its path and payload, read once."""
    folder, read = tmp_path_factory.mktemp("robomimic"), {}

    def get(name):
        if name not in read:
            path = fixture(f"robomimic_{name}", folder)[0]
            read[name] = path, read_pickled(path)
        path, payload = read[name]
        return path, dict(payload)

    return get


def edited(payload, **changes):
    """The payload with values of its config changed; `__` leads into sections."""
    config = json.loads(payload["config"])
    for name, value in changes.items():
        *way, last = name.split("__")
        section = config
        for part in way:
            section = section.setdefault(part, {})
        section[last] = value
    return {**payload, "config": json.dumps(config)}


def read(files, name="lowdim", **changes):
    path, payload = files(name)
    return read_robomimic(path, payload=edited(payload, **changes))


def test_order_and_crop(files):
    """Features in the order of shape_metadata; crops of an odd border as robomimic rounds."""
    config = read(files, "image").config
    assert config.feature_order == (
        "agentview_image", "robot0_eef_pos", "robot0_eef_quat", "robot0_eye_in_hand_image", "robot0_gripper_qpos",
    )  # fmt: skip
    assert (config.encoder.crop, config.encoder.crop_rounding) == ((36, 36), "down")
    assert (config.encoder.keypoints, config.encoder.features, config.encoder.shared) == (32, 64, False)


def test_which_weights(files):
    path, payload = files("lowdim")
    average, trained = (read_robomimic(path, weights, payload=payload) for weights in ("ema", "nets"))
    assert (average.origin["weights"], trained.origin["weights"]) == ("ema", "nets")
    name = "mid_modules.0.blocks.0.block.0.weight"
    assert not torch.equal(average.network[name], trained.network[name])
    by_other_names = read_robomimic(path, "ema_model", payload=payload), read_robomimic(path, "model", payload=payload)
    assert torch.equal(by_other_names[0].network[name], average.network[name])
    assert torch.equal(by_other_names[1].network[name], trained.network[name])
    path, payload = files("no_ema")
    with pytest.raises(CheckpointError, match="lacks the weights asked for"):
        read_robomimic(path, "ema", payload=payload)
    with pytest.raises(CheckpointError, match="weights must be one of"):
        read_robomimic(path, "best", payload=payload)
    (told,) = read(files, "no_ema", algo__ema__enabled=True).notes
    assert "the file holds none" in told


ENCODER = "observation__encoder__rgb"
CORE = f"{ENCODER}__core_kwargs"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"algo__unet__enabled": False}, "transformer"),
        ({"observation__modalities__goal__low_dim": ["object"]}, "conditioned on 'goal'"),
        ({"observation__modalities__obs__depth": ["agentview_depth"]}, "modality 'depth'"),
        ({"observation__modalities__obs__low_dim": ["object", "nowhere"]}, "lacks nowhere"),
        ({"algo__ddpm__enabled": False}, "neither ddpm nor ddim"),
        ({"algo__ddpm__beta_schedule": "cosine"}, "beta_schedule"),
        ({"algo__ddpm__num_train_timesteps": 10**12}, "num_train_timesteps"),
        ({"algo__ddpm__num_inference_timesteps": 200}, "num_inference_timesteps"),
        ({"algo__horizon__prediction_horizon": -1}, "prediction_horizon"),
        ({"algo__horizon__action_horizon": 16}, "passes the horizon"),
        ({f"{ENCODER}__core_class": "VisualCoreLanguageConditioned"}, "core_class"),
        ({f"{CORE}__backbone_class": "R3MConv"}, "backbone_class"),
        ({f"{CORE}__backbone_kwargs__input_coord_conv": True}, "input_coord_conv"),
        ({f"{CORE}__pool_class": None}, "pool_class"),
        ({f"{CORE}__pool_class": "SpatialMeanPool"}, "pool_class"),
        ({f"{CORE}__feature_dimension": None}, "feature_dimension"),
        ({f"{CORE}__feature_dimension": 32}, "shape"),
        ({f"{CORE}__pool_kwargs__num_kp": None}, "num_kp"),
        ({f"{CORE}__pool_kwargs__output_variance": True}, "output_variance"),
        ({f"{ENCODER}__obs_randomizer_class": "Blur"}, "Blur"),
        ({f"{ENCODER}__obs_randomizer_kwargs__pos_enc": True}, "pos_enc"),
        ({f"{ENCODER}__obs_randomizer_kwargs__crop_height": 40}, "does not fit"),
        ({"observation__encoder__low_dim__core_class": "MLP"}, "MLP"),
        ({"observation__encoder__low_dim__obs_randomizer_class": "GaussianNoiseRandomizer"}, "randomizers of vectors"),
        ({"train__action_keys": ["other"]}, "lacks 'other'"),
        ({"train__action_keys": []}, "at least one action"),
        ({"observation": []}, "must be a mapping"),
    ],
)
def test_settings_that_are_refused(files, changes, told):
    path, payload = files("image")
    with pytest.raises(CheckpointError, match=told) as caught:
        build_policy(read_robomimic(path, payload=edited(payload, **changes)), path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"algo_name": "bc"}, "algorithm 'bc'"),
        ({"algo_name": 3}, "algo_name"),
        ({"config": "{"}, "not valid JSON"),
        ({"config": None}, "lacks 'config'"),
        ({"config": "[" * 100_000}, "not valid JSON"),
        ({"shape_metadata": {}}, "all_shapes"),
        ({"shape_metadata": {"all_shapes": {"object": [10**9]}, "ac_dim": 7}}, "lacks robot0_eef_pos"),
        ({"model": {}}, "lacks the weights"),
        ({"model": {"nets": {"policy.noise_pred_net.x": 1.0}}}, "is not a tensor"),
        ({"model": {"nets": {}}}, "no U-Net"),
        ({"action_normalization_stats": {"actions": {"scale": [[1.0]], "offset": [[0.0]]}}}, "1 dimensions"),
        ({"action_normalization_stats": {"actions": {"scale": [[0.0] * 7], "offset": [[0.0] * 7]}}}, "not zero"),
        ({"action_normalization_stats": {"actions": {"scale": [[1.0] * 7]}}}, "lacks 'offset'"),
        ({"action_normalization_stats": {"actions": {"scale": "no", "offset": [[0.0] * 7]}}}, "array of numbers"),
        ({"obs_normalization_stats": {}}, "lacks 'object'"),
        ({"obs_normalization_stats": {"object": {"scale": [[float("nan")] * 10], "offset": [[0.0] * 10]}}}, "finite"),
    ],
)
def test_damaged_payloads(files, changes, told):
    path, payload = files("lowdim")
    with pytest.raises(CheckpointError, match=told):
        build_policy(read_robomimic(path, payload={**payload, **changes}), path)


def test_statistics_of_pixels_are_refused(files):
    path, payload = files("image")
    with pytest.raises(CheckpointError, match="each pixel of agentview_image"):
        read_robomimic(path, payload={**payload, "obs_normalization_stats": {"agentview_image": {}}})


def test_a_tensor_that_does_not_belong(files):
    path, payload = files("lowdim")
    nets = dict(payload["model"]["ema"])
    nets["policy.value.weight"] = next(iter(nets.values()))
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'policy\.value\.weight'"):
        read_robomimic(path, payload={**payload, "model": {"ema": nets}})


def test_randomizers_of_training(files):
    """What they do in training only is told and left out; several may stand in a list."""
    kwargs = [{}, {"crop_height": 36, "crop_width": 36, "num_crops": 4}, None]
    classes = ["ColorRandomizer", "CropRandomizer", None]
    changes = {f"{ENCODER}__obs_randomizer_class": classes, f"{ENCODER}__obs_randomizer_kwargs": kwargs}
    parts = read(files, "image", **changes)
    assert parts.config.encoder.crop == (36, 36)
    notes = " ".join(parts.notes)
    assert "ColorRandomizer" in notes
    assert "num_crops" in notes


def test_fewer_ddpm_steps_are_told_of(files):
    parts = read(files, algo__ddpm__num_inference_timesteps=20)
    assert parts.config.num_inference_steps == 20
    assert "20 of 100" in parts.notes[0]


def test_groups_of_another_unet(files):
    """Their number leaves no trace in the weights: robomimic has 8, a fork with other sizes what its settings say."""
    parts = read(files, algo__unet__n_groups=4)
    assert parts.config.unet.n_groups == 4
    assert "n_groups" in parts.notes[0]
    assert read(files).config.unet.n_groups == 8


def test_without_statistics(files):
    """Before robomimic stored them, actions had to be in [-1, 1]."""
    path, payload = files("lowdim")
    del payload["action_normalization_stats"], payload["obs_normalization_stats"]
    parts = read_robomimic(path, payload=payload)
    assert parts.normalizer.fields("action")["scale"].eq(1).all()
    assert parts.normalizer.fields("object")["offset"].eq(0).all()
    assert "action_normalization_stats" in parts.notes[0]


DELTA = {"controller_configs": {"type": "OSC_POSE", "control_delta": True}}
ABSOLUTE = {"controller_configs": {"type": "OSC_POSE", "control_delta": False}}
PARTS = {"right": {"input_type": "absolute", "type": "OSC_POSE"}, "base": {"input_type": "delta", "type": "JOINT"}}
COMPOSITE = {"controller_configs": {"type": "BASIC", "body_parts": PARTS}}
ROT6D = {"format": "rot_6d", "convert_at_runtime": "rot_axis_angle"}


@pytest.mark.parametrize(
    ("keys", "config", "env", "expected"),
    [
        ({"actions": 7}, {}, DELTA, "delta"),
        ({"actions": 7}, {}, ABSOLUTE, "absolute"),
        ({"actions": 7}, {}, COMPOSITE, "absolute"),
        ({"actions": 14}, {}, DELTA, "delta"),
        ({"actions": 7}, {}, {}, "raw"),
        ({"actions": 7}, {}, None, "raw"),
        ({"actions": 6}, {}, DELTA, "raw"),
        ({"actions_abs": 7}, {}, {}, "absolute"),
        ({"action_dict/abs_pos": 3, "action_dict/abs_rot_6d": 6, "action_dict/gripper": 1},
         {"action_dict/abs_rot_6d": ROT6D}, {}, "absolute_rot6d"),
        ({"action_dict/abs_pos": 3, "action_dict/abs_rot_6d": 6, "action_dict/gripper": 1},
         {"action_dict/abs_rot_6d": {**ROT6D, "convert_at_runtime": "rot_euler"}}, {}, "raw"),
        ({"action_dict/gripper": 1, "action_dict/abs_pos": 3, "action_dict/abs_rot_6d": 6},
         {"action_dict/abs_rot_6d": ROT6D}, {}, "raw"),
        ({"action_dict/rel_pos": 3, "action_dict/rel_rot_6d": 6, "action_dict/gripper": 1},
         {"action_dict/rel_rot_6d": ROT6D}, ABSOLUTE, "raw"),
        ({"action_dict/abs_pos": 3, "action_dict/abs_rot_axis_angle": 3, "action_dict/gripper": 1}, {}, {}, "absolute"),
        ({"action_dict/rel_pos": 3, "action_dict/rel_rot_axis_angle": 3, "action_dict/gripper": 1}, {}, {}, "delta"),
        ({"l/abs_pos": 3, "l/abs_rot": 6, "l/grip": 1, "r/abs_pos": 3, "r/abs_rot": 6, "r/grip": 1},
         {"l/abs_rot": ROT6D, "r/abs_rot": ROT6D}, {}, "absolute_rot6d"),
    ],
)  # fmt: skip
def test_what_actions_mean(keys, config, env, expected):
    train = Fields({"action_keys": list(keys), "action_config": config}, "train")
    stats = {key: {"scale": [[2.0] * dim], "offset": [[i + 1.0] * dim]} for i, (key, dim) in enumerate(keys.items())}
    dims = sum(keys.values())
    actions = read_actions(train, stats, dims, env, "here")
    assert actions.repr == expected
    # Joined in the order of the keys; what robomimic multiplies by.
    y = torch.linspace(-1, 1, dims)
    found = LinearNormalizer({"action": actions.fields}).unnormalize("action", y)
    offsets = torch.cat([torch.full((dim,), i + 1.0) for i, dim in enumerate(keys.values())])
    torch.testing.assert_close(found, y * 2 + offsets)
    assert bool(actions.notes) == ("rot_6d" in json.dumps(config) and expected == "raw")
