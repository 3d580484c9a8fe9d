"""zarr stores in diffusion_policy's layout: what is read, written, and refused."""

import json
import shutil

import numpy as np
import pytest
import zarr

from diffpolicy_spec.data import DataError, read_dataset, read_replay_buffer, write_replay_buffer
from diffpolicy_spec.data.split import split_by_seed

LENGTHS = (12, 7, 9)
STATE, KEYPOINTS = {"state": 5}, {"keypoint": 18, "agent_pos": 2}


def content(lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    steps = sum(lengths)
    return {
        "state": rng.uniform(0, 512, (steps, 5)).astype(np.float32),
        "keypoint": rng.uniform(0, 512, (steps, 9, 2)).astype(np.float32),
        "action": rng.uniform(0, 512, (steps, 2)).astype(np.float32),
    }


@pytest.fixture
def store(tmp_path):
    write_replay_buffer(tmp_path / "pusht.zarr", content(), np.cumsum(LENGTHS))
    return tmp_path / "pusht.zarr"


@pytest.mark.parametrize("name", ["pusht.zarr", "pusht.zarr.zip"])
def test_episodes(tmp_path, name):
    data = content()
    write_replay_buffer(tmp_path / name, data, np.cumsum(LENGTHS))
    episodes = read_replay_buffer(tmp_path / name, STATE)
    assert [len(e) for e in episodes] == list(LENGTHS)
    np.testing.assert_array_equal(np.concatenate([e.obs["state"] for e in episodes]), data["state"])
    np.testing.assert_array_equal(np.concatenate([e.actions for e in episodes]), data["action"])
    assert episodes[1].name.endswith(f"{name}: episode 1")


def test_keypoints_are_flattened_and_agent_pos_is_the_beginning_of_the_state(store):
    data = content()
    episodes = read_replay_buffer(store, KEYPOINTS)
    assert list(episodes[0].obs) == ["keypoint", "agent_pos"]
    np.testing.assert_array_equal(episodes[0].obs["keypoint"], data["keypoint"][:12].reshape(12, 18))
    np.testing.assert_array_equal(episodes[2].obs["agent_pos"], data["state"][19:, :2])


def test_an_array_of_its_own_goes_before_columns_of_another(tmp_path):
    data = content() | {"agent_pos": np.full((sum(LENGTHS), 2), 7.0)}
    write_replay_buffer(tmp_path / "a.zarr", data, np.cumsum(LENGTHS))
    assert (read_replay_buffer(tmp_path / "a.zarr", KEYPOINTS)[0].obs["agent_pos"] == 7.0).all()


def test_the_store_is_of_format_2(store):
    """diffusion_policy's zarr reads no other."""
    assert json.loads((store / ".zgroup").read_text()) == {"zarr_format": 2}
    described = json.loads((store / "data" / "action" / ".zarray").read_text())
    assert described["zarr_format"] == 2
    assert described["shape"] == [28, 2]
    assert not list(store.rglob("zarr.json"))


def test_a_store_that_zarr_wrote_by_itself(tmp_path):
    """With other chunks, another compressor, an array that no policy observes, and 64-bit numbers."""
    data = content()
    root = zarr.open_group(tmp_path / "own.zarr", mode="w", zarr_format=2)
    for key, values in data.items():
        root.create_array(
            f"data/{key}", data=values.astype(np.float64), chunks=(5, *values.shape[1:]), compressors=None
        )
    root.create_array("data/img", data=np.zeros((28, 4, 4, 3), np.uint8))
    root.create_array("meta/episode_ends", data=np.cumsum(LENGTHS))
    ours = read_replay_buffer(tmp_path / "own.zarr", STATE)
    assert [len(e) for e in ours] == list(LENGTHS)
    assert ours[0].actions.dtype == np.float32
    np.testing.assert_array_equal(ours[1].actions, data["action"][12:19])


def test_split(tmp_path):
    lengths = tuple(range(5, 35))
    write_replay_buffer(tmp_path / "many.zarr", content(lengths), np.cumsum(lengths))
    everything = read_replay_buffer(tmp_path / "many.zarr", STATE)
    parts = {key: read_replay_buffer(tmp_path / "many.zarr", STATE, filter_key=key) for key in ("train", "valid")}
    train, valid = split_by_seed(range(30), 0)
    assert [len(e) for e in parts["train"]] == [len(everything[i]) for i in train]
    assert [len(e) for e in parts["valid"]] == [len(everything[i]) for i in valid]
    assert len(valid) == 3
    with pytest.raises(DataError, match=r"'train' and 'valid' .a fixed split., not 'worse'"):
        read_replay_buffer(tmp_path / "many.zarr", STATE, filter_key="worse")


def test_one_episode_has_no_validation_part(tmp_path):
    write_replay_buffer(tmp_path / "one.zarr", content((9,)), [9])
    assert len(read_replay_buffer(tmp_path / "one.zarr", STATE, filter_key="train")) == 1
    with pytest.raises(DataError, match="too few for a 'valid' part"):
        read_replay_buffer(tmp_path / "one.zarr", STATE, filter_key="valid")


def test_rotations_are_converted_as_in_robomimic_files(tmp_path):
    data = content() | {"action": np.random.default_rng(1).uniform(-1, 1, (28, 7))}
    write_replay_buffer(tmp_path / "arm.zarr", data, np.cumsum(LENGTHS))
    assert read_replay_buffer(tmp_path / "arm.zarr", STATE, action_repr="absolute_rot6d")[0].actions.shape == (12, 10)
    assert read_replay_buffer(tmp_path / "arm.zarr", STATE, action_repr="delta")[0].actions.shape == (12, 7)


def test_read_dataset_sees_the_format_from_the_path(store, tmp_path):
    same = read_replay_buffer(store, STATE)
    plain = shutil.copytree(store, tmp_path / "no_suffix")
    for path in (store, str(store), plain):
        episodes = read_dataset(path, STATE, action_repr="raw")
        np.testing.assert_array_equal(episodes[2].actions, same[2].actions)
    assert read_dataset(store, STATE, action_repr="raw", action_key="state")[0].actions.shape == (12, 5)
    with pytest.raises(FileNotFoundError, match=r"no_such\.zarr does not exist"):
        read_dataset(tmp_path / "no_such.zarr", STATE, action_repr="raw")
    with pytest.raises(FileNotFoundError, match=r"no_such\.hdf5 does not exist"):
        read_dataset(tmp_path / "no_such.hdf5", STATE, action_repr="raw")


def test_writing_again_replaces_the_store(store):
    write_replay_buffer(store, content((4, 3), seed=1), [4, 7])
    assert [len(e) for e in read_replay_buffer(store, STATE)] == [4, 3]
    assert [p.name for p in store.parent.iterdir()] == ["pusht.zarr"]


@pytest.mark.parametrize(
    ("data", "ends", "message"),
    [
        (content() | {"action": np.zeros((27, 2))}, [12, 19, 28], "one row per step each"),
        (content(), [12, 12, 28], "must increase: episode 1 ends at 12 and has 0 steps"),
        (content(), [12, 5, 28], "must increase: episode 1 ends at 5"),
        (content(), [12, 19, 27], "ends at 27, the data has 28 rows"),
        (content(), [12, 19, 40], "ends at 40, the data has 28 rows"),
        (content(), [], "whole numbers, one an episode"),
        (content(), [12.0, 28.0], "whole numbers, one an episode"),
    ],
)
def test_what_is_not_written(tmp_path, data, ends, message):
    with pytest.raises(DataError, match=message):
        write_replay_buffer(tmp_path / "bad.zarr", data, ends)
    assert not list(tmp_path.iterdir())


def put(array, where, value):
    array[where] = value


@pytest.mark.parametrize(
    ("change", "dims", "message"),
    [
        (lambda root: None, {"object": 14}, "has no 'data/object'; there are: action, keypoint, state"),
        (lambda root: None, {"state": 4}, r"'state' has 5 numbers a step .* expected 4"),
        (lambda root: root["meta"]["episode_ends"].resize((2,)), STATE, "ends at 19, the data has 28 rows"),
        (lambda root: root["data"]["state"].resize((20, 5)), STATE, "'data/state' has 20 rows, the actions have 28"),
        (
            lambda root: put(root["data"]["state"], (13, 2), np.nan),
            STATE,
            "episode 1: 'state' holds NaN.*step 1",
        ),
        (
            lambda root: put(root["data"]["action"], (0, 0), np.inf),
            STATE,
            "episode 0: 'actions' holds NaN or inf",
        ),
        (lambda root: put(root["meta"]["episode_ends"], 1, 3), STATE, "must increase: episode 1 ends at 3"),
        (lambda root: root["data"].__delitem__("action"), STATE, "has no 'data/action'"),
        (lambda root: root.__delitem__("meta"), STATE, "has no 'meta/episode_ends'; there are: none"),
    ],
)
def test_what_is_not_read(store, change, dims, message):
    change(zarr.open_group(store, mode="r+"))
    with pytest.raises(DataError, match=message):
        read_replay_buffer(store, dims)


def test_a_damaged_chunk(store):
    chunk = store / "data" / "state" / "0.0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(DataError, match="'data/state' cannot be read"):
        read_replay_buffer(store, STATE)


def test_what_is_no_store(tmp_path):
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "text.zip").write_text("hello")
    for path in ("empty.zarr", "text.zip"):
        with pytest.raises(DataError, match="not a readable zarr store"):
            read_replay_buffer(tmp_path / path, STATE)
