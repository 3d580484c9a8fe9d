"""Checkpoints of diffusion_policy give what its own code gave with them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from upstream_checks import check_chunk, check_features, check_network, check_normalizer
from upstream_fixtures import fixture, meta, named

from diffpolicy_spec.checkpoints.diffusion_policy import read_diffusion_policy
from diffpolicy_spec.checkpoints.diffusion_policy.config import CLASSES
from diffpolicy_spec.checkpoints.diffusion_policy.task import read_task, split_obs
from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.parts import build_policy
from diffpolicy_spec.checkpoints.pickles import read_pickled, stored
from diffpolicy_spec.policies.diffusion import DiffusionPolicy

NAMES = named("dp_")


def load(name: str, folder: Path) -> tuple[DiffusionPolicy, dict[str, Tensor], dict[str, Any]]:
    path, io, facts = fixture(name, folder)
    return build_policy(read_diffusion_policy(path), path), io, facts


@pytest.mark.parametrize("name", NAMES)
def test_against_upstream(name: str, tmp_path: Path) -> None:
    """Class and weights, normalised observations, features, one call of the network, and a whole chunk."""
    policy, io, facts = load(name, tmp_path)
    config = policy.config
    assert policy.origin["class"] == facts["class"].rpartition(".")[2]
    assert (policy.origin["weights"], policy.origin["task"]) == (facts["weights"], facts["task"])
    for key in ("n_obs_steps", "n_action_steps", "action_dim"):
        assert getattr(config, key) == facts["settings"][key], key

    for check in (check_normalizer, check_features, check_network, check_chunk):
        check(policy, io)


def test_choice_of_weights(tmp_path: Path) -> None:
    path, _, _ = fixture("dp_unet_lowdim_global", tmp_path)
    average, raw = (read_diffusion_policy(path, weights) for weights in ("ema_model", "model"))
    assert (average.origin["weights"], raw.origin["weights"]) == ("ema_model", "model")
    assert any(not torch.equal(average.network[name], raw.network[name]) for name in raw.network)
    auto = read_diffusion_policy(path)
    assert all(torch.equal(auto.network[name], value) for name, value in average.network.items())
    with pytest.raises(CheckpointError, match="weights must be one of"):
        read_diffusion_policy(path, "best")
    path, _, _ = fixture("dp_unet_no_ema", tmp_path)
    with pytest.raises(CheckpointError, match="lacks 'ema_model'; there are: model"):
        read_diffusion_policy(path, "ema_model")


def test_every_class_has_a_fixture() -> None:
    assert {meta(name)["class"].rpartition(".")[2] for name in NAMES} == set(CLASSES)


def changed(name: str, folder: Path, **settings: Any) -> tuple[Path, dict[str, Any]]:
    """A fixture's path and payload with other settings: policy__model__n_head=3 is cfg.policy.model.n_head."""
    path, _, _ = fixture(name, folder)
    payload = copy.copy(read_pickled(path))
    payload["cfg"] = copy.deepcopy(payload["cfg"])
    payload["state_dicts"] = {key: dict(value) for key, value in payload["state_dicts"].items()}
    for key, value in settings.items():
        *way, last = key.split("__")
        node = payload["cfg"]
        for step in way:
            node = node[step]
        if value is REMOVED:
            del node[last]
        else:
            node[last] = value
    return path, payload


