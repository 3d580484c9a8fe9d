"""robomimic's SequenceDataset and our reader cut the same sequences out of the same hdf5."""

import numpy as np
import pytest

from diffpolicy_spec.data import cut_sequences, read_robomimic
from diffpolicy_spec.envs.recording import Episode, write_robomimic

DIMS = {"object": 10, "robot0_eef_pos": 3}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Twelve demonstrations of 9 to 20 steps: demo_10 and demo_11 come after demo_9, not after demo_1."""
    path = tmp_path_factory.mktemp("data") / "demos.hdf5"
    rng = np.random.default_rng(0)
    lengths = np.arange(9, 21)
    episodes = [
        Episode(
            seed=i,
            success=True,
            actions=rng.normal(size=(n, 7)),
            states=rng.normal(size=(n, 4)),
            obs={key: rng.normal(size=(n, dim)) for key, dim in DIMS.items()},
            rewards=np.zeros(n),
            dones=np.zeros(n, dtype=np.int64),
        )
        for i, n in enumerate(lengths)
    ]
    write_robomimic(path, episodes, env_args={"env_name": "Lift", "type": 1, "env_kwargs": {}}, model_xml="", seed=0)
    return path


def robomimic_dataset(path, frame_stack, seq_length, pad, filter_key=None):
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.utils.dataset import SequenceDataset

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(DIMS), "rgb": []}})
    return SequenceDataset(
        hdf5_path=str(path),
        obs_keys=tuple(DIMS),
        dataset_keys=("actions",),
        frame_stack=frame_stack,
        seq_length=seq_length,
        pad_frame_stack=True,
        pad_seq_length=pad,
        hdf5_cache_mode=None,
        hdf5_use_swmr=False,
        filter_by_attribute=filter_key,
        load_next_obs=False,
    )


@pytest.mark.parametrize("filter_key", [None, "train", "valid"])
@pytest.mark.parametrize(("horizon", "n_obs", "n_action"), [(16, 2, 8), (8, 3, 1), (8, 1, 4)])
def test_the_same_sequences(path, horizon, n_obs, n_action, filter_key):
    """robomimic's sequence i of a demonstration is frames i - To + 1 ... i - To + T, first and last frames repeated.

    With padding it has one for every frame. Ours are the same ones, up to the last in which the Ta executed actions
    have at most Ta - 1 repetitions after the end: i < N - T + To + Ta - 1 (diffusion_policy's rule).
    """
    theirs = robomimic_dataset(path, n_obs, horizon - n_obs + 1, pad=True, filter_key=filter_key)
    episodes = read_robomimic(path, DIMS, action_repr="absolute", filter_key=filter_key)
    assert [e.name.rpartition(" ")[2] for e in episodes] == theirs.demos
    ours = cut_sequences(episodes, tuple(DIMS), horizon=horizon, n_obs_steps=n_obs, n_action_steps=n_action)
    wanted_obs, wanted_actions = [], []
    for demo, episode in zip(theirs.demos, episodes, strict=True):
        start, length = theirs._demo_id_to_start_indices[demo], theirs._demo_id_to_demo_length[demo]
        assert length == len(episode)
        for i in range(max(0, length - horizon + n_obs + n_action - 1)):
            item = theirs[start + i]
            wanted_obs.append(np.concatenate([item["obs"][key][:n_obs] for key in DIMS], axis=1))
            wanted_actions.append(item["actions"])
    np.testing.assert_array_equal(ours.obs.numpy(), np.array(wanted_obs, dtype=np.float32))
    np.testing.assert_array_equal(ours.actions.numpy(), np.array(wanted_actions, dtype=np.float32))


def test_without_padding_robomimics_are_among_ours(path):
    """One frame of history, no action beyond the end: the N - T + 1 whole windows of each demonstration."""
    theirs = robomimic_dataset(path, 1, 8, pad=False)
    episodes = read_robomimic(path, DIMS, action_repr="absolute")
    ours = cut_sequences(episodes, tuple(DIMS), horizon=8, n_obs_steps=1, n_action_steps=1)
    assert len(theirs) == len(ours) == sum(len(e) - 7 for e in episodes)
    for i in range(len(theirs)):
        item = theirs[i]
        np.testing.assert_array_equal(ours.actions[i].numpy(), np.float32(item["actions"]))
        joined = np.concatenate([item["obs"][key][:1] for key in DIMS], axis=1)
        np.testing.assert_array_equal(ours.obs[i].numpy(), np.float32(joined))
