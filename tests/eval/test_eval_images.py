"""Policies that look: the world draws what they look at, at their size, when they look, whoever runs the episode."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import ACTION_HIGH, ACTION_LOW, SCHEDULER
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from diffpolicy_spec import load_policy
from diffpolicy_spec.data.obs_map import ObsMap
from diffpolicy_spec.envs import make_env
from diffpolicy_spec.envs.config import EnvConfig
from diffpolicy_spec.eval.cells import Cell, fingerprint_of
from diffpolicy_spec.eval.evaluate import evaluate
from diffpolicy_spec.eval.rollout import run_episodes
from diffpolicy_spec.eval.store import Store
from diffpolicy_spec.eval.subscribers import Recorder, Subscriber
from diffpolicy_spec.eval.workers import make_environment
from diffpolicy_spec.eval.worlds import LocalWorld, ProcessWorld, Start
from diffpolicy_spec.policies import (
    DiffusionPolicy,
    EncoderConfig,
    LinearNormalizer,
    PolicyConfig,
    UnetConfig,
    build_encoder,
    build_network,
)
from diffpolicy_spec.policies.normalizer import fit_limits
from diffpolicy_spec.samplers import SamplerConfig

SIZES = {"agentview_image": (48, 56), "robot0_eye_in_hand_image": (40, 40)}
LOOKS = EnvConfig(
    "lift", "absolute_rot6d",
    ObsMap((("robot0_eef_pos", ("robot0_eef_pos",)),), tuple((key, key, size) for key, size in SIZES.items())),
)  # fmt: skip


def image_policy(obs_dims, images, *, low, high, action_repr, steps=10, seed=0, **changes):
    """A policy with cameras and random weights; 10 denoising steps."""
    config = PolicyConfig(
        obs_dims, len(low), action_repr, unet=UnetConfig((16, 32), 3, 4, 16),
        image_shapes={key: (3, *size) for key, size in images.items()},
        encoder=EncoderConfig(crop=(36, 36), keypoints=4, features=6, shared=False), **changes,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network, encoder = build_network(config), build_encoder(config)
    params = {key: fit_limits(np.stack([-np.ones(d), np.ones(d)])) for key, d in obs_dims.items()}
    params |= {key: {"scale": torch.full((3,), 2.0), "offset": torch.full((3,), -1.0)} for key in images}
    params["action"] = fit_limits(np.stack([low, high]))
    return DiffusionPolicy(config, network, LinearNormalizer(params), SCHEDULER, encoder=encoder)


@pytest.fixture(scope="module")
def seeing(draws):
    return image_policy(
        {"robot0_eef_pos": 3}, SIZES, low=ACTION_LOW, high=ACTION_HIGH, action_repr="absolute_rot6d", task="lift"
    )


@pytest.fixture(scope="module")
def folder(seeing, tmp_path_factory):
    path = tmp_path_factory.mktemp("seeing") / "policy"
    seeing.save(path)
    return path


def run_config(policy, output, *overrides):
    given = [f"policy={policy}", f"output={output}", "num_episodes=2", "max_steps=10", "video=false", "report=false",
             "warmup_calls=0", *overrides]  # fmt: skip
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        return OmegaConf.to_container(compose("eval", overrides=given), resolve=True)


def test_only_what_is_looked_at_is_drawn(draws):
    """The last two observations of a slice have images, and they are those of an environment that draws each step."""
    actions = np.array([[*np.linspace(0.0, 0.05, 2), 1.0 + n / 100, 1, 0, 0, 0, -1, 0, -1] for n in range(5)])
    world = ProcessWorld(make_environment, LOOKS, False, size=1, looks=2)
    plain = make_env("lift", cameras=("agentview",), image_size=(48, 56))
    try:
        begun = world.reset({0: Start(7)})[0].observation
        first, _ = plain.reset(seed=7)
        np.testing.assert_array_equal(begun["agentview_image"], first["agentview_image"].transpose(2, 0, 1))
        assert {key: begun[key].shape for key in SIZES} == {key: (3, *size) for key, size in SIZES.items()}
        seen = world.execute({0: actions})[0].observations
        assert [set(o) for o in seen] == [{"robot0_eef_pos"}] * 3 + [{"robot0_eef_pos", *SIZES}] * 2
        wanted = [plain.step(action)[0] for action in actions]
        for ours, theirs in zip(seen, wanted, strict=True):
            np.testing.assert_array_equal(ours["robot0_eef_pos"], theirs["robot0_eef_pos"])
        for ours, theirs in zip(seen[3:], wanted[3:], strict=True):
            image = ours["agentview_image"]
            assert (image.dtype, image.flags["C_CONTIGUOUS"]) == (np.uint8, True)
            np.testing.assert_array_equal(image, theirs["agentview_image"].transpose(2, 0, 1))
        assert np.abs(seen[4]["agentview_image"].astype(int) - begun["agentview_image"]).max() > 10
        again = world.reset({0: Start(7)})[0].observation  # the first observation is looked at again
        np.testing.assert_array_equal(again["agentview_image"], begun["agentview_image"])
    finally:
        world.close(), plain.close()


class Looks(Subscriber):
    """What the policy was shown, by call."""

    def __init__(self, policy, monkeypatch):
        self.shown, original = [], policy.predict_action

        def predict_action(obs, **options):
            self.shown.append({key: np.array(value) for key, value in obs.items()})
            return original(obs, **options)

        monkeypatch.setattr(policy, "predict_action", predict_action)


def test_a_policy_is_shown_the_last_two_images(seeing, monkeypatch):
    looks, recorder = Looks(seeing, monkeypatch), Recorder()
    envs = [LOOKS.make(), LOOKS.make()]
    try:
        world = LocalWorld(envs, looks=2)
        run_episodes(seeing, seeing.bind(SamplerConfig("ddpm")), world, [3, 4], subscribers=[recorder], max_steps=10)
    finally:
        for env in envs:
            env.close()
    first, second = looks.shown
    for key, size in SIZES.items():
        assert (first[key].shape, first[key].dtype) == ((2, 2, 3, *size), np.uint8)
        np.testing.assert_array_equal(first[key][:, 0], first[key][:, 1])
        for i in range(2):
            assert (second[key][i, 0] != second[key][i, 1]).any()  # two steps
        assert (first[key][0] != first[key][1]).any()  # two episodes
    assert [(e.seed, e.chunks) for e in recorder.episodes] == [(3, 2), (4, 2)]
    assert recorder.chunks[0].batch == 2


def test_dps_eval_drives_lift_with_images(folder, tmp_path):
    """The same episode by this process and by a worker; in real time it runs as well."""

    def run(name, *overrides):
        results = evaluate(run_config(folder, tmp_path / name, "samplers=[speculative]", *overrides))
        ((key, cell),) = results.cells.items()
        return cell, results.tables[key]

    cell, table = run("one")
    assert cell.environment == {
        "observed": {"robot0_eef_pos": ["robot0_eef_pos"], **{key: [key] for key in SIZES}},
        "images": {key: list(size) for key, size in SIZES.items()},
    }  # fmt: skip
    assert cell.policy_fingerprint == fingerprint_of(load_policy(folder))
    assert table.steps.tolist() == [10, 10]
    assert table.chunks["calls"].min() >= 1
    again, elsewhere = run("worker", "num_workers=2", "num_episodes=1")
    assert again == cell
    assert elsewhere.actions_sha.tolist() == table.actions_sha.tolist()[:1]
    paced, late = run("realtime", "realtime.control_hz=20", "realtime.latency=100")
    assert (paced.mode, late.chunks["waited"].tolist()) == ("realtime", [0, 2, 0, 2])
    found = Store.open(tmp_path / "one" / "store", create=False).cells()
    assert found == {cell.id: cell}


def test_push_t_with_lerobots_names(tmp_path, draws):
    policy = image_policy(
        {"observation.state": 2}, {"observation.image": (40, 40)}, low=(100, 100), high=(400, 400), action_repr="raw"
    )
    policy.save(tmp_path / "policy")
    for task in ("pusht", "pusht_mujoco"):
        results = evaluate(run_config(tmp_path / "policy", tmp_path / task, f"task={task}", "sampler=ddpm100"))
        (cell,), (table,) = results.cells.values(), results.tables.values()
        assert cell.environment["observed"] == {"observation.state": ["agent_pos"], "observation.image": ["image"]}
        assert table.steps.tolist() == [10, 10]


def test_an_encoder_is_part_of_the_fingerprint(seeing):
    other = image_policy(
        {"robot0_eef_pos": 3}, SIZES, low=ACTION_LOW, high=ACTION_HIGH, action_repr="absolute_rot6d", task="lift"
    )
    assert fingerprint_of(other) == fingerprint_of(seeing)
    with torch.no_grad():
        next(other.encoder.parameters()).view(-1)[0] += 1
    assert fingerprint_of(other) != fingerprint_of(seeing)


def test_cells_of_stores_before_images_are_read():
    old = Cell("lift", "lift", "0" * 16, "ddpm", {}, {}, True, False, True, 10, (1, 0), "raw", 8, 20.0, 400)
    data = old.to_dict()
    assert "environment" not in data
    assert Cell.from_dict(json.loads(json.dumps(data))) == old
    changed = Cell.from_dict({**data, "environment": {"object_layout": "1.4"}})
    assert changed.id != old.id
    assert Cell.from_dict(changed.to_dict()) == changed
