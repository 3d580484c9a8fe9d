"""Push-T on gym-pusht: its interface, diffusion_policy's rules and starts, and what a demonstration holds."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from pusht_episodes import TASKS, pushes

from diffpolicy_spec.envs import ActionError, get_task, make_env
from diffpolicy_spec.envs.pusht_geometry import (
    GOAL_POSE,
    KEYPOINTS,
    coverage,
    draws,
    keypoints,
    place,
    polygon,
    rotation,
    unplace,
)

# The first frame of diffusion_policy's data set pusht_cchi_v7_replay (C. Chi et al., MIT License), recorded by its own
# environment.
RECORDED_STATE = np.array([222.0, 97.0, 222.99382, 381.59903, 3.0079994])
RECORDED_KEYPOINTS = [
    [201.8135, 293.5951],
    [283.5920, 374.6524],
    [162.8094, 391.0933],
    [219.8596, 356.2470],
    [220.5748, 258.0041],
    [179.9621, 354.2294],
    [258.2447, 343.8376],
    [231.2951, 317.0551],
    [199.8886, 386.4198],
]


@pytest.fixture(params=TASKS)
def env(request):
    with make_env(request.param) as env:
        yield env


@pytest.mark.filterwarnings("ignore::UserWarning")  # on the ranges of spaces: their units are pixels
@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_s_checks(task):
    with make_env(task) as env:
        check_env(env.unwrapped, skip_render_check=True)


def test_interface(env):
    obs, info = env.reset(seed=100000)
    task = env.unwrapped.task
    assert [(key, len(value)) for key, value in obs.items()] == list(task.obs)
    assert all(value.dtype == np.float64 for value in obs.values())
    assert obs in env.observation_space
    assert info["success"] is False
    assert env.metadata["render_fps"] == task.control_freq == 10
    assert task.horizon == 300
    assert env.render() is None
    obs, reward, terminated, truncated, info = env.step([200, 200])
    assert isinstance(reward, float)
    assert (terminated, truncated, info["success"]) == (False, False, False)


def test_the_episode_is_a_function_of_the_seed(env):
    """After use, in another object, and in another process."""
    first = pushes(env, 7)
    other = pushes(env, 8)
    assert not np.array_equal(first[0], other[0])
    np.testing.assert_array_equal(pushes(env, 7), first)
    name = env.unwrapped.task.name
    script = Path(__file__).with_name("pusht_episodes.py")
    done = subprocess.run([sys.executable, str(script), name, "7"], capture_output=True, text=True, check=True)
    assert done.stdout == first.tobytes().hex()
    assert done.stderr == ""


def test_a_reset_without_a_seed_starts_elsewhere(env):
    env.reset(seed=3)
    second = env.reset()[0]
    third = env.reset()[0]
    env.reset(seed=3)
    again = env.reset()[0]
    key = next(iter(second))
    np.testing.assert_array_equal(second[key], again[key])
    assert not np.array_equal(second[key], third[key])


def test_starts_are_those_of_diffusion_policy():
    """Its data set was recorded with the seeds 0, 1, 2, ...; these are the agent's recorded starts."""
    recorded = [[222, 97], [87, 285], [218, 65], [412, 202], [172, 224], [405, 256]]
    with make_env("pusht") as env:
        starts = [env.reset(seed=seed)[0]["state"] for seed in range(6)]
    np.testing.assert_array_equal([s[:2] for s in starts], recorded)
    np.testing.assert_allclose(starts[0], RECORDED_STATE, atol=1e-4)


def test_keypoints_are_those_that_were_recorded():
    np.testing.assert_allclose(keypoints(RECORDED_STATE[2:]), RECORDED_KEYPOINTS, atol=1e-3)


def test_draws_and_states():
    draw = next(draws(0))
    np.testing.assert_array_equal(draw[:4], [222, 97, 217, 292])
    state = place(draw)
    np.testing.assert_allclose(unplace(state), draw, atol=1e-12)
    assert place([0, 0, 100, 100, 0.0]).tolist() == [0, 0, 100, 100, 0]
    many = np.array([d for d, _ in zip(draws(5), range(50), strict=False)])
    assert len(np.unique(many[:, 0])) > 30
    np.testing.assert_array_equal(next(draws(5 + 2**32)), many[0])


