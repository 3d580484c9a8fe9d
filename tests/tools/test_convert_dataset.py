"""Datasets into the other format and back: what was there is there."""

import json
import tracemalloc

import h5py
import numpy as np
import pytest
import zarr
from recordings import ENV_ARGS, contents, write_everything

from diffpolicy_spec.data import DataError, read_replay_buffer, read_robomimic, write_replay_buffer
from diffpolicy_spec.data.image_sources import MappedImages
from diffpolicy_spec.tools import recording as recording_module
from diffpolicy_spec.tools.convert import ConversionError
from diffpolicy_spec.tools.convert import convert as convert_files
from diffpolicy_spec.tools.convert_dataset import plan_dataset

DIMS = {"object": 10, "robot0_eef_quat": 4}


def convert(source, target, drop=()):
    kinds = {".hdf5": "hdf5", ".zarr": "zarr", ".zip": "zarr"}
    with plan_dataset(source, kinds[source.suffix], target, kinds[target.suffix], drop) as plan:
        plan.write()
    return plan


@pytest.mark.parametrize("name", ["a.zarr", "a.zarr.zip"])
@pytest.mark.parametrize("block", [1, 1000, 8 << 20])
def test_hdf5_there_and_back(tmp_path, monkeypatch, name, block):
    monkeypatch.setattr(recording_module, "BLOCK_BYTES", block)
    source = write_everything(tmp_path / "a.hdf5", next_obs=True)
    plan = convert(source, tmp_path / name)
    assert plan.losses == ()
    convert(tmp_path / name, tmp_path / "b.hdf5")
    assert contents(tmp_path / "b.hdf5") == contents(source)
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_our_readers_see_the_same_episodes(tmp_path):
    source = write_everything(tmp_path / "a.hdf5")
    convert(source, tmp_path / "a.zarr")
    ours, theirs = (
        read_robomimic(source, DIMS),
        read_replay_buffer(tmp_path / "a.zarr", DIMS, action_repr="absolute_rot6d"),
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
        for key in DIMS:
            np.testing.assert_array_equal(a.obs[key], b.obs[key])


def test_the_store_is_what_diffusion_policy_asserts(tmp_path):
    """ReplayBuffer's own checks: format 2, one row a step in each array of data, groups nowhere in it."""
    convert(write_everything(tmp_path / "a.hdf5"), tmp_path / "a.zarr")
    root = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert not list((tmp_path / "a.zarr").rglob("zarr.json"))
    assert list(root["data"].group_keys()) == []
    assert {value.shape[0] for _, value in root["data"].arrays()} == {int(root["meta"]["episode_ends"][-1])} == {29}
    assert root["data"]["agentview_image"].chunks == (1, 12, 10, 3)
    np.testing.assert_array_equal(root["meta"]["mask.train"][:], [True, True, False])
    assert json.loads(root.attrs["robomimic"]["attributes"]["env_args"]) == ENV_ARGS


@pytest.mark.parametrize("name", ["push.zarr", "push.zarr.zip"])
def test_zarr_there_and_back(tmp_path, name):
    """Push-T: keypoints are vectors in robomimic's file and what they were when they come back."""
    rng = np.random.default_rng(0)
    data = {
        "state": rng.normal(size=(30, 5)).astype("f4"),
        "keypoint": rng.normal(size=(30, 9, 2)).astype("f4"),
        "img": rng.integers(0, 255, (30, 8, 8, 3)).astype("f4"),
        "n_contacts": np.zeros((30, 1), "f4"),
        "action": rng.normal(size=(30, 2)).astype("f4"),
    }
    write_replay_buffer(tmp_path / name, data, [4, 17, 30])
    plan = convert(tmp_path / name, tmp_path / "b.hdf5")
    assert plan.losses == ()
    assert "no env_args" in plan.notes[0]
    with h5py.File(tmp_path / "b.hdf5") as file:
        assert file["data/demo_1/obs/keypoint"].shape == (13, 18)
        assert file["data/demo_2"].attrs["num_samples"] == 13
        np.testing.assert_array_equal(file["data/demo_1/obs/img"], data["img"][4:17])
    assert len(read_robomimic(tmp_path / "b.hdf5", {"keypoint": 18, "state": 5}, action_repr="raw")) == 3
    convert(tmp_path / "b.hdf5", tmp_path / "c.zarr")
    root = zarr.open_group(tmp_path / "c.zarr", mode="r")
    assert sorted(root["data"].array_keys()) == sorted(data)
    for key, values in data.items():
        assert root["data"][key].dtype == values.dtype
        np.testing.assert_array_equal(root["data"][key][:], values)
    np.testing.assert_array_equal(root["meta"]["episode_ends"][:], [4, 17, 30])


def test_uncompressed_images_are_mapped_in_training(tmp_path):
    packed, plain = tmp_path / "packed.hdf5", tmp_path / "plain.hdf5"
    convert_files(write_everything(tmp_path / "a.hdf5"), packed)
    convert_files(packed, plain, compress=False)
    with h5py.File(packed) as before, h5py.File(plain) as after:
        key = "data/demo_0/obs/agentview_image"
        assert (before[key].compression, after[key].compression, after[key].chunks) == ("gzip", None, None)
        np.testing.assert_array_equal(before[key][:], after[key][:])
    shapes = {"agentview_image": (3, 12, 10)}
    episode = read_robomimic(plain, DIMS, image_shapes=shapes)[0]
    assert isinstance(episode.images["agentview_image"].source, MappedImages)
    with pytest.raises(ConversionError, match="hdf5 files only, not in zarr"):
        convert_files(plain, tmp_path / "b.zarr", compress=False)


def test_dropped_columns(tmp_path):
    source = write_everything(tmp_path / "a.hdf5", next_obs=True)
    convert(source, tmp_path / "b.hdf5", drop=["next_obs", "states", "obs/agentview_image"])
    names = contents(tmp_path / "b.hdf5")
    assert not [n for n in names if "next_obs" in n or "states" in n or "image" in n]
    assert {k: v for k, v in contents(source).items() if k in names} == names
    with pytest.raises(DataError, match=r"no 'staets' to drop; there are: .*states"):
        convert(source, tmp_path / "c.hdf5", drop=["staets"])
    with pytest.raises(DataError, match="'actions' cannot be dropped"):
        convert(source, tmp_path / "c.hdf5", drop=["actions"])


def test_what_has_no_place_is_told(tmp_path):
    source = write_everything(tmp_path / "a.hdf5", images=False)
    with h5py.File(source, "a") as file:
        file["extra/notes"] = np.arange(3)
    with plan_dataset(source, "hdf5", tmp_path / "a.zarr", "zarr") as plan:
        assert plan.losses == ("/extra has no place in diffusion_policy's layout",)
        assert not (tmp_path / "a.zarr").exists()
    write_replay_buffer(tmp_path / "b.zarr", {"action": np.zeros((4, 2)), "state": np.ones((4, 2))}, [4])
    root = zarr.open_group(tmp_path / "b.zarr", mode="r+")
    root["meta"].create_array("camera", data=np.eye(3))
    root.attrs["lab"] = "ours"
    with plan_dataset(tmp_path / "b.zarr", "zarr", tmp_path / "b.hdf5", "hdf5") as plan:
        assert plan.losses == tuple(
            f"{what} has no place in robomimic's layout" for what in ("'meta/camera'", "attribute 'lab'")
        )


def remove(key):
    def change(file):
        del file[key]

    return change


def put(key, value):
    def change(file):
        if key in file:
            del file[key]
        file[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("data/demo_1/obs/object"), "'obs/object' is not in all demonstrations: demo_1 has none"),
        (remove("data/demo_1/actions"), "demo_1 has no actions"),
        (put("data/demo_1/states", np.zeros((13, 32))), "'states' has shape .13, 32., the actions have 14 rows"),
        (put("data/demo_1/states", np.zeros((14, 31))), "'states' has rows of several shapes"),
        (put("data/demo_1/rewards", np.zeros(14, "S3")), "'rewards' holds .S3, expected numbers"),
        (put("data/demo_1/obs/action", np.zeros((14, 2))), "'obs/action' is not in all"),
        (put("mask/train", np.array([b"demo_7"])), "mask/train names demonstrations that are not there: demo_7"),
        (put("data/note", np.zeros(3)), "data/note is not a demonstration"),
    ],
)
def test_damaged_sources_are_not_converted(tmp_path, change, message):
    source = write_everything(tmp_path / "a.hdf5", images=False)
    with h5py.File(source, "a") as file:
        change(file)
    with pytest.raises(DataError, match=message):
        convert(source, tmp_path / "b.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hdf5"]


