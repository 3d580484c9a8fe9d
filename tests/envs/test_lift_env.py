"""Lift as a gymnasium environment: spaces, seeding, actions, episode ends, refusals."""

import hashlib
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env

from diffpolicy_spec.envs import ActionError, RobosuiteEnv, UnknownTaskError, make_env
from diffpolicy_spec.envs.demonstrate import demonstration_env
from diffpolicy_spec.envs.experts import make_expert
from diffpolicy_spec.rotations import (
    actions_to_rot6d,
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    quat_xyzw_to_matrix,
)

KEYS = {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}


@pytest.fixture(scope="module")
def env():
    with demonstration_env("lift", max_steps=400) as env:
        yield env


def drive(env, seed, steps=40):
    """Everything an episode shows under actions that are a function of the seed: contacts, closing, all of it."""
    obs, _ = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    position, matrix = env.unwrapped.eef_pose()
    seen = [*obs.values()]
    for i in range(steps):
        target = position + np.array([0, 0, -0.005 * i]) + rng.normal(0, 0.02, 3)
        turn = matrix_to_axis_angle(axis_angle_to_matrix(rng.normal(0, 0.1, 3)) @ matrix)
        obs, reward, *_ = env.step(np.concatenate([target, turn, [1 if i > 20 else -1]]))
        seen += [*obs.values(), env.unwrapped.sim_state(), [reward]]
    return np.concatenate(seen)


def test_spaces_and_order(env):
    assert gym.spec("diffpolicy_spec/Lift-v0").kwargs == {"task": "lift"}
    assert {key: box.shape[0] for key, box in env.observation_space.items()} == KEYS
    obs, info = env.reset(seed=0)
    assert list(obs) == list(KEYS)
    assert all(value.dtype == np.float64 for value in obs.values())
    assert env.observation_space.contains(obs)
    assert info == {"success": False}


def test_observation_is_what_the_simulator_says(env):
    obs, _ = env.reset(seed=1)
    data = env.unwrapped._env.sim.data
    position, matrix = env.unwrapped.eef_pose()
    np.testing.assert_array_equal(obs["object"][:3], data.get_body_xpos("cube_main"))
    cube = np.asarray(data.get_body_xmat("cube_main"))
    np.testing.assert_allclose(quat_xyzw_to_matrix(obs["object"][3:7]), cube, atol=1e-9)
    np.testing.assert_array_equal(obs["object"][7:], obs["object"][:3] - position)
    np.testing.assert_array_equal(obs["robot0_eef_pos"], position)
    # The quaternion is the hand's, a quarter turn about its axis from the site that actions command.
    hand = quat_xyzw_to_matrix(obs["robot0_eef_quat"])
    np.testing.assert_allclose(hand.T @ matrix, [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], atol=1e-6)


def test_a_seed_is_an_episode_whatever_ran_before(env):
    first = drive(env, 5)
    for other in (1, 2):
        drive(env, other, steps=25)
    env.reset()
    np.testing.assert_array_equal(drive(env, 5), first)
    assert not np.array_equal(drive(env, 6), first)
    with demonstration_env("lift", max_steps=50) as fresh:
        drive(fresh, 77, steps=3)
        np.testing.assert_array_equal(drive(fresh, 5), first)


