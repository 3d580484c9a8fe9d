"""dps-inspect on datasets: what it tells, in words and as JSON, and what it says of broken ones."""

import json
import re
import shutil

import h5py
import numpy as np
import pytest
import zarr
from recordings import write_everything
from tiny_dataset import write_dataset

from diffpolicy_spec.data import write_replay_buffer
from diffpolicy_spec.tools import describe
from diffpolicy_spec.tools.inspect_cli import run


def test_a_robomimic_file(tmp_path, capsys):
    path = write_everything(tmp_path / "a.hdf5")
    assert run([str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["kind"], data["format"]) == ("dataset", "robomimic hdf5")
    assert (data["episodes"], data["steps"], data["steps_of_an_episode"]) == (3, 29, [6, 14])
    assert data["masks"] == {"train": 2, "valid": 1}
    assert data["recorded_in"] == {
        "env_name": "Lift", "env_version": "1.5.1", "type": 1, "controllers": ["OSC_POSE delta"],
    }  # fmt: skip
    assert data["actions_are"] == "delta"
    assert data["fits_tasks"] == ["lift"]
    arrays = {row["key"]: row for row in data["arrays"]}
    assert arrays["obs/agentview_image"] == {"key": "obs/agentview_image", "shape": "(N, 12, 10, 3)", "dtype": "uint8"}
    with h5py.File(path) as file:
        actions = np.concatenate([file[f"data/demo_{i}/actions"] for i in range(3)])
    np.testing.assert_allclose(data["action_range"]["min"], actions.min(axis=0), atol=1e-6)
    np.testing.assert_allclose(data["action_range"]["max"], actions.max(axis=0), atol=1e-6)
    assert arrays["actions"]["range"] == [round(actions.min(), 6), round(actions.max(), 6)]
    assert data["notes"] == data["problems"] == []


def test_the_same_in_words(tmp_path, capsys):
    assert run([str(write_everything(tmp_path / "a.hdf5"))]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{tmp_path}/a.hdf5: robomimic hdf5 dataset\n")
    for line in ("episodes             3", "train 2, valid 1", "OSC_POSE delta", "fits tasks           lift"):
        assert line in text
    assert "  obs/agentview_image      (N, 12, 10, 3)  uint8\n" in text


def test_without_env_args_shapes_decide(tmp_path):
    report = describe(write_dataset(tmp_path / "a.hdf5"))
    assert report.facts["fits_tasks"] == ["lift"]
    assert report.facts["actions_are"] is None
    assert "no env_args" in report.notes[0]


@pytest.mark.parametrize("name", ["push.zarr", "push.zarr.zip", "no_suffix"])
def test_a_replay_buffer(tmp_path, name):
    data = {"state": np.ones((30, 5)), "action": np.zeros((30, 2)), "img": np.zeros((30, 8, 8, 3), "u1")}
    write_replay_buffer(tmp_path / name, data, [12, 30])
    report = describe(tmp_path / name)
    assert (report.format, report.facts["episodes"], report.facts["steps"]) == ("diffusion_policy zarr", 2, 30)
    assert {"pusht", "pusht_mujoco"} <= set(report.facts["fits_tasks"])
    assert "lift" not in report.facts["fits_tasks"]
    assert [row["key"] for row in report.facts["arrays"]] == ["actions", "obs/img", "obs/state"]
    assert "no masks" in report.notes[0]


def test_an_old_recording_is_said_to_be_one(tmp_path):
    path = write_everything(tmp_path / "a.hdf5", images=False)
    with h5py.File(path, "a") as file:
        args = json.loads(file["data"].attrs["env_args"])
        file["data"].attrs["env_args"] = json.dumps(args | {"env_version": "1.4.1"})
    assert any("robosuite 1.4.1" in note for note in describe(path).notes)


def test_a_lerobot_dataset_is_named(tmp_path):
    (tmp_path / "set" / "meta").mkdir(parents=True)
    info = {"codebase_version": "v3.0", "total_episodes": 7, "total_frames": 70, "fps": 10, "splits": {"train": "0:7"},
            "features": {"action": {"dtype": "float32", "shape": [2]}}}  # fmt: skip
    (tmp_path / "set" / "meta" / "info.json").write_text(json.dumps(info))
    report = describe(tmp_path / "set")
    assert (report.format, report.facts["episodes"], report.facts["fps"]) == ("LeRobot", 7, 10)
    assert report.facts["arrays"] == [{"key": "action", "shape": "[2]", "dtype": "float32"}]
    assert "not read" in report.notes[0]


def change_hdf5(path, change):
    with h5py.File(path, "a") as file:
        change(file)


def set_item(key, where, value):
    def change(file):
        file[key][where] = value

    return change


def delete(key):
    def change(file):
        del file[key]

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (set_item("data/demo_1/actions", (3, 2), np.nan), "'actions' holds 1 values that are NaN or infinite"),
        (delete("data/demo_2/obs/object"), "'obs/object' is not in all demonstrations: demo_2 has none"),
        (delete("data/demo_2/actions"), "demo_2 has no actions"),
        (set_item("mask/valid", 0, b"demo_9"), "mask/valid names demonstrations that are not there: demo_9"),
    ],
)
def test_problems_are_listed_beside_what_can_be_told(tmp_path, capsys, change, problem):
    path = write_everything(tmp_path / "a.hdf5", images=False)
    change_hdf5(path, change)
    assert run([str(path)]) == 1
    text = capsys.readouterr().out
    assert f"problems\n  - {problem}" in text
    assert "env name Lift" in text


def test_a_damaged_chunk(tmp_path):
    write_replay_buffer(tmp_path / "a.zarr", {"action": np.ones((40, 2)), "state": np.ones((40, 3))}, [40])
    chunk = tmp_path / "a.zarr" / "data" / "state" / "0.0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    (problem,) = describe(tmp_path / "a.zarr").problems
    assert problem.startswith("'data/state' cannot be read")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: truncate(write_everything(p)), "is not a readable hdf5 file"),
        (lambda p: p.symlink_to(p), "cannot be read|does not exist"),
        (lambda p: (p.mkdir(), (p / ".zgroup").write_text("{")), "is not a readable zarr store"),
        (lambda p: zarr.open_group(p, mode="w", zarr_format=2), "not a replay buffer"),
    ],
)
def test_one_line_for_what_cannot_be_read(tmp_path, capsys, make, message):
    path = tmp_path / "broken"
    make(path)
    assert run([str(path)]) == 1
    caught = capsys.readouterr()
    assert caught.out == ""
    assert len(caught.err.splitlines()) == 1
    assert str(path) in caught.err
    assert re.search(message, caught.err)
    assert run([str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]


def test_reading_does_not_change_a_dataset(tmp_path):
    path = write_everything(tmp_path / "a.hdf5")
    before = path.read_bytes()
    describe(path)
    assert path.read_bytes() == before
    shutil.rmtree(tmp_path)