def test_a_given_start(env):
    state = [100.0, 120.0, 300.0, 250.0, 1.0]
    env.reset(seed=0, options={"state": state})
    np.testing.assert_allclose(env.unwrapped.state(), state, atol=1e-9)
    for _ in range(10):  # nothing touches the block: it stays
        env.step(state[:2])
    np.testing.assert_allclose(env.unwrapped.state(), state, atol=1e-6)
    with pytest.raises(ActionError, match=r"must have shape \(5,\)"):
        env.reset(options={"state": [1.0, 2.0]})


def test_observations_of_one_state():
    state = np.array([100.0, 120.0, 300.0, 250.0, -1.0])
    seen = {}
    for name in ("pusht", "pusht_keypoints"):
        with make_env(name) as env:
            seen |= env.reset(seed=0, options={"state": state})[0]
    np.testing.assert_allclose(seen["state"], [100, 120, 300, 250, 2 * np.pi - 1], atol=1e-9)
    np.testing.assert_allclose(seen["agent_pos"], [100, 120], atol=1e-9)
    points = seen["keypoint"].reshape(9, 2)
    np.testing.assert_allclose((points - state[2:4]) @ rotation(-1.0), KEYPOINTS, atol=1e-9)


def test_keypoints_lie_on_the_block():
    """They were sampled from its picture, whose pixels reach 2 past the edge at most."""
    geometry = pytest.importorskip("shapely.geometry")
    block = polygon([0, 0, 0])
    assert max(block.distance(geometry.Point(p)) for p in KEYPOINTS) < 3
    near, far = keypoints([10, 20, 0.3]), keypoints([0, 0, 0.3])
    np.testing.assert_allclose(near - far, np.tile([10, 20], (9, 1)), atol=1e-12)


def test_coverage():
    assert coverage(GOAL_POSE) == pytest.approx(1)
    assert coverage([100, 400, 0]) == 0
    # Moved along its own bar by d: 30 d of the bar and 90 d of the stem are lost of 6300.
    assert coverage([*(GOAL_POSE[:2] + rotation(np.pi / 4) @ [5, 0]), np.pi / 4]) == pytest.approx(1 - 120 * 5 / 6300)


@pytest.mark.parametrize("seed", range(5))
def test_coverage_is_gym_pusht_s(seed):
    pose = GOAL_POSE + np.random.default_rng(seed).normal(0, [9, 9, 0.3])
    with make_env("pusht") as env:
        _, info = env.reset(seed=0, options={"state": [400, 50, *pose]})
        theirs = env.unwrapped._env._get_coverage()
    assert 0 < theirs < 1
    assert info["coverage"] == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize(("shift", "reward", "success"), [(0.0, 1.0, True), (2.0, 1.0, True), (3.0, 0.9925, False)])
def test_reward_and_success(env, shift, reward, success):
    """0.95 of the goal: 1 - 120 d / 6300 > 0.95 for d < 2.625."""
    start = [50, 50, *(GOAL_POSE[:2] + rotation(np.pi / 4) @ [shift, 0]), GOAL_POSE[2]]
    info = env.reset(seed=0, options={"state": start})[1]
    assert info["success"] is success
    _, got, terminated, truncated, info = env.step([50, 50])
    assert got == pytest.approx(reward, abs=1e-3)
    assert info["success"] is success
    assert terminated is success
    assert not truncated
    if success:
        with pytest.raises(ResetNeeded):
            env.step([50, 50])


