"""What clients send, as the policy takes it."""

from __future__ import annotations

import numpy as np
import pytest

from diffpolicy_spec.control import PolicyInfo
from diffpolicy_spec.server.observations import History, ObsNames, RequestError, read_observations

INFO = PolicyInfo({"pos": 3, "grip": 1}, {"cam": (3, 4, 5)}, 2, 8, 16, 7, 1)


def step(**changes):
    return {"pos": np.arange(3.0), "grip": np.array([0.5]), "cam": np.zeros((4, 5, 3), np.uint8)} | changes


def read(obs, given=(), how="repeat", history=None):
    names = ObsNames(INFO, dict(given))
    return read_observations(obs, names, INFO, history or History(how, INFO.n_obs_steps, 0.5))


def test_one_step_is_repeated_and_images_get_their_channels_first():
    picture = np.random.default_rng(0).integers(0, 255, (4, 5, 3), np.uint8)
    found = read(step(cam=picture, prompt="lift"))
    assert {key: value.shape for key, value in found.items()} == {"pos": (2, 3), "grip": (2, 1), "cam": (2, 3, 4, 5)}
    np.testing.assert_array_equal(found["cam"][0], picture.transpose(2, 0, 1))
    np.testing.assert_array_equal(found["pos"], [[0, 1, 2]] * 2)


def test_stacks_are_taken_as_they_are_in_either_layout():
    pictures = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)
    stacks = {"pos": np.arange(6.0).reshape(2, 3), "grip": np.ones((2, 1))}
    first = read({**stacks, "cam": pictures})
    last = read({**stacks, "cam": np.moveaxis(pictures, 1, -1)})
    np.testing.assert_array_equal(first["cam"], pictures)
    np.testing.assert_array_equal(last["cam"], pictures)
    np.testing.assert_array_equal(first["pos"], stacks["pos"])


def test_a_number_is_an_observation_of_one_dimension():
    np.testing.assert_array_equal(read(step(grip=0.25))["grip"], [[0.25], [0.25]])


def test_lists_are_read_for_clients_without_numpy():
    np.testing.assert_array_equal(read(step(pos=[1, 2, 3]))["pos"], [[1, 2, 3]] * 2)


def test_names_are_mapped_joined_and_cut():
    given = {"pos": "observation/state[1:4]", "grip": ["a"], "cam": "observation/image"}
    picture = np.zeros((4, 5, 3), np.uint8)
    obs = {"observation/state": np.arange(8.0), "a": np.array([9.0]), "observation/image": picture}
    found = read(obs, given.items())
    np.testing.assert_array_equal(found["pos"][0], [1, 2, 3])
    joined = read({**obs, "x": np.zeros(1), "y": np.ones(2)}, {**given, "pos": ["x", "y"]}.items())
    np.testing.assert_array_equal(joined["pos"][0], [0, 1, 1])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pos": np.zeros(4)}, r"'pos' must be \(3,\) or \(2, 3\), got \(4,\)"),
        ({"pos": np.zeros((3, 3))}, r"got \(3, 3\)"),
        ({"cam": np.zeros((5, 4, 3))}, r"image 'cam' must be \(3, 4, 5\) or \(4, 5, 3\)"),
        ({"cam": np.zeros((3, 3, 4, 5))}, "or 2 of them"),
        ({"pos": "left"}, "'pos' must be an array of numbers"),
        ({"pos": ["a", "b", "c"]}, "'pos' is not an array of numbers"),
        ({"pos": np.zeros((2, 3))}, "grip, cam are of one step, the others of 2"),
    ],
)
def test_other_shapes_are_told(changes, told):
    with pytest.raises(RequestError, match=told) as refused:
        read(step(**changes))
    assert refused.value.kind == "bad_observation"


def test_missing_keys_are_told_with_those_there_are():
    with pytest.raises(RequestError, match="lack grip; there is pos, cam"):
        read({key: value for key, value in step().items() if key != "grip"})
    with pytest.raises(RequestError, match="must be a map"):
        read([1, 2])


def test_an_image_whose_layout_cannot_be_told_is_refused():
    info = PolicyInfo({}, {"cam": (3, 3, 3)}, 1, 8, 16, 7, 0)
    with pytest.raises(RequestError, match="cannot be told apart"):
        read_observations({"cam": np.zeros((3, 3, 3))}, ObsNames(info, {}), info, History("repeat", 1, 0.5))


def test_consecutive_steps_are_a_history_until_there_is_a_gap():
    now = [0.0]
    history = History("consecutive", 2, 0.5, lambda: now[0])
    for time, value, expected in [(0, 1, [1, 1]), (0.1, 2, [1, 2]), (0.2, 3, [2, 3]), (1.0, 4, [4, 4])]:
        now[0] = time
        found = history.stacked({"pos": np.array([float(value)])})
        np.testing.assert_array_equal(found["pos"][:, 0], expected)
    history.reset()
    np.testing.assert_array_equal(history.stacked({"pos": np.array([5.0])})["pos"][:, 0], [5, 5])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e300])
def test_a_step_that_is_not_finite_is_refused_and_not_remembered(wrong):
    history = History("consecutive", 2, 30.0)
    read(step(pos=np.full(3, 1.0)), history=history)
    with pytest.raises(RequestError, match="'pos' holds NaN or infinity"):
        read(step(pos=np.array([0.0, wrong, 0.0])), history=history)
    found = read(step(pos=np.full(3, 2.0)), history=history)
    np.testing.assert_array_equal(found["pos"][:, 0], [1, 2])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"nose": "x"}, "names nose, which the policy does not observe"),
        ({"pos": []}, "'pos' must be a key or a list of keys"),
        ({"pos": 3}, "'pos' must be a key"),
        ({"cam": ["a", "b"]}, "'cam' is one image"),
        ({"cam": "a[0:2]"}, "'cam' is one image"),
    ],
)
def test_maps_that_cannot_be_are_told(given, told):
    with pytest.raises(ValueError, match=told):
        ObsNames(INFO, given)
