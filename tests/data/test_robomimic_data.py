"""robomimic files: what is read, and what is refused."""

import h5py
import numpy as np
import pytest
from tiny_dataset import write_dataset
from tiny_policy import OBS_DIMS

from diffpolicy_spec.data import DataError, read_robomimic
from diffpolicy_spec.data.episodes import fingerprint
from diffpolicy_spec.rotations import actions_from_rot6d


@pytest.fixture
def path(tmp_path):
    return write_dataset(tmp_path / "lift.hdf5")


def test_episodes(path):
    episodes = read_robomimic(path, OBS_DIMS)
    assert [len(e) for e in episodes] == [20, 25, 18, 22]
    with h5py.File(path) as file:
        group = file["data/demo_1"]
        back = actions_from_rot6d(episodes[1].actions.astype(np.float64))
        np.testing.assert_allclose(back, group["actions"], atol=2e-6)
        np.testing.assert_allclose(episodes[1].obs["object"], group["obs/object"], atol=1e-7)
    assert list(episodes[1].obs) == list(OBS_DIMS)
    assert episodes[1].actions.dtype == np.float32
    assert episodes[1].actions.shape == (25, 10)


def test_masks(path):
    assert [len(e) for e in read_robomimic(path, OBS_DIMS, filter_key="train")] == [20, 25, 18]
    assert [len(e) for e in read_robomimic(path, OBS_DIMS, filter_key="valid")] == [22]
    with pytest.raises(DataError, match="no mask/test; masks there: train, valid"):
        read_robomimic(path, OBS_DIMS, filter_key="test")


def test_demonstrations_come_in_the_order_of_their_numbers(tmp_path):
    path = write_dataset(tmp_path / "many.hdf5", lengths=tuple(range(8, 20)))
    assert [len(e) for e in read_robomimic(path, OBS_DIMS)] == list(range(8, 20))


def test_other_representations(path):
    assert read_robomimic(path, OBS_DIMS, action_repr="absolute")[0].actions.shape == (20, 7)
    with h5py.File(path, "a") as file:
        for group in file["data"].values():
            group["actions_abs"] = np.tile(group["actions"], (1, 2))  # two arms
    episode = read_robomimic(path, OBS_DIMS, action_key="actions_abs")[0]
    assert episode.actions.shape == (20, 20)
    np.testing.assert_array_equal(episode.actions[:, :10], episode.actions[:, 10:])


def test_fingerprint_follows_the_data_not_the_file(path, tmp_path):
    other = write_dataset(tmp_path / "moved.hdf5")
    same = [fingerprint(read_robomimic(p, OBS_DIMS)) for p in (path, other)]
    assert same[0] == same[1]
    changed = write_dataset(tmp_path / "changed.hdf5", seed=1)
    assert fingerprint(read_robomimic(changed, OBS_DIMS)) != same[0]


def replace(file, key, change):
    values = file[key][()]
    del file[key]
    result = change(values)
    if result is not None:
        file[key] = result


def nan_at(step):
    def change(values):
        values[step, 1] = np.nan
        return values

    return change


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("data/demo_2/actions", lambda v: None, "demo_2 has no 'actions'; there are: obs"),
        ("data/demo_2/obs/object", lambda v: None, "demo_2 has no 'obs/object'; there are: robot0_eef_pos"),
        ("data/demo_2/obs/object", lambda v: v[:, :9], r"'obs/object' has shape \(18, 9\), expected \(N, 10\)"),
        ("data/demo_2/obs/object", lambda v: v[:-1], r"'obs/object' has shape \(17, 10\), expected \(18, 10\)"),
        ("data/demo_2/obs/object", nan_at(5), "'object' holds NaN or infinity, first at step 5"),
        ("data/demo_2/actions", nan_at(5), "demo_2: 'actions' holds NaN"),
        ("data/demo_2/actions", lambda v: v[:, :6], "needs 7 action dimensions an arm, got 6"),
        ("data/demo_2/actions", lambda v: v[:, 0], r"actions have shape \(18,\), expected \(N, A\)"),
        ("data/demo_2/actions", lambda v: v[:0], "demo_2 has no steps"),
        ("mask/train", lambda v: np.array(["demo_0", "demo_9"], dtype="S"), "not there: demo_9"),
        ("mask/train", lambda v: np.array([], dtype="S6"), "mask/train names no demonstrations"),
    ],
)
def test_damaged_files(path, key, change, message):
    with h5py.File(path, "a") as file:
        replace(file, key, change)
    with pytest.raises(DataError, match=message):
        read_robomimic(path, OBS_DIMS, filter_key="train")


def test_not_a_dataset(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist.*dps-collect"):
        read_robomimic(tmp_path / "nothing.hdf5", OBS_DIMS)
    noise = tmp_path / "noise.hdf5"
    noise.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(DataError, match="not a readable hdf5 file"):
        read_robomimic(noise, OBS_DIMS)
    truncated = tmp_path / "truncated.hdf5"
    data = write_dataset(tmp_path / "whole.hdf5").read_bytes()
    truncated.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="not a readable hdf5 file"):
        read_robomimic(truncated, OBS_DIMS)
    empty = tmp_path / "empty.hdf5"
    with h5py.File(empty, "w") as file:
        file.create_group("elsewhere")
    with pytest.raises(DataError, match="not a robomimic dataset"):
        read_robomimic(empty, OBS_DIMS)


def test_unknown_representation(path):
    with pytest.raises(DataError, match="'quaternion' is not known"):
        read_robomimic(path, OBS_DIMS, action_repr="quaternion")