REMOVED = object()
UNET, TRANSFORMER = "dp_unet_lowdim_global", "dp_transformer_lowdim"
HYBRID, IMAGE = "dp_unet_hybrid_image", "dp_unet_image"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (UNET, {"policy___target_": "diffusion_policy.policy.bet_lowdim_policy.BETLowdimPolicy"},
         "the class '.*BETLowdimPolicy' is not read; DiffusionUnetLowdimPolicy"),
        (UNET, {"policy___target_": REMOVED}, "lacks '_target_'"),
        (UNET, {"policy__vision": 1, "policy__sound": 2}, "does not have: sound, vision"),
        (UNET, {"policy__model___target_": "mine.Net"}, "the network 'Net' is not read; ConditionalUnet1D is"),
        (UNET, {"policy__model__attention": True}, "ConditionalUnet1D does not have: attention"),
        (UNET, {"policy__model__down_dims": [16, -1]}, "'down_dims' must be"),
        (UNET, {"policy__model__down_dims": [16, 48]}, r"has shape .*its config asks for|lacks|unexpected"),
        (UNET, {"policy__horizon": 10**9}, "'horizon' must be from 1"),
        (UNET, {"policy__horizon": "${hydra:x}"}, "'horizon' must be a whole number"),
        (UNET, {"policy__horizon": "${eval:'__import__(\"os\").system(\"touch canary\")'}"}, "nothing of it was run"),
        (UNET, {"policy__horizon": "${policy.horizon}"}, "refers to itself"),
        (UNET, {"policy__horizon": "${nothing}"}, "has no 'nothing', to which 'policy.horizon' refers"),
        (UNET, {"policy__horizon": 6}, "does not describe a policy: n_action_steps=8"),
        (UNET, {"policy__obs_as_local_cond": True}, "exclude each other"),
        (UNET, {"policy__pred_action_steps_only": True, "policy__obs_as_global_cond": False}, "needs a global"),
        (UNET, {"policy__noise_scheduler___target_": "diffusers.PNDMScheduler"}, "'PNDMScheduler' is not read"),
        (UNET, {"policy__noise_scheduler__beta_schedule": "laplace"}, "beta_schedule 'laplace' is not supported"),
        (UNET, {"policy__noise_scheduler__lower_order_final": True}, "DDPMScheduler does not have: lower_order_final"),
        (UNET, {"policy__noise_scheduler__predict_epsilon": "no"}, "'predict_epsilon' must be true or false"),
        (UNET, {"policy__num_inference_steps": 101}, "'num_inference_steps' must be from 1 to 100"),
        (UNET, {"policy__eta": 0.5}, "eta=0.5 is not read"),
        (UNET, {"policy": 3}, "cfg.policy must be a mapping"),
        (UNET, {"policy": REMOVED}, "has no 'policy'"),
        (TRANSFORMER, {"policy__model__time_as_cond": False}, "time_as_cond=False .* is not read"),
        (TRANSFORMER, {"policy__model__n_head": 5}, "divisible|n_head|head"),
        (TRANSFORMER, {"policy__pred_action_steps_only": True}, "causal attention over 10 actions"),
        (HYBRID, {"policy__crop_shape": [999, 999]}, "crop .* does not fit"),
        (HYBRID, {"task__shape_meta__obs__agentview_image__type": "depth"}, "type 'depth' is not read"),
        (HYBRID, {"task__shape_meta__obs__agentview_image__shape": [3, 84]}, "'shape' must be a list of 3"),
        (IMAGE, {"policy__obs_encoder__rgb_model__weights": "r3m"}, "weights 'r3m' is not read"),
        (IMAGE, {"policy__obs_encoder__rgb_model__name": "resnet101"}, "'name' must be one of resnet18"),
        (IMAGE, {"policy__obs_encoder__rgb_model___target_": REMOVED}, "a network of its own for each camera"),
        (IMAGE, {"policy__obs_encoder___target_": "mine.Encoder"}, "the encoder 'Encoder' is not read"),
        (IMAGE, {"policy__obs_encoder__tokens": 8}, "not known here: tokens"),
    ],
)  # fmt: skip
def test_settings_without_a_counterpart(name: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    path, payload = changed(name, tmp_path, **settings)
    with pytest.raises(CheckpointError, match=message) as raised:
        build_policy(read_diffusion_policy(path, payload=payload), path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (UNET, lambda s: s.pop("normalizer.params_dict.action.scale"), "normalisation of 'action' lacks scale"),
        (UNET, lambda s: [s.pop(n) for n in list(s) if ".obs." in n], r"lacks the statistics .* of obs"),
        (UNET, lambda s: s.update({"normalizer.params_dict.obs.scale": s["model.final_conv.1.weight"]}), "have shape"),
        (UNET, lambda s: s.update(other=s["model.final_conv.1.bias"]), "unexpected tensors: other"),
        (UNET, lambda s: s.update({"model.extra": s["model.final_conv.1.bias"]}), "unexpected: model.extra"),
        (UNET, lambda s: s.pop("model.final_conv.1.bias"), r"lacks: model\.final_conv\.1\.bias"),
        (UNET, lambda s: s.update({"model.x": 3}), "'model.x' is a int, not a tensor"),
        (UNET, lambda s: s.update({"obs_encoder.x": s["model.final_conv.1.bias"]}), "has no image encoder"),
        (UNET, lambda s: [s.pop(n) for n in list(s) if n.startswith("model.")], "lacks the network's weights"),
        (HYBRID, lambda s: s.update({"obs_encoder.obs_nets.x.nets.0": s["model.final_conv.1.bias"]}), "another kind"),
        (IMAGE, lambda s: s.update({"obs_encoder.other": s["model.final_conv.1.bias"]}), "another kind"),
    ],
)  # fmt: skip
def test_state_dicts_that_do_not_fit(name: str, change: Any, message: str, tmp_path: Path) -> None:
    path, payload = changed(name, tmp_path)
    change(payload["state_dicts"]["ema_model"])
    with pytest.raises(CheckpointError, match=message) as raised:
        build_policy(read_diffusion_policy(path, payload=payload), path)
    assert str(path) in str(raised.value)


