"""robomimic's five tasks under one interface: spaces, seeds, actions of one and two arms, success, what "object" is."""

import hashlib
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from diffpolicy_spec.envs import get_task, make_env
from diffpolicy_spec.rotations import (
    actions_to_rot6d,
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    quat_xyzw_to_matrix,
)

TASKS = ("lift", "can", "square", "transport", "tool_hang")
ARMS = {"transport": 2}
OBJECT = {"lift": 10, "can": 14, "square": 14, "transport": 41, "tool_hang": 44}
# In "object", entries that reset draws: positions of the things to be moved, in the world.
DRAWN = {"lift": [0, 1], "can": [7, 8], "square": [7, 8], "transport": [0, 1, 7, 8], "tool_hang": [21, 22, 35, 36]}


@pytest.fixture(scope="module", params=TASKS)
def env(request):
    """Delta actions, and the episode goes on when the task is solved."""
    with make_env(request.param, action_repr="delta", terminate_on_success=False) as env:
        yield env


def drive(env, seed, steps=25):
    """Everything an episode shows under actions that are a function of the seed."""
    obs, _ = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    seen = [*obs.values(), env.unwrapped.sim_state()]
    for _ in range(steps):
        obs, reward, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape))
        seen += [*obs.values(), env.unwrapped.sim_state(), [reward]]
    return np.concatenate(seen)


def test_robomimics_observation_horizon_and_control_rate(env):
    name = env.unwrapped.task.name
    arms = ARMS.get(name, 1)
    wanted = {"object": OBJECT[name]}
    for i in range(arms):
        wanted |= {f"robot{i}_eef_pos": 3, f"robot{i}_eef_quat": 4, f"robot{i}_gripper_qpos": 2}
    obs, info = env.reset(seed=0)
    assert list(obs) == list(wanted) == list(env.observation_space)
    assert {key: value.shape for key, value in obs.items()} == {key: (size,) for key, size in wanted.items()}
    assert env.observation_space.contains(obs)
    assert info == {"success": False}
    assert env.action_space.shape == (7 * arms,)
    task = get_task(name)
    assert env.unwrapped.horizon == task.horizon == (700 if name in ("transport", "tool_hang") else 400)
    assert env.unwrapped.metadata["render_fps"] == env.unwrapped._env.control_freq == 20
    assert gym.spec(task.env_id).kwargs == {"task": name}


def test_a_seed_is_an_episode_whatever_ran_before(env):
    first = drive(env, 5)
    drive(env, 1, steps=10)
    env.reset()
    np.testing.assert_array_equal(drive(env, 5), first)
    with make_env(env.unwrapped.task.name, action_repr="delta", terminate_on_success=False) as other:
        drive(other, 77, steps=3)
        np.testing.assert_array_equal(drive(other, 5), first)


def test_a_seed_is_the_same_episode_in_a_new_process():
    program = f"""
import hashlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_robosuite_tasks import drive, make_env
for task in {TASKS[1:]!r}:
    with make_env(task, action_repr="delta", terminate_on_success=False) as env:
        drive(env, 9, steps=2)
        print(hashlib.sha256(drive(env, 5, steps=8).tobytes()).hexdigest())
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    here = []
    for task in TASKS[1:]:
        with make_env(task, action_repr="delta", terminate_on_success=False) as env:
            here.append(hashlib.sha256(drive(env, 5, steps=8).tobytes()).hexdigest())
    assert run.stdout.split() == here


def test_reset_draws_where_things_are_and_never_what_they_are(env):
    name = env.unwrapped.task.name
    model = env.unwrapped._env.sim.model._model
    sizes, masses = model.geom_size.copy(), model.body_mass.copy()
    places = [env.reset(seed=seed)[0]["object"][DRAWN[name]] for seed in range(6)]
    assert (np.ptp(places, axis=0) > 1e-3).all()
    assert env.unwrapped._env.sim.model._model is model
    np.testing.assert_array_equal(model.geom_size, sizes)
    np.testing.assert_array_equal(model.body_mass, masses)


def test_the_observation_is_of_now_until_the_end(env):
    """robosuite samples each sensor once a control step; it must be at the step's end, hundreds of steps on, too."""
    env.reset(seed=0)
    steps = 400 if env.unwrapped.task.name == "lift" else 40
    action = np.zeros(env.action_space.shape)
    for i in range(steps):
        action[1::7] = 0.3 if i % 40 < 20 else -0.3
        obs, *_ = env.step(action)
    for arm in range(len(env.unwrapped.task.robots)):
        np.testing.assert_array_equal(obs[f"robot{arm}_eef_pos"], env.unwrapped.eef_pose(arm)[0])
        np.testing.assert_array_equal(env.unwrapped.sim_state()[0].round(3), round(0.05 * steps, 3))


