"""Every format is seen from its content, and loaded by one function."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import h5py
import pytest
import torch
from safetensors.torch import save_file
from tiny_policy import tiny_policy
from upstream_fixtures import fixture

from diffpolicy_spec.checkpoints import load_policy
from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.formats import FORMATS, detect, look, read_parts
from diffpolicy_spec.data import write_replay_buffer

FOREIGN = {
    "diffusion_policy": "dp_unet_lowdim_global",
    "lerobot": "lerobot_state_env",
    "robomimic": "robomimic_lowdim",
}


@pytest.fixture(params=FORMATS)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    if request.param != "native":
        return request.param, fixture(FOREIGN[request.param], tmp_path)[0]
    tiny_policy().save(tmp_path / "native")
    return "native", tmp_path / "native"


def test_any_format_is_loaded(checkpoint: tuple[str, Path], tmp_path: Path) -> None:
    """Whatever it is called; and saved as our own, it is the same policy."""
    format, path = checkpoint
    renamed = path.rename(tmp_path / "policy.something")
    assert detect(renamed) == format
    policy = load_policy(renamed)
    assert policy.origin.get("format", "native") == format
    policy.save(tmp_path / "saved")
    again = load_policy(tmp_path / "saved")
    assert detect(tmp_path / "saved") == "native"
    assert again.config == policy.config
    assert (again.origin, again.notes, again.scheduler_config) == (
        policy.origin, policy.notes, policy.scheduler_config,
    )  # fmt: skip
    assert all(
        torch.equal(value, again.network.state_dict()[name]) for name, value in policy.network.state_dict().items()
    )
    obs = {key: torch.randn(1, policy.config.n_obs_steps, dim) for key, dim in policy.config.obs_dims.items()}
    chunks = [p.predict_action(obs, generator=torch.Generator().manual_seed(0)).action for p in (policy, again)]
    assert torch.equal(*chunks)


def test_a_file_may_be_replaced_after_loading(checkpoint: tuple[str, Path]) -> None:
    """Nothing stays mapped: a policy keeps its weights, and the process lives, when its file is overwritten."""
    _, path = checkpoint
    policy = load_policy(path)
    before = {name: value.clone() for name, value in policy.network.state_dict().items()}
    for file in [path] if path.is_file() else [f for f in path.iterdir() if f.is_file()]:
        with file.open("r+b") as opened:
            opened.truncate(16)
    assert all(torch.equal(value, before[name]) for name, value in policy.network.state_dict().items())


def test_weights_are_chosen(tmp_path: Path) -> None:
    path, _, _ = fixture(FOREIGN["diffusion_policy"], tmp_path)
    assert load_policy(path).origin["weights"] == "ema_model"
    assert load_policy(path, weights="model").origin["weights"] == "model"
    path, _, _ = fixture(FOREIGN["robomimic"], tmp_path)
    assert load_policy(path).origin["weights"] != load_policy(path, weights="model").origin["weights"]
    tiny_policy().save(tmp_path / "native")
    with pytest.raises(CheckpointError, match="one set of weights"):
        load_policy(tmp_path / "native", weights="model")


def test_the_pickle_is_described_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffpolicy_spec.checkpoints.pickles import opcodes, read

    path, _, _ = fixture(FOREIGN["diffusion_policy"], tmp_path)
    calls = []
    monkeypatch.setattr(read, "decode", lambda *given: calls.append(1) or opcodes.decode(*given))
    read_parts(look(path))
    assert len(calls) == 1


def write_zip(path: Path, names: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in names.items():
            file.writestr(name, data)
    return path


def hdf5(folder: Path) -> Path:
    with h5py.File(folder / "data.hdf5", "w") as file:
        file["x"] = 1
    return folder / "data.hdf5"


def zarr(folder: Path, name: str) -> Path:
    import numpy as np

    write_replay_buffer(folder / name, {"action": np.ones((4, 2), "f4")}, [4])
    return folder / name


def safetensors(folder: Path) -> Path:
    save_file({"x": torch.ones(2)}, folder / "model.safetensors")
    return folder / "model.safetensors"


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def saved(folder: Path, value: object) -> Path:
    torch.save(value, folder / "x.pt")
    return folder / "x.pt"


def legacy(folder: Path) -> Path:
    torch.save({"state_dicts": {}}, folder / "x.ckpt", _use_new_zipfile_serialization=False)
    return folder / "x.ckpt"


OTHERS = {
    "hdf5": (hdf5, "an hdf5 file: a dataset, not a policy"),
    "zarr folder": (lambda f: zarr(f, "x.zarr"), "is a dataset, not a policy"),
    "zarr zip": (lambda f: zarr(f, "x.zarr.zip"), "a zipped zarr store: a dataset"),
    "LeRobot dataset": (lambda f: written(f / "set/meta/info.json", b"{}").parent.parent, "is a dataset"),
    "LeRobot training state": (
        lambda f: written(f / "last/pretrained_model/config.json", b"{}").parent.parent, "the policy is .*pretrained_m",
    ),
    "run": (lambda f: written(f / "run/checkpoints/latest.ckpt", b"").parent.parent, "folder of a run; .*latest.ckpt"),
    "safetensors": (safetensors, "a safetensors file: give the folder"),
    "json": (lambda f: written(f / "config.json", b"{}"), "a JSON file: give the folder"),
    "text": (lambda f: written(f / "x.ckpt", b"version https://git-lfs"), "not a file written by torch.save"),
    "empty": (lambda f: written(f / "x.ckpt", b""), "is empty"),
    "empty folder": (lambda f: written(f / "d/x", b"").parent, "it has no config.json"),
    "state dict": (lambda f: saved(f, {"w": torch.ones(2)}), "neither diffusion_policy .* nor robomimic .* holds 'w'"),
    "list": (lambda f: saved(f, [1]), "holds a list; a checkpoint is a dict"),
    "old format": (legacy, "torch.save's old format.*torch.save\\(torch.load"),
    "other zip": (lambda f: write_zip(f / "x.ckpt", {"a/b.txt": b"x"}), "not one of torch.save: it holds no data.pkl"),
    "TorchScript": (lambda f: write_zip(f / "x.pt", {"a/data.pkl": b".", "a/constants.pkl": b"."}), "TorchScript"),
    "bad JSON": (lambda f: written(f / "d/config.json", bytes(range(256))).parent, "not valid JSON"),
    "no object": (lambda f: written(f / "d/config.json", b"[1]").parent, "must be a mapping"),
    "other type": (
        lambda f: written(f / "d/config.json", json.dumps({"type": "act"}).encode()).parent, "policy of type 'act'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_checkpoint_is_told(name: str, tmp_path: Path) -> None:
    make, message = OTHERS[name]
    path = make(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_policy(path)


def test_a_missing_path_and_a_device() -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        detect("/nowhere/at.all")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        detect("/dev/null")


def test_a_loop_of_links_is_told(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(CheckpointError, match=r"does not exist|cannot be read"):
        detect(loop)
