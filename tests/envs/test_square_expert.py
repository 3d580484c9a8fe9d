"""The scripted expert of Square: it solves the task from any yaw, is varied, and starts again when it loses the nut."""

import numpy as np
import pytest

from diffpolicy_spec.envs.demonstrate import demonstrate, demonstration_env
from diffpolicy_spec.envs.experts.square import PEG, SquareExpert, SquareStyle, _turn_to_peg


@pytest.fixture(scope="module")
def env():
    with demonstration_env("square", max_steps=400) as env:
        yield env


@pytest.fixture(scope="module")
def episodes(env):
    return [demonstrate(env, seed) for seed in range(1000, 1004)]


def test_the_peg_is_where_the_expert_thinks(env):
    env.reset(seed=0)
    sim = env.unwrapped._env.sim
    np.testing.assert_allclose(sim.data.body_xpos[sim.model.body_name2id("peg1")][:2], PEG, atol=1e-6)


def test_it_solves_unseen_episodes(episodes):
    assert all(episode.success for episode in episodes)
    assert all(80 <= len(episode.actions) <= 200 for episode in episodes)
    for episode in episodes:
        nut = episode.obs["object"][-1, 7:10]
        assert np.abs(nut[:2] - PEG).max() < 0.01  # around the peg, not merely near it
        assert nut[2] < 0.87


@pytest.mark.slow
def test_it_solves_at_least_90_of_100(env):
    assert sum(demonstrate(env, seed).success for seed in range(2000, 2100)) >= 90


def test_it_turns_to_the_nearest_way_within_reach():
    for yaw in np.linspace(-np.pi, np.pi, 73):
        turn = _turn_to_peg(np.array([np.cos(yaw), np.sin(yaw), 0.0]))
        after = yaw + turn
        assert abs(np.sin(2 * after)) < 1e-9  # square to the peg
        assert np.cos(after) < 1e-9  # the handle does not point away from the robot
        assert abs(turn) <= np.pi / 2 + 1e-9
        if np.cos(yaw) < 0:
            assert abs(turn) <= np.pi / 4 + 1e-9


def test_the_command_is_smooth_and_near_the_arm(episodes):
    for episode in episodes:
        position = episode.actions[:, :3]
        velocity = np.diff(position, axis=0) * 20
        assert np.linalg.norm(velocity, axis=1).max() < 0.45
        assert np.linalg.norm(np.diff(velocity, axis=0) * 20, axis=1).max() < 6
        assert np.linalg.norm(position - episode.obs["robot0_eef_pos"], axis=1).max() <= SquareExpert.leash + 1e-9
        assert set(episode.actions[:, 6]) == {-1.0, 1.0}


def test_episodes_differ_and_repeat(env, episodes):
    again = demonstrate(env, episodes[0].seed)
    np.testing.assert_array_equal(again.actions, episodes[0].actions)
    np.testing.assert_array_equal(again.states, episodes[0].states)
    styles = [SquareStyle.draw(np.random.default_rng(i)) for i in range(200)]
    assert len({style.speed for style in styles}) == 200
    assert 0.15 < np.mean([style.bump_at > 0 for style in styles]) < 0.35


@pytest.mark.parametrize(
    "pose",
    [
        pytest.param([0.0, 0.2, 0.84, 1.0, 0.0, 0.0, 0.0], id="on the table"),
        pytest.param([0.222, 0.105, 0.97, 0.17, 0.03, 0.0, 0.98], id="on the rim of the peg"),
    ],
)
def test_it_starts_again_when_the_nut_is_lost(env, pose):
    """Take the nut out of the closed fingers: the expert opens them, goes back for it and puts it on the peg."""
    base = env.unwrapped
    obs, _ = env.reset(seed=5)
    expert = SquareExpert(np.random.default_rng(5))
    phases, lost = [], False
    for _ in range(400):
        obs, _, _, _, info = env.step(expert.act(obs, base.eef_pose()[1]))
        phases.append(expert.phase)
        if not lost and expert.phase == "carry" and obs["object"][9] > 0.95:
            lost = True
            base._env.sim.data.set_joint_qpos("SquareNut_joint0", np.array(pose))
        if lost and info["success"]:
            break
    assert info["success"]
    assert "reach" in phases[phases.index("carry") :]