def test_a_seed_is_the_same_episode_in_a_new_process_and_the_import_is_quiet(env):
    program = f"""
import hashlib, os, sys
sys.path.insert(0, {str(__import__("pathlib").Path(__file__).parent)!r})
import diffpolicy_spec.envs
assert not {{"robosuite", "mujoco", "hydra", "h5py"}} & set(sys.modules)
from diffpolicy_spec.envs.demonstrate import demonstration_env
env = demonstration_env("lift", 400)
assert "MUJOCO_GL" not in os.environ
from test_lift_env import drive
print(hashlib.sha256(drive(env, 5).tobytes()).hexdigest())
"""
    environment = {key: value for key, value in __import__("os").environ.items() if key != "MUJOCO_GL"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert "robosuite" not in run.stderr
    assert run.stdout.split() == [hashlib.sha256(drive(env, 5).tobytes()).hexdigest()]


def test_resets_without_seed_follow_the_last_seed(env):
    env.reset(seed=3)
    first = [env.reset()[0]["object"] for _ in range(3)]
    env.reset(seed=3)
    np.testing.assert_array_equal([env.reset()[0]["object"] for _ in range(3)], first)
    assert len({tuple(x) for x in first}) == 3


def test_absolute_actions_are_poses_in_the_world(env):
    env.reset(seed=0)
    position, matrix = env.unwrapped.eef_pose()
    goal = position + np.array([0.03, -0.04, 0.02])
    goal_matrix = axis_angle_to_matrix([0.1, -0.05, 0.2]) @ matrix
    for _ in range(40):
        env.step(np.concatenate([goal, matrix_to_axis_angle(goal_matrix), [-1]]))
    position, matrix = env.unwrapped.eef_pose()
    np.testing.assert_allclose(position, goal, atol=6e-3)
    np.testing.assert_allclose(matrix, goal_matrix, atol=0.02)


def test_rot6d_is_absolute_in_other_words():
    with make_env("lift", terminate_on_success=False) as wide, demonstration_env("lift", 400) as narrow:
        assert wide.action_space.shape == (10,)
        wide.reset(seed=4)
        narrow.reset(seed=4)
        position, matrix = narrow.unwrapped.eef_pose()
        # Just beyond pi on either side: the axis-angle jumps, the motion must not.
        for turn in np.linspace(-0.2, 0.2, 12):
            action = np.concatenate([position, matrix_to_axis_angle(axis_angle_to_matrix([0, turn, 0]) @ matrix), [1]])
            a, *_ = narrow.step(action)
            b, *_ = wide.step(actions_to_rot6d(action) * np.repeat([1, 1.7, 1], [3, 6, 1]))
            for key in KEYS:
                np.testing.assert_allclose(a[key], b[key], atol=1e-9)


def test_delta_actions_move_the_gripper():
    with make_env("lift", action_repr="delta") as env:
        before = env.reset(seed=0)[0]["robot0_eef_pos"]
        for _ in range(10):
            obs, *_ = env.step(np.array([0, 1, 0, 0, 0, 0, -1.0]))
        moved = obs["robot0_eef_pos"] - before
        assert moved[1] > 0.05
        assert abs(moved[0]) < 0.02


@pytest.mark.parametrize("action_repr", ["absolute_rot6d", "absolute", "delta"])
def test_gymnasium_checker_passes(action_repr):
    with make_env("lift", action_repr=action_repr) as env, warnings.catch_warnings():
        warnings.simplefilter("error")
        # Advice, not faults: observations are unbounded, absolute actions are not normalised, ids carry no wrappers.
        for advice in (".*infinity.*", ".*symmetric and normalized.*", ".*is different from the unwrapped version.*"):
            warnings.filterwarnings("ignore", message=advice)
        check_env(env, skip_render_check=True)


def test_the_expert_ends_the_episode_with_reward_one():
    with make_env("lift", action_repr="absolute") as env:
        obs, _ = env.reset(seed=0)
        expert = make_expert("lift", np.random.default_rng(0))
        done = False
        while not done:
            obs, reward, done, truncated, info = env.step(expert.act(obs, env.unwrapped.eef_pose()[1]))
            assert not truncated
            assert info["success"] is done
            assert reward == float(done)
        assert obs["object"][2] > 0.84
        with pytest.raises(ResetNeeded, match="reset"):
            env.step(env.action_space.sample())
        env.reset(seed=1)
        env.step(env.action_space.sample())


def test_the_horizon_truncates():
    with make_env("lift", action_repr="delta", horizon=3) as env:
        env.reset(seed=0)
        ends = [env.step(np.zeros(7))[2:4] for _ in range(3)]
        assert ends == [(False, False), (False, False), (False, True)]
        with pytest.raises(ResetNeeded):
            env.step(np.zeros(7))


def test_bad_actions_are_refused_before_anything_moves(env):
    env.reset(seed=0)
    before = env.unwrapped.sim_state()
    good = np.array([0.0, 0, 1, np.pi, 0, 0, 0])
    for bad, message in [
        (np.where(np.arange(7) == 4, np.nan, good), r"NaN or infinite entries at \[4\]"),
        (np.where(np.arange(7) == 0, np.inf, good), r"NaN or infinite entries at \[0\]"),
        (np.zeros(10), r"must have shape \(7,\).*got \(10,\)"),
        (np.zeros((1, 7)), r"got \(1, 7\)"),
        (["a"] * 7, "not an array of numbers"),
        (None, "got"),
    ]:
        with pytest.raises(ActionError, match=message):
            env.step(bad)
    np.testing.assert_array_equal(env.unwrapped.sim_state(), before)


def test_bad_rot6d_actions_are_refused():
    with make_env("lift") as env:
        env.reset(seed=0)
        for bad, message in [
            (np.zeros(10), "names no rotation"),
            (np.full(10, np.nan), "NaN"),
            (np.zeros(7), r"\(10,\).*got \(7,\)"),
        ]:
            with pytest.raises(ActionError, match=message):
                env.step(bad)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: make_env("lfit"), UnknownTaskError, "unknown task 'lfit'; known tasks: .*lift"),
        (lambda: make_env("lift", action_repr="joint"), ValueError, "absolute_rot6d, absolute, delta"),
        (lambda: RobosuiteEnv(render_mode="human"), ValueError, "rgb_array"),
        (lambda: RobosuiteEnv(action_repr="rot6d"), ValueError, "'absolute' or 'delta'"),
        (lambda: RobosuiteEnv(horizon=0), ValueError, "horizon"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_closed_environment_says_so():
    env = RobosuiteEnv()
    env.close()
    env.close()
    with pytest.raises(ClosedEnvironmentError):
        env.reset()
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(7))
