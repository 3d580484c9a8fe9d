"""Franka Kitchen: interface, seeds, and diffusion_policy's p_n."""

import subprocess
import sys

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from diffpolicy_spec.envs import ActionError, RenderUnavailable, make_env
from diffpolicy_spec.envs.kitchen import SUBTASKS

EPISODE = """
import sys
import numpy as np
from diffpolicy_spec.envs import make_env

def episode(env, seed):
    rng = np.random.default_rng(seed)
    rows = [env.reset(seed=seed)[0]["observation"]]
    rows += [env.step(rng.uniform(-1, 1, 9))[0]["observation"] for _ in range(30)]
    return np.array(rows)
"""


@pytest.fixture(scope="module")
def env():
    with make_env("kitchen") as env:
        yield env


def episode(env, seed):
    scope = {}
    exec(EPISODE, scope)
    return scope["episode"](env, seed)


def solve(env, subtask):
    """Put one thing where it belongs."""
    kitchen = pytest.importorskip("gymnasium_robotics.envs.franka_kitchen.kitchen_env")
    env.unwrapped._env.data.qpos[kitchen.OBS_ELEMENT_INDICES[subtask]] = kitchen.OBS_ELEMENT_GOALS[subtask]


@pytest.mark.filterwarnings("ignore::UserWarning")  # on infinite ranges of observations
def test_gymnasium_s_checks():
    with make_env("kitchen") as env:
        check_env(env.unwrapped, skip_render_check=True)


def test_interface(env):
    obs, info = env.reset(seed=0)
    assert [(key, value.shape, value.dtype) for key, value in obs.items()] == [("observation", (59,), np.float64)]
    assert obs in env.observation_space
    assert info == {"success": False, "completed": (), "metrics": {f"p_{n}": 0.0 for n in range(1, 8)}}
    assert env.action_space.shape == (9,)
    simulated = env.unwrapped._env.robot_env.dt
    assert env.unwrapped.task.control_freq == env.metadata["render_fps"] == pytest.approx(1 / simulated)
    assert env.unwrapped.task.horizon == 280
    assert env.render() is None


def test_the_episode_is_a_function_of_the_seed(env):
    """After use, in another object, and in another process."""
    first = episode(env, 5)
    assert not np.array_equal(episode(env, 6)[0], first[0])
    np.testing.assert_array_equal(episode(env, 5), first)
    code = EPISODE + "sys.stdout.write(episode(make_env('kitchen'), 5).tobytes().hex())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == first.tobytes().hex()
    assert done.stderr == ""


def test_scores(env):
    """p_n is whether n subtasks are completed; the reward is n / 7; four are a success, seven the end."""
    env.reset(seed=0)
    order = ("microwave", "kettle", "light switch", "slide cabinet", "hinge cabinet", "bottom burner", "top burner")
    for n, subtask in enumerate(order, start=1):
        solve(env, subtask)
        _, reward, terminated, truncated, info = env.step(np.zeros(9))
        assert info["completed"] == order[:n]
        assert reward == pytest.approx(n / 7)
        assert info["metrics"] == {f"p_{k}": float(k <= n) for k in range(1, 8)}
        assert info["success"] is (n >= 4)
        assert (terminated, truncated) == (n == 7, False)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(9))
    assert env.reset(seed=1)[1]["completed"] == ()


def test_what_is_undone_stays_completed(env):
    env.reset(seed=0)
    closed = env.unwrapped._env.data.qpos.copy()
    solve(env, "microwave")
    env.step(np.zeros(9))
    env.unwrapped._env.data.qpos[:] = closed
    _, reward, _, _, info = env.step(np.zeros(9))
    assert info["completed"] == ("microwave",)
    assert reward == pytest.approx(1 / 7)
    solve(env, "microwave")
    assert env.step(np.zeros(9))[4]["metrics"]["p_2"] == 0.0  # once is once


def test_it_runs_to_its_horizon():
    with make_env("kitchen", horizon=2, terminate_on_success=False) as env:
        env.reset(seed=0)
        for subtask in SUBTASKS:
            solve(env, subtask)
        assert env.step(np.zeros(9))[1:4] == (1.0, False, False)
        assert env.step(np.zeros(9))[1:4] == (1.0, False, True)


def test_bad_input(env):
    env.reset(seed=0)
    with pytest.raises(ActionError, match=r"shape \(9,\)"):
        env.step(np.zeros(7))
    with pytest.raises(ActionError, match="NaN or infinite"):
        env.step(np.full(9, np.nan))
    with pytest.raises(ValueError, match="render_mode"):
        make_env("kitchen", render_mode="human")


def test_frames():
    with make_env("kitchen", render_mode="rgb_array", render_size=(96, 128)) as env:
        env.reset(seed=0)
        try:
            frame = env.render()
        except RenderUnavailable as error:
            pytest.skip(str(error))
        assert frame.shape == (96, 128, 3)
        assert frame.std() > 30
        for _ in range(10):
            env.step(np.ones(9))
        assert np.abs(env.render().astype(int) - frame).max() > 50  # the arm has moved, and is drawn
