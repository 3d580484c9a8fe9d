"""Recorded episodes: round trip, layout of the robomimic file, the split."""

import json

import h5py
import numpy as np
import pytest

from diffpolicy_spec.envs.recording import Episode, load_episode, save_episode, split_by_seed, write_robomimic


def episode(seed, steps=5):
    rng = np.random.default_rng(seed)
    return Episode(
        seed=seed,
        success=True,
        actions=rng.normal(size=(steps, 7)),
        states=rng.normal(size=(steps, 32)),
        obs={"object": rng.normal(size=(steps, 10)), "robot0_eef_pos": rng.normal(size=(steps, 3))},
        rewards=np.zeros(steps),
        dones=np.eye(1, steps, steps - 1, dtype=np.int64)[0],
    )


def test_an_episode_comes_back_as_it_was(tmp_path):
    path = tmp_path / "a.npz"
    wanted = episode(7)
    save_episode(path, wanted)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    got = load_episode(path)
    assert (got.seed, got.success, list(got.obs)) == (7, True, list(wanted.obs))
    for name in ("actions", "states", "rewards", "dones"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))


def test_rows_must_match():
    good = episode(0)
    with pytest.raises(ValueError, match=r"5 actions.*obs/object.*\(4, 10\)"):
        Episode(0, True, good.actions, good.states, {"object": np.zeros((4, 10))}, good.rewards, good.dones)


def test_the_file_is_robomimics(tmp_path):
    path = tmp_path / "lift.hdf5"
    episodes = [episode(seed, steps=4 + seed) for seed in range(20)]
    total = write_robomimic(path, iter(episodes), env_args={"env_name": "Lift", "type": 1}, model_xml="<x/>", seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["lift.hdf5"]
    with h5py.File(path) as file:
        data = file["data"]
        assert data.attrs["total"] == total == sum(4 + seed for seed in range(20))
        assert json.loads(data.attrs["env_args"]) == {"env_name": "Lift", "type": 1}
        for i, wanted in enumerate(episodes):
            demo = data[f"demo_{i}"]
            assert demo.attrs["num_samples"] == len(wanted.actions)
            assert demo.attrs["seed"] == i
            assert demo.attrs["model_file"] == "<x/>"
            np.testing.assert_array_equal(demo["actions"], wanted.actions)
            np.testing.assert_array_equal(demo["obs/object"], wanted.obs["object"])
        train, valid = ({name.decode() for name in file[f"mask/{part}"]} for part in ("train", "valid"))
        assert len(valid) == 2
        assert not train & valid
        assert train | valid == set(data)


def test_the_split_belongs_to_the_seeds_not_to_their_order():
    seeds = list(range(100, 200))
    train, valid = split_by_seed(seeds, seed=1)
    assert (len(train), len(valid)) == (90, 10)
    mirrored = split_by_seed(seeds[::-1], seed=1)[1]
    assert {seeds[i] for i in valid} == {seeds[::-1][i] for i in mirrored}
    assert split_by_seed(seeds, seed=2)[1] != valid
    assert [tuple(map(len, split_by_seed(seeds[:n], seed=1))) for n in (1, 2, 5)] == [(1, 0), (1, 1), (4, 1)]


def test_nothing_to_write_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no episode"):
        write_robomimic(tmp_path / "a.hdf5", [], env_args={}, model_xml="", seed=0)
    assert list(tmp_path.iterdir()) == []
