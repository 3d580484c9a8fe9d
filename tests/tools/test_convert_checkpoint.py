"""Checkpoints into native and LeRobot folders: the same policy, and what dps-calibrate needs."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
import upstream_fixtures
from recordings import write_everything
from tiny_dataset import write_dataset
from tiny_policy import tiny_obs, tiny_policy

from diffpolicy_spec import SamplerConfig, load_policy
from diffpolicy_spec.tools.convert import ConversionError, convert
from diffpolicy_spec.tools.convert_cli import run


def plan(policy, obs):
    """A chunk of the sequential sampler with given noise."""
    sampler = policy.bind(SamplerConfig("ddpm", num_inference_steps=5))
    return policy.predict_action(obs, sampler=sampler, generator=torch.Generator().manual_seed(0)).plan


def random_obs(policy, batch=2):
    rng = torch.Generator().manual_seed(1)
    config = policy.config
    obs = {k: torch.rand(batch, config.n_obs_steps, d, generator=rng) for k, d in config.obs_dims.items()}
    return obs | {
        k: torch.rand(batch, config.n_obs_steps, *shape, generator=rng) for k, shape in config.image_shapes.items()
    }


NAMES = ("dp_unet_lowdim_global", "dp_transformer_lowdim", "dp_unet_image", "lerobot_state_env", "robomimic_lowdim")


@pytest.mark.parametrize("name", NAMES)
def test_foreign_checkpoints_become_native(tmp_path, name, capsys):
    path, _, _ = upstream_fixtures.fixture(name, tmp_path)
    assert run([str(path), str(tmp_path / "theirs")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == str(tmp_path / "theirs")
    theirs, ours = load_policy(path), load_policy(tmp_path / "theirs")
    assert ours.config == theirs.config
    assert (dict(ours.origin), tuple(ours.notes)) == (dict(theirs.origin), tuple(theirs.notes))
    for note in theirs.notes:
        assert f"note: {note}" in said
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["training"] == {"converted_from": path.name}
    obs = random_obs(theirs)
    torch.testing.assert_close(plan(ours, obs), plan(theirs, obs), rtol=0, atol=0)


def test_a_foreign_checkpoint_is_calibrated(tmp_path):
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from diffpolicy_spec.training.calibrate import run as calibrate

    path, _, _ = upstream_fixtures.fixture("dp_unet_lowdim_global", tmp_path)
    convert(path, tmp_path / "theirs", tell=lambda _: None)
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        cfg = OmegaConf.to_container(compose("calibrate"), resolve=True)
    cfg |= {"chains": 6, "perturbations": 1, "choice": False, "checkpoint": str(tmp_path / "theirs"),
            "dataset": str(write_dataset(tmp_path / "demos.hdf5"))}  # fmt: skip
    assert calibrate(cfg) == tmp_path / "theirs"
    policy = load_policy(tmp_path / "theirs")
    assert policy.bind(SamplerConfig(options={"gain": True})).drafter.gains is not None
    # And the way back from there tells that LeRobot has no place for them.
    said = []
    convert(tmp_path / "theirs", tmp_path / "lerobot", "lerobot", tell=said.append)
    assert any("calibration" in sentence for sentence in said)


def test_native_to_lerobot_and_back(tmp_path, capsys):
    tiny_policy().save(tmp_path / "ours")
    assert run([str(tmp_path / "ours"), str(tmp_path / "lerobot"), "--to", "lerobot"]) == 0
    assert "note: 'observation.state' is " in capsys.readouterr().out
    assert run([str(tmp_path / "lerobot"), str(tmp_path / "again")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "lerobot", "ours"]
    obs = tiny_obs()
    joined = {
        "observation.state": np.concatenate([obs[k] for k in obs if k.startswith("robot")], axis=-1),
        "observation.environment_state": obs["object"],
    }
    torch.testing.assert_close(
        plan(load_policy(tmp_path / "again"), joined), plan(tiny_policy(), obs), rtol=0, atol=2e-4
    )


def test_a_shipped_policy_and_half_precision(tmp_path):
    assert run(["lift", str(tmp_path / "lift"), "--storage-dtype", "float16"]) == 0
    theirs, ours = load_policy("lift"), load_policy(tmp_path / "lift")
    obs = random_obs(theirs)
    torch.testing.assert_close(plan(ours, obs), plan(theirs, obs))
    assert set(ours.speculation) == set(theirs.speculation)


def test_what_lerobot_would_do_otherwise_needs_permission(tmp_path, capsys):
    path, _, _ = upstream_fixtures.fixture("dp_unet_hybrid_image", tmp_path)
    convert(path, tmp_path / "native", tell=lambda _: None)
    file = tmp_path / "native" / "config.json"
    config = json.loads(file.read_text())
    config["policy"]["encoder"]["random_crop_in_use"] = True
    file.write_text(json.dumps(config))
    arguments = [str(tmp_path / "native"), str(tmp_path / "lerobot"), "--to", "lerobot"]
    before = sorted(tmp_path.iterdir())
    assert run(arguments) == 1
    caught = capsys.readouterr()
    assert "lost: crops are taken at random in use" in caught.out
    assert "--allow-loss" in caught.err
    assert sorted(tmp_path.iterdir()) == before
    assert run([*arguments, "--allow-loss"]) == 0
    assert (tmp_path / "lerobot" / "model.safetensors").is_file()


def test_nothing_is_replaced_by_mistake(tmp_path, capsys):
    tiny_policy().save(tmp_path / "ours")
    tiny_policy(seed=1).save(tmp_path / "other")
    before = load_policy(tmp_path / "other").network.state_dict()
    assert run([str(tmp_path / "ours"), str(tmp_path / "other")]) == 1
    assert "other exists: --overwrite" in capsys.readouterr().err
    torch.testing.assert_close(load_policy(tmp_path / "other").network.state_dict(), before)
    assert run([str(tmp_path / "ours"), str(tmp_path / "other"), "--overwrite"]) == 0
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("x")
    assert run([str(tmp_path / "ours"), str(thesis), "--overwrite"]) == 1
    assert "is a folder of something else" in capsys.readouterr().err
    assert (thesis / "chapter.tex").read_text() == "x"
    data = write_everything(tmp_path / "a.hdf5", images=False)
    assert run([str(data), str(tmp_path / "other"), "--to", "zarr", "--overwrite"]) == 1
    assert "is a folder of something else than zarr" in capsys.readouterr().err
    assert run([str(data), str(thesis / "chapter.tex"), "--to", "hdf5", "--overwrite"]) == 1
    assert "is a file of something else than hdf5" in capsys.readouterr().err
    for target in (tmp_path / "ours", tmp_path / "ours" / "within", tmp_path):
        assert run([str(tmp_path / "ours"), str(target), "--overwrite"]) == 1
    assert load_policy(tmp_path / "ours").config == tiny_policy().config


def test_datasets_on_the_command_line(tmp_path, capsys):
    source = write_everything(tmp_path / "a.hdf5", images=False, next_obs=True)
    assert run([str(source), str(tmp_path / "a.zarr"), "--drop", "next_obs"]) == 0
    said = capsys.readouterr().out
    assert "3 episodes, 29 steps" in said
    assert "diffusion_policy has no use for, and ignores: data/action_dict.abs_pos" in said
    assert run([str(tmp_path / "a.zarr"), str(tmp_path / "b"), "--to", "hdf5"]) == 0
    with h5py.File(source, "a") as file:
        file["notes"] = np.arange(3)
    capsys.readouterr()
    assert run([str(source), str(tmp_path / "c.zarr")]) == 1
    caught = capsys.readouterr()
    assert "lost: /notes has no place" in caught.out
    assert "--allow-loss" in caught.err
    assert not (tmp_path / "c.zarr").exists()
    assert run([str(source), str(tmp_path / "c.zarr"), "--allow-loss"]) == 0


@pytest.mark.parametrize(
    ("source", "target", "to", "message"),
    [
        ("ours", "x.zarr", None, "is a checkpoint; it cannot become zarr"),
        ("a.hdf5", "x", None, "say what .*x shall be"),
        ("a.hdf5", "x", "native", "is a dataset .hdf5.; it cannot become native"),
        ("nothing", "x", "native", "does not exist"),
        ("noise", "x", "native", "noise"),
    ],
)
def test_what_cannot_be_done(tmp_path, source, target, to, message):
    tiny_policy().save(tmp_path / "ours")
    write_everything(tmp_path / "a.hdf5", images=False)
    (tmp_path / "noise").write_bytes(bytes(range(256)))
    with pytest.raises((ConversionError, ValueError, FileNotFoundError), match=message):
        convert(tmp_path / source, tmp_path / target, to, tell=lambda _: None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hdf5", "noise", "ours"]
    shutil.rmtree(tmp_path)