def test_what_is_assumed_is_told(tmp_path: Path) -> None:
    def read(name: str, **settings: Any) -> Any:
        path, payload = changed(name, tmp_path, **settings)
        return read_diffusion_policy(path, payload=payload)

    parts = read(UNET, policy__num_inference_steps=10)
    assert parts.config.num_inference_steps == 10
    assert any("takes t - 1" in note for note in parts.notes)
    parts = read(UNET, policy__oa_step_convention=REMOVED)
    assert parts.config.first == 2
    assert any("from the one after" in note for note in parts.notes)
    parts = read(HYBRID, policy__eval_fixed_crop=False)
    assert parts.config.encoder.random_crop_in_use
    assert any("crops are random" in note for note in parts.notes)
    assert read(HYBRID, policy__crop_shape=None).config.encoder.crop is None
    assert read(HYBRID, policy__crop_shape=REMOVED).config.encoder.crop == (76, 76)
    parts = read(IMAGE, policy__obs_encoder__random_crop=False, policy__obs_encoder__crop_shape=[10, 10])
    assert parts.config.encoder.crop is None
    assert any("nothing is cropped" in note for note in parts.notes)
    parts = read(IMAGE, policy__obs_encoder__resize_shape=[20, 20], policy__obs_encoder__crop_shape=None)
    assert any("resized with antialiasing" in note for note in parts.notes)
    assert not any("antialiasing" in note for note in read(IMAGE).notes)


def test_an_old_way_to_say_what_is_predicted(tmp_path: Path) -> None:
    for told, meant in ((True, "epsilon"), (False, "sample")):
        path, payload = changed(UNET, tmp_path, policy__noise_scheduler__predict_epsilon=told)
        assert read_diffusion_policy(path, payload=payload).scheduler["prediction_type"] == meant


def test_fewer_actions_than_the_transformer_has_places(tmp_path: Path) -> None:
    """Without causal attention, pred_action_steps_only takes the first places of a longer position embedding."""
    path, payload = changed(TRANSFORMER, tmp_path, policy__pred_action_steps_only=True,
                            policy__model__causal_attn=False)  # fmt: skip
    for state in payload["state_dicts"].values():
        state.pop("model.mask", None)
        state.pop("model.memory_mask", None)
    parts = read_diffusion_policy(path, payload=payload)
    assert (parts.config.horizon, parts.config.first) == (8, 0)
    assert parts.network["pos_emb"].shape[1] == 8
    build_policy(parts, path)


@pytest.mark.parametrize(
    ("task", "dim", "expected"),
    [
        ({"name": "square_lowdim", "task_name": "square", "abs_action": True}, 10, ("square", "absolute_rot6d")),
        ({"name": "square_lowdim", "task_name": "square", "abs_action": False}, 7, ("square", "delta")),
        ({"name": "transport_image_abs", "abs_action": True}, 20, ("transport", "absolute_rot6d")),
        ({"name": "tool_hang_lowdim_abs"}, 10, ("tool_hang", "absolute_rot6d")),
        (
            {"name": "lift_image", "dataset": {"abs_action": True, "rotation_rep": "axis_angle"}}, 7,
            ("lift", "absolute"),
        ),
        ({"name": "can_image", "dataset": {"abs_action": True, "rotation_rep": "quaternion"}}, 8, ("can", "raw")),
        ({"name": "pusht_lowdim"}, 2, ("pusht_keypoints", "raw")),
        ({"name": "pusht_image"}, 2, ("pusht", "raw")),
        ({"name": "kitchen_lowdim_abs", "abs_action": True}, 9, ("", "raw")),
        ({"name": "blockpush_lowdim_seed"}, 2, ("", "raw")),
        ({"name": "${broken"}, 2, ("", "raw")),
        ({}, 2, ("", "raw")),
    ],
)  # fmt: skip
def test_tasks(task: dict[str, Any], dim: int, expected: tuple[str, str]) -> None:
    found = read_task({"task": task}, dim)
    assert (found.name, found.action_repr) == expected


@pytest.mark.parametrize(
    ("keys", "dim", "expected"),
    [
        (["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"], 23, [14, 3, 4, 2]),
        (["robot0_eef_pos", "object"], 13, [3, 10]),
        (["robot0_eef_pos", "robot1_eef_quat"], 7, [3, 4]),
        (["robot0_eef_pos", "robot0_eef_quat"], 8, None),
        (["object", "object2"], 8, None),
        (["object", "robot0_eef_pos"], 3, None),
        (["object", "object"], 8, None),
        ([], 8, None),
        ("object", 8, None),
    ],
)
def test_obs_is_split_where_its_keys_are_known(keys: Any, dim: int, expected: list[int] | None) -> None:
    found = split_obs(read_task({"task": {"name": "x", "obs_keys": keys}}, 7), dim)
    assert found == ({"obs": dim} if expected is None else dict(zip(keys, expected, strict=True)))


def test_only_the_weights_that_are_used_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer's state and the other weights stay in the file."""
    path, _, _ = fixture(UNET, tmp_path)
    payload = read_pickled(path)
    wanted = {t.key for name, t in payload["state_dicts"]["ema_model"].items() if not name.endswith("_dummy_variable")}
    read = []
    original = stored.read_record
    monkeypatch.setattr(stored, "read_record", lambda archive, key: read.append(key) or original(archive, key))
    read_diffusion_policy(path)
    assert len(read) == len(set(read))
    assert set(read) <= wanted
    assert len(payload["state_dicts"]) == 3  # model, ema_model, optimizer
