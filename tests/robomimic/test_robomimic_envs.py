"""robomimic's EnvRobosuite and our environment agree: observations, images, success, on the same states and actions."""

import numpy as np
import pytest

from diffpolicy_spec.envs import RenderUnavailable, make_env, make_env_from_args
from diffpolicy_spec.eval.robomimic_partner import create_env


def seeded_like(env, seed):
    """The state of the generator that `reset(seed=seed)` gives robosuite."""
    return np.random.default_rng(np.random.default_rng(seed).integers(2**63)).bit_generator.state


def assert_same(theirs, ours, keys, **tolerance):
    for key in keys:
        np.testing.assert_allclose(theirs[key], ours[key], err_msg=key, **tolerance)


@pytest.mark.parametrize("task", ["lift", "can", "square", "transport", "tool_hang"])
def test_same_states_and_actions_same_observations(task):
    with make_env(task, action_repr="absolute", terminate_on_success=False) as ours:
        args = ours.unwrapped.env_args()
        args["env_kwargs"]["hard_reset"] = False  # the model of env_args' seed, for good
        theirs = create_env(args, seed=0)  # RobosuiteEnv's own model_seed
        theirs.env.rng.bit_generator.state = seeded_like(theirs, 5)
        mine, info = ours.reset(seed=5)
        keys = list(mine)
        yours = theirs.reset()
        np.testing.assert_array_equal(theirs.get_state()["states"], ours.unwrapped.sim_state())
        assert_same(yours, mine, keys, rtol=0, atol=0)
        assert theirs.action_dimension == ours.action_space.shape[0]
        rng = np.random.default_rng(0)
        hold = [ours.unwrapped.eef_pose(i)[0] for i in range(len(ours.unwrapped.task.robots))]
        for _ in range(12):
            action = np.concatenate([[*(p + rng.normal(0, 0.03, 3)), np.pi, 0, 0, rng.choice([-1, 1])] for p in hold])
            mine, reward, _, _, info = ours.step(action)
            yours, their_reward, _, _ = theirs.step(action)
            assert_same(yours, mine, keys, rtol=0, atol=0)
            assert (their_reward, theirs.is_success()) == (reward, {"task": info["success"]})


def test_a_stored_model_and_state_are_the_same_scene():
    """`reset_to` of a state that our environment was in, with the model that it stores in datasets."""
    with make_env("lift", action_repr="absolute", terminate_on_success=False) as ours:
        theirs = create_env(ours.unwrapped.env_args(), seed=9)
        obs, _ = ours.reset(seed=2)
        position = ours.unwrapped.eef_pose()[0]
        for _ in range(10):
            ours.step([*position, np.pi, 0, 0, 1])
        state = ours.unwrapped.sim_state()
        obs, _ = ours.reset(seed=2, options={"state": state})
        theirs_now = theirs.reset_to({"model": ours.unwrapped.model_xml(), "states": state})
        np.testing.assert_array_equal(theirs.get_state()["states"], state)
        assert_same(theirs_now, obs, obs, rtol=0, atol=1e-6)  # the model went through text
        # The arm's rest posture is the pose that each drew at reset: the same actions, nearly the same motion.
        for _ in range(10):
            obs, *_ = ours.step([*position, np.pi, 0, 0, -1])
            theirs_now, *_ = theirs.step([*position, np.pi, 0, 0, -1])
        assert_same(theirs_now, obs, obs, rtol=0, atol=0.02)


def test_an_old_datasets_settings_drive_both():
    part = {"type": "OSC_POSE", "input_max": 1, "input_min": -1, "output_max": 0.05, "output_min": -0.05, "kp": 150}
    part |= {"damping": 1.5, "impedance_mode": "fixed", "control_delta": False, "interpolation": None}
    kwargs = {"robots": ["Panda"], "control_freq": 20, "controller_configs": part, "hard_reset": False}
    args = {"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": kwargs}
    theirs = create_env(args, seed=0)
    with make_env_from_args(args, terminate_on_success=False) as ours:
        assert ours.unwrapped.action_repr == "absolute"
        theirs.env.rng.bit_generator.state = seeded_like(theirs, 1)
        mine, yours = ours.reset(seed=1)[0], theirs.reset()
        for _ in range(8):
            assert_same(yours, mine, [key for key in mine if key != "object"], rtol=0, atol=0)
            # Ours is laid out as the dataset's, see old_object_layout.
            np.testing.assert_array_equal(mine["object"], yours["object"] * np.repeat([1, -1], [7, 3]))
            action = [0.05, 0.1, 0.95, np.pi, 0, 0.3, -1]
            mine, yours = ours.step(action)[0], theirs.step(action)[0]


def test_images_are_robomimics():
    cameras = ("agentview", "robot0_eye_in_hand")
    with make_env("lift", action_repr="absolute", cameras=cameras, terminate_on_success=False) as ours:
        try:
            mine, _ = ours.reset(seed=4)
        except RenderUnavailable as error:
            pytest.skip(str(error))
        args = ours.unwrapped.env_args()
        args["env_kwargs"]["hard_reset"] = False
        theirs = create_env(args, use_images=True, seed=0)
        theirs.env.rng.bit_generator.state = seeded_like(theirs, 4)
        yours = theirs.reset()
        for _ in range(2):
            for camera in cameras:
                # robomimic hands networks (C, H, W) in [0, 1].
                image = np.transpose(mine[f"{camera}_image"], (2, 0, 1)) / 255
                assert image.shape == (3, 84, 84)
                assert np.abs(yours[f"{camera}_image"] - image).mean() < 1e-3
            action = [0, 0.1, 0.95, np.pi, 0, 0, 1]
            mine, yours = ours.step(action)[0], theirs.step(action)[0]
