"""Sequences: which frames they hold, and diffusion_policy's padding."""

import numpy as np
import pytest

from diffpolicy_spec.data import DataError, Episode, cut_sequences
from diffpolicy_spec.data.sequences import sequence_frames

SHAPE = {"horizon": 16, "n_obs_steps": 2, "n_action_steps": 8}


def reference(length, horizon, n_obs_steps, n_action_steps):
    """The rule, spelled out frame by frame: pad_before = To - 1, pad_after = Ta - 1, repeating first and last."""
    sequences = []
    for start in range(-(n_obs_steps - 1), length - horizon + (n_action_steps - 1) + 1):
        sequences.append([min(max(start + i, 0), length - 1) for i in range(horizon)])
    return np.array(sequences, dtype=np.int64).reshape(-1, horizon)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 40])
def test_frames(length):
    seen, done = sequence_frames(length, **SHAPE)
    np.testing.assert_array_equal(done, reference(length, **SHAPE))
    np.testing.assert_array_equal(seen, done[:, :2])


def test_every_frame_is_once_the_newest_observation_up_to_the_tail():
    frames = sequence_frames(40, **SHAPE)[1]
    assert frames[:, 1].tolist() == list(range(len(frames)))
    assert frames[0].tolist() == [0, 0, *range(1, 15)]
    assert frames[-1].tolist() == [*range(31, 40), *[39] * 7]


def test_a_plan_that_begins_at_the_newest_observation():
    """first_action = 0: what diffusion_policy calls pred_action_steps_only."""
    seen, done = sequence_frames(20, 8, 3, 8, first_action=0)
    np.testing.assert_array_equal(seen[:, -1], np.arange(20))  # every frame is once the newest
    np.testing.assert_array_equal(done[:, 0], seen[:, -1])
    assert done[-1].tolist() == [19] * 8
    assert seen[0].tolist() == [0, 0, 0]


def test_observations_for_all_steps_of_a_plan():
    seen, done = sequence_frames(20, **SHAPE, obs_steps=16)
    np.testing.assert_array_equal(seen, done)


def episode(length, offset=0):
    steps = np.arange(offset, offset + length, dtype=np.float32)[:, None]
    return Episode("demo", {"a": steps, "b": np.tile(-steps, (1, 2))}, np.tile(steps, (1, 3)))


def test_sequences_do_not_cross_episodes():
    data = cut_sequences([episode(20), episode(10, offset=1000)], ["b", "a"], **SHAPE)
    frames = np.concatenate([reference(20, **SHAPE), 1000 + reference(10, **SHAPE)])
    assert len(data) == len(frames)
    np.testing.assert_array_equal(data.actions.numpy(), np.tile(frames[:, :, None], (1, 1, 3)))
    np.testing.assert_array_equal(data.frames.numpy(), np.where(frames < 1000, frames, frames - 980)[:, :2])
    np.testing.assert_array_equal(data.obs.numpy(), frames[:, :2, None] * np.array([-1, -1, 1]))


def test_too_short():
    assert len(cut_sequences([episode(7), episode(8)], ["a"], **SHAPE)) == 1
    with pytest.raises(DataError, match="2 episodes, each needs at least 8 steps"):
        cut_sequences([episode(7), episode(3)], ["a"], **SHAPE)
    with pytest.raises(DataError, match="0 episodes"):
        cut_sequences([], ["a"], **SHAPE)