def test_it_may_run_on_after_success_to_the_horizon():
    with make_env("pusht", terminate_on_success=False, horizon=3) as env:
        env.reset(seed=0, options={"state": [50, 50, *GOAL_POSE]})
        ends = [env.step([50, 50])[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_the_agent_follows_gym_pusht_s_controller(env):
    """acceleration = 100 (target - position) - 20 velocity: a step response without overshoot."""
    env.reset(seed=0, options={"state": [100, 100, 400, 400, 0]})
    xs = []
    for _ in range(12):
        env.step([200, 100])
        xs.append(env.unwrapped.state()[0])
    time = 0.1 * np.arange(1, 13)
    # gym-pusht integrates it in steps of 0.01 s, which leads by 3 pixels at first.
    np.testing.assert_allclose(xs, 200 - 100 * (1 + 10 * time) * np.exp(-10 * time), atol=4.0)
    assert max(xs) <= 200 + 1e-6


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([1.0], r"must have shape \(2,\)"),
        ([np.nan, 1], r"NaN or infinite entries at \[0\]"),
        (["a", "b"], "not an array of numbers"),
    ],
)
def test_bad_actions_move_nothing(env, action, message):
    env.reset(seed=0)
    before = env.unwrapped.state()
    with pytest.raises(ActionError, match=message):
        env.step(action)
    np.testing.assert_array_equal(env.unwrapped.state(), before)


def test_bad_settings():
    with pytest.raises(ValueError, match="action_repr of task 'pusht' must be one of raw, got 'delta'"):
        make_env("pusht", action_repr="delta")
    with pytest.raises(ValueError, match="render_mode"):
        make_env("pusht", render_mode="human")
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        make_env("pusht_mujoco", horizon=0)
    with make_env("pusht") as env, pytest.raises(ResetNeeded):
        env.unwrapped.step([0, 0])


def test_frames_show_the_block_where_it_is():
    with make_env("pusht", render_mode="rgb_array", render_size=(128, 128)) as env:
        env.reset(seed=0, options={"state": [100, 100, 400, 200, 0]})
        frame = env.render()
        assert frame.shape == (128, 128, 3)
        assert frame.dtype == np.uint8
        slate = np.abs(frame.astype(int) - [119, 136, 153]).sum(axis=2) < 60
        rows, columns = np.nonzero(slate)
        assert columns.mean() * 4 == pytest.approx(400, abs=6)
        assert rows.mean() * 4 == pytest.approx(200 + 40.7, abs=6)
        env.step([300, 300])
        moved = env.render()
        env.reset(seed=0, options={"state": [100, 100, 400, 200, 0]})
        np.testing.assert_array_equal(env.render(), frame)  # and not the cross of the last episode's action
        assert not np.array_equal(moved, frame)


def test_rows_and_configs_agree():
    yaml = pytest.importorskip("yaml")
    configs = Path(__import__("diffpolicy_spec.configs", fromlist=["x"]).__file__).parent / "task"
    for name in (*TASKS, "kitchen"):
        cfg, row = yaml.safe_load((configs / f"{name}.yaml").read_text()), get_task(name)
        assert cfg["obs"] == dict(row.obs)
        assert list(cfg["obs"]) == [key for key, _ in row.obs]
        assert cfg.get("aliases", {}) == dict(row.aliases)
        assert (cfg["name"], cfg["env_id"], cfg["horizon"]) == (row.name, row.env_id, row.horizon)
        assert (cfg["action_repr"],) == row.action_reprs
        with make_env(name) as env:
            assert env.action_space.shape == (cfg["action_dim"],)


def test_corners_are_gym_pushts_environment_state():
    env = make_env("pusht", obs=("corners", "agent_pos"))
    theirs = env.unwrapped._env
    for seed in (1, 2):
        observation, _ = env.reset(seed=seed)
        expected = theirs.get_keypoints(theirs._block_shapes).ravel()
        np.testing.assert_allclose(observation["corners"], expected, atol=1e-9)
    env.close()


def test_images_are_gym_pushts_pixels():
    env = make_env("pusht", images={"image": (96, 96)})
    env.reset(seed=3)
    observation = env.step(np.array([300.0, 200.0]))[0]
    theirs = env.unwrapped._env
    theirs.obs_type = "pixels"  # at its own 96 x 96 pixels, without the mark of the action
    np.testing.assert_array_equal(observation["image"], theirs.get_obs())
    assert observation["image"].std() > 10
    assert env.observation_space.contains(observation)
    env.close()
    with pytest.raises(ValueError, match="one image observation, 'image', not front"):
        make_env("pusht", images={"front": (96, 96)})
    with pytest.raises(ValueError, match=r"task 'pusht' has no observation 'pose'; it has state \(5\), keypoint"):
        make_env("pusht", obs=("pose",))
