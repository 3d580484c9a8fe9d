"""Push-T in MuJoCo: pushing moves and turns the block as physics says, and as gym-pusht does."""

import numpy as np
import pytest

from diffpolicy_spec.envs import RenderUnavailable, get_task, make_env
from diffpolicy_spec.envs.pusht_geometry import AGENT_RADIUS, GOAL_POSE, RECTANGLES, draws, place, polygon, rotation


@pytest.fixture(scope="module")
def env():
    with make_env("pusht_mujoco", terminate_on_success=False) as env:
        yield env


def push_down(env, x, distance=150):
    """The block's pose after the agent went down from (x, 100), 5 pixels a step; the block began at (256, 150)."""
    env.reset(seed=0, options={"state": [x, 100, 256, 150, 0]})
    for y in np.arange(100, 100 + distance, 5):
        env.step([x, y])
    return env.unwrapped.state()[2:]


def test_a_push_through_the_centre_moves_without_turning(env):
    x, y, angle = push_down(env, 256)
    agent = env.unwrapped.state()[1]
    assert x == pytest.approx(256, abs=1)
    assert angle == pytest.approx(0, abs=0.02)
    assert y == pytest.approx(agent + AGENT_RADIUS, abs=1)  # the agent touches the bar's edge
    assert y > 220


@pytest.mark.parametrize("side", [-1, 1])
def test_a_push_beside_the_centre_turns(env, side):
    """Down, right of the centre of mass: clockwise as seen, a positive angle; and gym-pusht agrees."""
    x, y, angle = push_down(env, 256 + 44 * side)
    assert side * angle > 0.3
    assert y > 180
    with make_env("pusht", terminate_on_success=False) as other:
        theirs = push_down(other, 256 + 44 * side)
    np.testing.assert_allclose([x, y], theirs[:2], atol=15)
    assert angle == pytest.approx(theirs[2], abs=0.2)


def test_mirrored_pushes_mirror(env):
    right, left = push_down(env, 300), push_down(env, 212)
    np.testing.assert_allclose(right[:2], [512 - left[0], left[1]], atol=4)
    assert right[2] == pytest.approx(-left[2], abs=0.05)


def test_the_block_stays_where_it_is_left(env):
    """Friction stops it within 2 cm, and it does not creep."""
    push_down(env, 256)
    moving = env.unwrapped.state()
    for _ in range(10):
        env.step([256, 50])  # away from it
    rest = env.unwrapped.state()
    assert 0 <= rest[3] - moving[3] < 20
    for _ in range(30):
        env.step([256, 50])
    np.testing.assert_allclose(env.unwrapped.state()[2:], rest[2:], atol=1e-3)


def test_a_scripted_push_covers_the_goal(env):
    """From 60 pixels behind the goal along its stem: pushed along it until the distance is gone."""
    along = rotation(GOAL_POSE[2]) @ [0, 1]
    start = GOAL_POSE[:2] - 60 * along
    _, info = env.reset(seed=0, options={"state": [*(start - 40 * along), *start, GOAL_POSE[2]]})
    covered, rewards = [info["coverage"]], []
    for _ in range(40):
        state = env.unwrapped.state()
        left = (GOAL_POSE[:2] - state[2:4]) @ along
        _, reward, _, _, info = env.step(state[:2] + along * (min(left + 5, 25) if left > 0.5 else 0))
        covered.append(info["coverage"])
        rewards.append(reward)
    assert covered[0] == pytest.approx(0.286, abs=0.01)
    assert covered[-1] > 0.98
    assert info["success"]
    np.testing.assert_allclose(rewards, np.minimum(np.array(covered[1:]) / 0.95, 1))


def test_walls_hold_the_block_and_let_the_agent_pass(env):
    env.reset(seed=0, options={"state": [256, 100, 256, 350, 0]})
    for _ in range(30):
        env.step([256, 512])  # it would push the block out of the window
    state = env.unwrapped.state()
    assert state[3] + RECTANGLES[1][3] == pytest.approx(504, abs=2)
    assert state[1] < 380
    env.reset(seed=0, options={"state": [400, 300, 200, 300, 0]})
    for _ in range(15):
        env.step([540, 300])
    assert env.unwrapped.state()[0] == pytest.approx(540, abs=0.5)


def test_hard_shoves_neither_lift_nor_pierce_the_block(env):
    data = env.unwrapped._data
    env.reset(seed=0, options={"state": [300, 200, 380, 350, 0.4]})
    rng = np.random.default_rng(0)
    for _ in range(200):
        env.step(env.unwrapped.state()[2:4] + rng.uniform(-150, 150, 2))
        assert abs(data.joint("block").qpos[2] - 0.015) < 0.002
        assert min(data.contact.dist, default=0) > -0.003  # m


def test_starts_do_not_overlap_and_are_gym_pusht_s_where_those_do_not():
    geometry = pytest.importorskip("shapely.geometry")
    same = 0
    with make_env("pusht_mujoco") as env, make_env("pusht") as other:
        for seed in range(100000, 100040):
            state = env.reset(seed=seed)[0]["state"]
            block = polygon(state[2:])
            assert block.distance(geometry.Point(state[:2])) > AGENT_RADIUS
            assert min(block.bounds) > 7
            assert max(block.bounds) < 504
            first = place(next(draws(seed)))
            if np.allclose(state[:4], first[:4], atol=1e-6):
                np.testing.assert_allclose(state, other.reset(seed=seed)[0]["state"], atol=1e-6)
                same += 1
    assert same >= 25


def test_same_rules_as_gym_pusht():
    for mine, theirs in (("pusht_mujoco", "pusht"), ("pusht_mujoco_keypoints", "pusht_keypoints")):
        a, b = get_task(mine), get_task(theirs)
        assert (a.obs, a.horizon, a.control_freq, a.action_reprs) == (b.obs, b.horizon, b.control_freq, b.action_reprs)


def test_frames_from_above():
    state = [100, 100, 400, 200, 0]
    with make_env("pusht_mujoco", render_mode="rgb_array", render_size=(128, 128)) as env:
        env.reset(seed=0, options={"state": state})
        try:
            frame = env.render()
        except RenderUnavailable as error:
            pytest.skip(str(error))
        before = env.unwrapped.state()
        assert frame.shape == (128, 128, 3)
        blue = frame[:, :, 2].astype(int) - frame[:, :, 0]
        agent, block = np.argwhere(blue > 100), np.argwhere((blue > 15) & (blue < 80) & (frame.sum(axis=2) < 550))
        np.testing.assert_allclose(4 * agent.mean(axis=0)[::-1], [100, 100], atol=6)
        np.testing.assert_allclose(4 * block.mean(axis=0)[::-1], [400, 240.7], atol=8)
        np.testing.assert_array_equal(env.unwrapped.state(), before)