def test_delta_actions_are_in_the_frame_of_each_robots_base(env):
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape)
    action[1::7] = 1.0
    before = [env.unwrapped.eef_pose(i)[0] for i in range(len(env.unwrapped.task.robots))]
    for _ in range(10):
        env.step(action)
    for i, start in enumerate(before):
        base = env.unwrapped._env.sim.data.get_body_xmat(f"robot{i}_base")
        moved = base.T @ (env.unwrapped.eef_pose(i)[0] - start)
        assert moved[1] > 0.05, (i, moved)
        assert abs(moved[0]) < 0.03, (i, moved)


@pytest.mark.parametrize("task", TASKS)
def test_absolute_actions_are_reached_by_every_arm(task):
    with make_env(task, terminate_on_success=False) as env:
        arms = ARMS.get(task, 1)
        assert env.action_space.shape == (10 * arms,)
        env.reset(seed=0)
        goals = []
        for i in range(arms):
            position, matrix = env.unwrapped.eef_pose(i)
            offset = np.array([0.03, -0.04, 0.02]) * (1, -1)[i]
            goals.append((position + offset, axis_angle_to_matrix([0.1, -0.05, 0.2 * (1, -1)[i]]) @ matrix))
        seven = np.concatenate([np.concatenate([p, matrix_to_axis_angle(m), [-1]]) for p, m in goals])
        for _ in range(40):
            obs, *_ = env.step(actions_to_rot6d(seven))
        for i, (goal, goal_matrix) in enumerate(goals):
            position, matrix = env.unwrapped.eef_pose(i)
            np.testing.assert_allclose(position, goal, atol=8e-3)
            np.testing.assert_allclose(matrix, goal_matrix, atol=0.03)
            assert obs[f"robot{i}_gripper_qpos"][0] > 0.035, "-1 opens"


def test_transports_arms_are_commanded_one_by_one():
    with make_env("transport", action_repr="absolute") as env:
        env.reset(seed=0)
        poses = [env.unwrapped.eef_pose(i) for i in (0, 1)]
        hold = [np.concatenate([p, matrix_to_axis_angle(m), [-1]]) for p, m in poses]
        hold[1] = hold[1] + np.array([0, 0, 0.05, 0, 0, 0, 2])
        for _ in range(25):
            obs, *_ = env.step(np.concatenate(hold))
        np.testing.assert_allclose(env.unwrapped.eef_pose(0)[0], poses[0][0], atol=8e-3)
        np.testing.assert_allclose(env.unwrapped.eef_pose(1)[0], hold[1][:3], atol=8e-3)
        assert obs["robot0_gripper_qpos"][0] > 0.035
        assert obs["robot1_gripper_qpos"][0] < 0.005


@pytest.mark.parametrize("action_repr", ["absolute_rot6d", "absolute", "delta"])
@pytest.mark.parametrize("task", TASKS[1:])  # lift: test_lift_env.py
def test_gymnasium_checker_passes(task, action_repr):
    with make_env(task, action_repr=action_repr) as env, warnings.catch_warnings():
        warnings.simplefilter("error")
        # Advice, not faults: observations are unbounded, absolute actions are not normalised, ids carry no wrappers.
        for advice in (".*infinity.*", ".*symmetric and normalized.*", ".*is different from the unwrapped version.*"):
            warnings.filterwarnings("ignore", message=advice)
        check_env(env, skip_render_check=True)