def test_names_that_collide(tmp_path):
    source = write_everything(tmp_path / "a.hdf5", lengths=(5,), images=False)
    with h5py.File(source, "a") as file:
        file["data/demo_0/obs/states"] = np.zeros((5, 2))
    with pytest.raises(DataError, match="'obs/states' and 'states' would both be 'data/states'"):
        convert(source, tmp_path / "b.zarr")


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path):
    write_replay_buffer(tmp_path / "a.zarr", {"action": np.ones((40, 2)), "state": np.ones((40, 3))}, [40])
    chunk = tmp_path / "a.zarr" / "data" / "state" / "0.0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(DataError, match="'data/state' cannot be read"):
        convert(tmp_path / "a.zarr", tmp_path / "b.hdf5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr"]


def test_a_dataset_larger_than_the_memory_it_takes(tmp_path):
    """59 MB of incompressible images, in one episode, go through in a few blocks, there and back."""
    frames = np.random.default_rng(0).integers(0, 256, (300, 256, 256, 3), np.uint8)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((300, 2))
        file["data/demo_0/obs/image"] = frames
    size = frames.nbytes
    del frames
    for source, target in (("a.hdf5", "a.zarr.zip"), ("a.zarr.zip", "b.hdf5")):
        tracemalloc.start()
        try:
            convert(tmp_path / source, tmp_path / target)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 0.75 * size, f"{source}: {peak / 1e6:.0f} of {size / 1e6:.0f} MB"
