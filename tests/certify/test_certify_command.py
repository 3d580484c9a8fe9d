"""dps-certify from end to end on a small network, a real hdf5 and recorded observations."""

import hashlib
import json
import sys

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from safetensors.numpy import save_file
from tiny_dataset import write_dataset
from tiny_policy import tiny_obs, tiny_policy

from diffpolicy_spec.certify.cli import main, run
from diffpolicy_spec.certify.observations import conditions_from_file
from diffpolicy_spec.policies.observations import ObservationError

SMALL = {"num_observations": 2, "chunks": 50, "splits": 0, "batch": 512}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint and a dataset."""
    folder = tmp_path_factory.mktemp("certify")
    tiny_policy().save(folder / "policy")
    write_dataset(folder / "demos.hdf5")
    return folder


def settings(place, tmp_path, *overrides, **changes):
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        cfg = OmegaConf.to_container(compose("certify", overrides=list(overrides)), resolve=True)
    files = {"checkpoint": str(place / "policy"), "dataset": str(place / "demos.hdf5"), "output": str(tmp_path / "out")}
    return cfg | SMALL | files | changes


def call(monkeypatch, *arguments) -> int:
    """Exit status of the console script."""
    monkeypatch.setattr(sys, "argv", ["dps-certify", *(str(a) for a in arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_an_exact_sampler_gets_its_certificate(place, tmp_path, monkeypatch, capsys):
    arguments = [f"{key}={value}" for key, value in SMALL.items() if key != "splits"]
    status = call(
        monkeypatch, f"checkpoint={place / 'policy'}", f"dataset={place / 'demos.hdf5'}", f"output={tmp_path / 'out'}",
        "splits=3", "sampler.num_inference_steps=25", *arguments,
    )  # fmt: skip
    assert status == 0
    page = capsys.readouterr().out
    assert "**No difference found**" in page
    data = json.loads((tmp_path / "out.json").read_text())
    assert (tmp_path / "out.md").read_text().strip() == page.strip()
    assert data["verdict"] == "no difference found"
    assert data["sampler"]["method"] == "speculative"
    assert data["reference"] == {"method": "ddpm", "num_inference_steps": 25, "eta": None, "options": {}}
    assert data["source"] == "demos.hdf5"
    assert data["environment"]["versions"]["torch"] == torch.__version__
    weights = (place / "policy" / "model.safetensors").read_bytes()
    assert data["checkpoint"]["sha256"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert data["power"]
    assert data["null_splits"][1] == 3
    assert data["cost"]["calls"] < 20 < data["reference_cost"]["calls"]


def test_a_mis_set_sampler_is_caught(place, tmp_path, monkeypatch):
    arguments = [f"{key}={value}" for key, value in SMALL.items()]
    status = call(
        monkeypatch, f"checkpoint={place / 'policy'}", f"dataset={place / 'demos.hdf5'}", f"output={tmp_path / 'out'}",
        "sampler=ddim10", *arguments,
    )  # fmt: skip
    assert status == 1
    assert json.loads((tmp_path / "out.json").read_text())["verdict"] == "difference found"
    assert "**Difference found**" in (tmp_path / "out.md").read_text()


def test_no_verdict_is_exit_status_2(place, monkeypatch, capsys):
    assert call(monkeypatch) == 2
    assert "checkpoint=PATH" in capsys.readouterr().err
    assert call(monkeypatch, "checkpoint=nowhere") == 2
    assert "nowhere" in capsys.readouterr().err
    assert call(monkeypatch, f"checkpoint={place / 'policy'}", "no_such_key=1") == 2
    assert "no_such_key" in capsys.readouterr().err
    assert call(monkeypatch, "--help") == 0


def test_an_earlier_verdict_is_not_overwritten_unasked(place, tmp_path):
    (tmp_path / "out.json").write_text("{}")
    with pytest.raises(ValueError, match="overwrite=true"):
        run(settings(place, tmp_path))
    assert (tmp_path / "out.json").read_text() == "{}"
    steps = "sampler.num_inference_steps=10"
    verdict = run(settings(place, tmp_path, "sampler=picard", steps, overwrite=True, chunks=8))
    assert json.loads((tmp_path / "out.json").read_text())["verdict"] == verdict.verdict


def test_observations_of_a_robot_will_do(place, tmp_path):
    policy, obs = tiny_policy(), tiny_obs(batch=5)
    np.savez(tmp_path / "seen.npz", **obs)
    save_file({key: value.astype(np.float32) for key, value in obs.items()}, tmp_path / "seen.safetensors")
    everything = policy.encode(obs)
    for name in ("seen.npz", "seen.safetensors"):
        all_of_them = conditions_from_file(policy, tmp_path / name, 10, seed=0)
        torch.testing.assert_close(all_of_them, everything, atol=1e-5, rtol=1e-5)
        some = conditions_from_file(policy, tmp_path / name, 2, seed=0)
        assert len(some) == 2
        assert all((torch.isclose(row, everything, atol=1e-5).all(1)).any() for row in some)
    changes = {"observations": str(tmp_path / "seen.npz"), "dataset": None, "chunks": 8, "num_observations": 3}
    verdict = run(settings(place, tmp_path, "sampler=picard", "sampler.num_inference_steps=10", **changes))
    assert verdict.observations == 3
    assert verdict.source == "seen.npz"


def test_what_is_wrong_with_observations_is_said(place, tmp_path):
    policy = tiny_policy()
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        conditions_from_file(policy, tmp_path / "none.npz", 2, seed=0)
    obs = tiny_obs()
    np.savez(tmp_path / "short.npz", **{key: value for key, value in obs.items() if key != "object"})
    with pytest.raises(ObservationError, match="object"):
        conditions_from_file(policy, tmp_path / "short.npz", 2, seed=0)
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(ValueError, match="no arrays"):
        conditions_from_file(policy, tmp_path / "empty.npz", 2, seed=0)
    for name in ("broken.npz", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not an archive")
        with pytest.raises(ValueError, match=r"cannot be read"):
            conditions_from_file(policy, tmp_path / name, 2, seed=0)
    (tmp_path / "seen.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"\.npz or \.safetensors"):
        conditions_from_file(policy, tmp_path / "seen.csv", 2, seed=0)


def test_settings_that_do_not_fit_are_refused(place, tmp_path):
    with pytest.raises(FileNotFoundError, match="observations=PATH"):
        run(settings(place, tmp_path, dataset=str(tmp_path / "none.hdf5")))
    with pytest.raises(ValueError, match="num_observations"):
        run(settings(place, tmp_path, num_observations=100_000))
    with pytest.raises(ValueError, match="num_observations"):
        run(settings(place, tmp_path, num_observations=0))
    with pytest.raises(ValueError, match="alpha"):
        run(settings(place, tmp_path, alpha=0))
    with pytest.raises(ValueError, match="gain"):
        run(settings(place, tmp_path, "sampler.options.gain=true"))
    assert not list(tmp_path.glob("out*"))


def test_the_reference_may_be_named(place, tmp_path):
    other = {"method": "ddim", "num_inference_steps": 10, "eta": None, "options": {}}
    verdict = run(settings(place, tmp_path, "sampler=ddim10", reference=other, chunks=20))
    assert verdict.reference["method"] == "ddim"
    assert not verdict.different


def test_a_missing_module_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "hydra", None)  # what an import finds where it is not installed
    monkeypatch.setattr(sys, "argv", ["dps-certify"])
    with pytest.raises(ImportError, match=r"dps-certify needs hydra.*diffpolicy-spec\[certify\]"):
        main()