def body_qpos(sim, joint):
    start, _ = sim.model.get_joint_qpos_addr(joint)
    return 1 + start  # after the time, in a flattened state


def test_success_is_robosuites_rule():
    """The can set down in its bin, the nut on its peg, and the same beside them."""
    for task, joint, inside, outside in [
        ("can", "Can_joint0", (0.1975, 0.4025, 0.86), (0.1, -0.25, 0.86)),
        ("square", "SquareNut_joint0", (0.227, 0.101, 0.86), (-0.11, 0.2, 0.88)),
    ]:
        with make_env(task, action_repr="delta") as env:
            env.reset(seed=0)
            at = body_qpos(env.unwrapped._env.sim, joint)
            state = env.unwrapped.sim_state()
            for place, solved in ((outside, False), (inside, True)):
                state[at : at + 7] = [*place, 1, 0, 0, 0]
                _, info = env.reset(seed=0, options={"state": state})
                assert info["success"] is solved, (task, place)
            _, reward, terminated, truncated, info = env.step(np.zeros(7))
            assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)


def test_transport_is_solved_by_hammer_and_rubbish_on_the_floors_of_their_bins():
    with make_env("transport", action_repr="delta") as env:
        obs, _ = env.reset(seed=0)
        state, bins = env.unwrapped.sim_state(), (obs["object"][21:24], obs["object"][24:27])
        ends = []
        for joint, place in zip(("payload_joint0", "trash_joint0"), bins, strict=True):
            at = body_qpos(env.unwrapped._env.sim, joint)
            state[at : at + 7] = [*place[:2], place[2] + 0.05, np.sqrt(0.5), 0, np.sqrt(0.5), 0]
            env.reset(seed=0, options={"state": state})
            for _ in range(15):  # they fall
                obs, reward, terminated, *_ = env.step(np.zeros(14))
                if terminated:
                    break
            ends.append((*obs["object"][27:29], reward, terminated))
        assert ends == [(1, 0, 0, False), (1, 1, 1, True)]


def test_can_and_square_tell_where_the_thing_was_one_step_ago():
    """What the table says of robosuite 1.5's object-state, so that nobody is surprised twice."""
    for task in ("can", "square"):
        with make_env(task, action_repr="delta", terminate_on_success=False) as env:
            obs, _ = env.reset(seed=0)
            assert not obs["object"][:7].any()
            for _ in range(3):  # it falls the last centimetre
                before = obs["object"][7:]
                obs, *_ = env.step(np.array([0.5, 0.2, -0.4, 0, 0, 0.3, -1]))
                hand = np.eye(4)
                hand[:3, :3], hand[:3, 3] = quat_xyzw_to_matrix(obs["robot0_eef_quat"]), obs["robot0_eef_pos"]
                seen = np.linalg.inv(hand) @ np.append(before[:3], 1)
                np.testing.assert_allclose(obs["object"][:3], seen[:3], atol=1e-5)


def test_a_stored_state_starts_an_episode(env):
    obs, _ = env.reset(seed=2)
    for _ in range(5):
        obs, *_ = env.step(np.full(env.action_space.shape, 0.2))
    state = env.unwrapped.sim_state()
    again, info = env.reset(seed=2, options={"state": state})
    np.testing.assert_array_equal(env.unwrapped.sim_state(), state)
    np.testing.assert_allclose(again["robot0_eef_pos"], obs["robot0_eef_pos"], atol=5e-3)  # site poses lag one substep
    assert info == {"success": False}
    first = env.step(np.zeros(env.action_space.shape))[0]
    env.reset(seed=2, options={"state": state})
    second = env.step(np.zeros(env.action_space.shape))[0]
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
    with pytest.raises(ValueError, match=r"finite numbers of shape .* time, qpos, qvel"):
        env.reset(seed=2, options={"state": state[:-1]})
