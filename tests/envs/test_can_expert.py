"""The scripted expert of Can: it solves the task, goes over walls, is varied, and goes back for a can that it lost."""

import numpy as np
import pytest

from diffpolicy_spec.envs.demonstrate import demonstrate, demonstration_env
from diffpolicy_spec.envs.experts.can import COMPARTMENT, CanExpert, CanStyle


@pytest.fixture(scope="module")
def env():
    with demonstration_env("can", max_steps=400) as env:
        yield env


@pytest.fixture(scope="module")
def episodes(env):
    return [demonstrate(env, seed) for seed in range(1000, 1004)]


def test_it_solves_unseen_episodes(episodes):
    assert all(episode.success for episode in episodes)
    assert all(80 <= len(episode.actions) <= 200 for episode in episodes)
    for episode in episodes:
        can = episode.obs["object"][-1, 7:10]
        assert (COMPARTMENT[0] < can[:2]).all()
        assert (can[:2] < COMPARTMENT[1]).all()


@pytest.mark.slow
def test_it_solves_at_least_95_of_100(env):
    assert sum(demonstrate(env, seed).success for seed in range(2000, 2100)) >= 95


def test_it_carries_the_can_over_the_walls(episodes):
    for episode in episodes:
        can = episode.obs["object"][:, 7:10]
        between = (can[:, 1] > -0.03) & (can[:, 1] < COMPARTMENT[0, 1])  # from one bin's wall to its compartment's
        assert between.sum() > 5
        assert can[between, 2].min() > 0.94  # 4 cm above the walls: half a can


def test_the_command_is_smooth_and_near_the_arm(episodes):
    for episode in episodes:
        position = episode.actions[:, :3]
        velocity = np.diff(position, axis=0) * 20
        assert np.linalg.norm(velocity, axis=1).max() < 0.45
        assert np.linalg.norm(np.diff(velocity, axis=0) * 20, axis=1).max() < 6
        assert np.linalg.norm(position - episode.obs["robot0_eef_pos"], axis=1).max() <= CanExpert.leash + 1e-9
        assert set(episode.actions[:, 6]) == {-1.0, 1.0}


def test_episodes_differ_and_repeat(env, episodes):
    again = demonstrate(env, episodes[0].seed)
    np.testing.assert_array_equal(again.actions, episodes[0].actions)
    np.testing.assert_array_equal(again.states, episodes[0].states)
    styles = [CanStyle.draw(np.random.default_rng(i)) for i in range(200)]
    assert len({style.speed for style in styles}) == 200
    assert 0.2 < np.mean([style.bump_at > 0 for style in styles]) < 0.4
    assert np.std([style.yaw for style in styles]) > 0.1


def run(env, expert, seed, disturb, steps=400):
    """Phases of an episode whose simulator `disturb(phase, sim, obs)` changes once, when it returns True."""
    base = env.unwrapped
    obs, _ = env.reset(seed=seed)
    phases, disturbed = [], False
    for _ in range(steps):
        obs, _, _, _, info = env.step(expert.act(obs, base.eef_pose()[1]))
        phases.append(expert.phase)
        disturbed = disturbed or disturb(expert.phase, base._env.sim, obs)
        if disturbed and info["success"]:
            break
    return phases, info["success"]


@pytest.mark.parametrize(
    "pose",
    [
        pytest.param([0.05, -0.30, 0.862, 1.0, 0.0, 0.0, 0.0], id="standing"),
        pytest.param([0.05, -0.25, 0.845, np.sqrt(0.5), 0.0, np.sqrt(0.5), 0.0], id="lying"),
    ],
)
def test_it_starts_again_when_the_can_is_lost(env, pose):
    """Take the can out of the closed fingers and put it elsewhere in the bin: the expert goes back for it."""

    def disturb(phase, sim, obs):
        if phase != "carry" or obs["object"][9] < 0.95:
            return False
        sim.data.set_joint_qpos("Can_joint0", np.array(pose))
        return True

    phases, success = run(env, CanExpert(np.random.default_rng(3)), 3, disturb)
    assert success
    assert "reach" in phases[phases.index("carry") :]
