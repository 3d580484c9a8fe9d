"""LeRobot's folders: what LeRobot's own code computed with them, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from upstream_checks import check_chunk, check_features, check_network, check_normalizer
from upstream_fixtures import fixture, named

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.lerobot import read_lerobot
from diffpolicy_spec.checkpoints.parts import build_policy

PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"


@pytest.mark.parametrize("name", named("lerobot_"))
def test_it_computes_what_lerobot_computes(name, tmp_path):
    path, io, _ = fixture(name, tmp_path)
    parts = read_lerobot(path)
    policy = build_policy(parts, path)
    for check in (check_normalizer, check_features, check_network, check_chunk):
        check(policy, io)
    assert policy.config.action_repr == "raw"
    assert parts.origin["format"] == "lerobot"
    assert parts.notes == ()


@pytest.fixture(scope="module")
def newer_once(tmp_path_factory):
    return fixture("lerobot_state_env", tmp_path_factory.mktemp("newer"))


@pytest.fixture(scope="module")
def older_once(tmp_path_factory):
    return fixture("lerobot_old_layout", tmp_path_factory.mktemp("older"))


@pytest.fixture
def newer(newer_once, tmp_path):
    """A copy of a folder with processor files, and its io."""
    return shutil.copytree(newer_once[0], tmp_path / "policy"), newer_once[1]


@pytest.fixture
def older(older_once, tmp_path):
    """A copy of a folder with statistics inside the weights, and its io."""
    return shutil.copytree(older_once[0], tmp_path / "policy"), older_once[1]


def edit(file, change):
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def edit_tensors(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def state_file(folder, name=PRE):
    return next(folder.glob(f"{name.removesuffix('.json')}_step_*.safetensors"))


def step(config, kind):
    return next(s for s in config["steps"] if s["registry_name"] == kind)


def test_keys_and_order(tmp_path):
    """Per step: the state, images in the config's order, the environment's state."""
    path, _, _ = fixture("lerobot_images_separate", tmp_path)
    config = read_lerobot(path).config
    assert config.obs_dims == {"observation.state": 7, "observation.environment_state": 4}
    assert list(config.image_shapes) == ["observation.images.top", "observation.images.wrist"]
    assert config.feature_order == (
        "observation.state", "observation.images.top", "observation.images.wrist", "observation.environment_state",
    )  # fmt: skip
    assert (config.encoder.norm, config.encoder.resize, config.encoder.crop) == ("batch", (40, 40), (36, 36))
    assert not config.encoder.shared


def test_a_compiled_network_and_leftover_statistics(newer):
    folder, io = newer

    def compiled(tensors):
        for name in [n for n in tensors if n.startswith("diffusion.unet.")]:
            tensors[name.replace("diffusion.unet.", "diffusion.unet._orig_mod.")] = tensors.pop(name)
        tensors["normalize_inputs.buffer_observation_state.min"] = torch.full((7,), float("inf"))

    edit_tensors(folder / "model.safetensors", compiled)
    policy = build_policy(read_lerobot(folder), folder)
    check_network(policy, io)
    check_normalizer(policy, io)


def test_renamed_observations(newer):
    """What the preprocessor renames comes in under its old name."""
    folder, io = newer
    rename = {"joints": "observation.state", "unused": "something.else"}
    edit(folder / PRE, lambda c: step(c, "rename_observations_processor")["config"].update(rename_map=rename))
    policy = build_policy(read_lerobot(folder), folder)
    assert policy.config.obs_keys == ("joints", "observation.environment_state")
    check_features(policy, {name.replace("obs.observation.state", "obs.joints"): x for name, x in io.items()})


@pytest.mark.parametrize(
    "rename",
    [
        {"a": "observation.state", "b": "observation.state"},
        {"observation.state": "elsewhere"},
        {"observation.environment_state": "observation.state"},
    ],
)
def test_renaming_that_leaves_no_source_or_two(newer, rename):
    folder, _ = newer
    edit(folder / PRE, lambda c: step(c, "rename_observations_processor")["config"].update(rename_map=rename))
    with pytest.raises(CheckpointError, match="rename_map"):
        read_lerobot(folder)


def test_renaming_after_normalising(newer):
    """It would be normalised under names that it does not have yet."""
    folder, _ = newer
    edit(folder / PRE, lambda c: c["steps"].append(c["steps"].pop(0)))
    with pytest.raises(CheckpointError, match="rename_observations_processor"):
        read_lerobot(folder)


@pytest.mark.parametrize("name", ["action", "observation.state"])
@pytest.mark.parametrize("how", ["absent", "infinite", "nan", "shape"])
def test_statistics_that_are_missing_newer(newer, name, how):
    folder, _ = newer
    file = state_file(folder, POST if name == "action" else PRE)

    def damage(tensors):
        key = f"{name}.min"
        if how == "absent":
            del tensors[key]
        elif how == "shape":
            tensors[key] = tensors[key][:-1].clone()
        else:
            tensors[key][1] = float("inf" if how == "infinite" else "nan")

    edit_tensors(file, damage)
    with pytest.raises(CheckpointError, match=f"'{name}.min'") as caught:
        read_lerobot(folder)
    assert ("migrate_policy_normalization" in str(caught.value)) == (how in ("absent", "infinite"))


@pytest.mark.parametrize("buffer", ["normalize_inputs.buffer_observation_state", "unnormalize_outputs.buffer_action"])
@pytest.mark.parametrize("infinite", [False, True])
def test_statistics_that_are_missing_older(older, buffer, infinite):
    """Older releases initialise them with infinity."""
    folder, _ = older

    def damage(tensors):
        for name in [n for n in tensors if n.startswith(buffer)]:
            if infinite:
                tensors[name] = torch.full_like(tensors[name], float("inf"))
            else:
                del tensors[name]

    edit_tensors(folder / "model.safetensors", damage)
    with pytest.raises(CheckpointError, match="migrate_policy_normalization"):
        read_lerobot(folder)


def test_no_statistics_at_all(newer):
    folder, _ = newer
    for file in (folder / PRE, folder / POST):
        file.unlink()
    with pytest.raises(CheckpointError, match="no statistics"):
        read_lerobot(folder)


@pytest.mark.parametrize("name", [PRE, POST])
def test_one_processor_alone(newer, name):
    folder, _ = newer
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        read_lerobot(folder)


@pytest.mark.parametrize("kind", ["map_delta_action_to_robot_action", "image_crop_resize_processor", None])
@pytest.mark.parametrize("name", [PRE, POST])
def test_unknown_steps_are_refused_by_name(newer, name, kind):
    folder, _ = newer
    entry = {"registry_name": kind, "config": {}} if kind else {"class": "mine.Augment", "config": {}}
    edit(folder / name, lambda c: c["steps"].append(entry))
    with pytest.raises(CheckpointError, match=kind or "mine.Augment"):
        read_lerobot(folder)


def test_a_half_precision_step(newer):
    folder, _ = newer
    edit(folder / PRE, lambda c: step(c, "device_processor")["config"].update(float_dtype="float16"))
    with pytest.raises(CheckpointError, match="rounds observations to float16"):
        read_lerobot(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..\\secret", "a" * 5000, "a\0b"])
def test_statistics_outside_of_the_folder(newer, name):
    folder, _ = newer
    edit(folder / PRE, lambda c: step(c, "normalizer_processor").update(state_file=name))
    with pytest.raises(CheckpointError, match="not in the folder"):
        read_lerobot(folder)


def test_only_some_observations_are_normalised(newer):
    folder, _ = newer
    only = ["observation.environment_state"]
    edit(folder / PRE, lambda c: step(c, "normalizer_processor")["config"].update(normalize_observation_keys=only))
    fields = read_lerobot(folder).normalizer.fields("observation.state")
    assert fields["scale"].eq(1).all()
    assert fields["offset"].eq(0).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"type": "act"}, "type 'act'"),
        ({"type": None}, "lacks 'type'"),
        ({"use_peft": True}, "use_peft"),
        ({"horizon": "16"}, "'horizon' must be a whole number"),
        ({"horizon": 10**30}, r"^[^:]*: 'horizon' must be from 1 to"),
        ({"horizon": -16}, "'horizon' must be from"),
        ({"horizon": 15}, "horizon must be divisible"),
        ({"n_action_steps": 16}, "passes the horizon"),
        ({"down_dims": []}, "'down_dims'"),
        ({"down_dims": [16, 32, 64]}, "does not fit its config"),
        ({"down_dims": [17, 32]}, "multiples of n_groups"),
        ({"kernel_size": 4}, "odd"),
        ({"vision_backbone": "resnet101", "input_features": "image"}, "input_features"),
        ({"noise_scheduler_type": "DPM"}, "noise_scheduler_type"),
        ({"beta_schedule": "cosine"}, "beta_schedule"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps"),
        ({"num_inference_steps": 1000}, "num_inference_steps"),
        ({"input_features": {}}, "observation.state"),
        ({"input_features": {"observation.state": {"type": "STATE", "shape": [7]}}}, "neither an image"),
        ({"output_features": {}}, "'action'"),
        ({"clip_sample_range": float("nan")}, "finite"),
    ],
)
def test_settings_that_are_refused(newer, change, told):
    folder, _ = newer
    edit(folder / "config.json", lambda c: c.update(change))
    with pytest.raises(CheckpointError, match=told):
        build_policy(read_lerobot(folder), folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"type": "diffusion"}', "[" * 100_000, '{"type": 1e999}', "\0", "9" * 10_000]
)
def test_damaged_config(newer, text):
    folder, _ = newer
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_lerobot(folder)


def test_tensors_that_do_not_belong(newer):
    folder, _ = newer
    edit_tensors(folder / "model.safetensors", lambda t: t.update({"diffusion.value_head.weight": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'diffusion\.value_head\.weight'"):
        read_lerobot(folder)


def test_what_is_left_out_is_told(newer):
    folder, _ = newer

    def more(config):
        config["input_features"]["observation.effort"] = {"type": "STATE", "shape": [7]}
        config["brand_new_setting"] = 3

    edit(folder / "config.json", more)
    notes = " ".join(read_lerobot(folder).notes)
    assert "observation.effort" in notes
    assert "brand_new_setting" in notes
