"""The scripted expert: it solves Lift, moves smoothly, is varied, and is a function of its generator."""

import numpy as np
import pytest

from diffpolicy_spec.envs.demonstrate import demonstrate, demonstration_env
from diffpolicy_spec.envs.experts import UnknownExpertError, make_expert
from diffpolicy_spec.envs.experts.lift import LiftExpert, LiftStyle
from diffpolicy_spec.envs.experts.motion import OrnsteinUhlenbeck
from diffpolicy_spec.envs.experts.pick import LEASH
from diffpolicy_spec.rotations import axis_angle_to_matrix, matrix_to_axis_angle


@pytest.fixture(scope="module")
def env():
    with demonstration_env("lift", max_steps=200) as env:
        yield env


@pytest.fixture(scope="module")
def episodes(env):
    return [demonstrate(env, seed) for seed in range(1000, 1012)]


def test_it_solves_unseen_episodes(episodes):
    assert all(episode.success for episode in episodes)
    assert all(40 <= len(episode.actions) <= 120 for episode in episodes)
    assert all(episode.rewards[-10:].all() and not episode.rewards[:-10].all() for episode in episodes)


@pytest.mark.slow
def test_it_solves_at_least_95_of_100(env):
    assert sum(demonstrate(env, seed).success for seed in range(2000, 2100)) >= 95


def test_the_command_is_smooth_and_near_the_arm(episodes):
    for episode in episodes:
        position = episode.actions[:, :3]
        velocity = np.diff(position, axis=0) * 20
        acceleration = np.diff(velocity, axis=0) * 20
        assert np.linalg.norm(velocity, axis=1).max() < 0.30
        assert np.linalg.norm(acceleration, axis=1).max() < 2.5
        assert np.linalg.norm(position - episode.obs["robot0_eef_pos"], axis=1).max() <= LEASH + 1e-9
        matrix = axis_angle_to_matrix(episode.actions[:, 3:6])
        turned = matrix_to_axis_angle(matrix[1:] @ np.swapaxes(matrix[:-1], 1, 2))
        assert np.linalg.norm(turned, axis=1).max() * 20 < 1.9
        assert set(episode.actions[:, 6]) == {-1.0, 1.0}


def test_it_never_stands_still_before_the_grasp(episodes):
    # A pause longer than two observations would look like any other pause to a policy that sees two.
    for episode in episodes:
        reaching = episode.actions[:, 6] < 0
        eef = episode.obs["robot0_eef_pos"][reaching]
        quat = episode.obs["robot0_eef_quat"][reaching]
        moved = np.linalg.norm(np.diff(eef, axis=0), axis=1) + np.linalg.norm(np.diff(quat, axis=0), axis=1)
        longest = max(map(len, "".join("." if m < 2e-4 else "x" for m in moved[3:]).split("x")))
        assert longest <= 3


def test_episodes_differ_and_repeat(env, episodes):
    again = demonstrate(env, episodes[0].seed)
    np.testing.assert_array_equal(again.actions, episodes[0].actions)
    np.testing.assert_array_equal(again.states, episodes[0].states)
    styles = [LiftStyle.draw(np.random.default_rng(i)) for i in range(200)]
    assert len({style.speed for style in styles}) == 200
    assert 0.3 < np.mean([style.hesitate_to < 1 for style in styles]) < 0.7
    assert 0.2 < np.mean([style.bump_at > 0 for style in styles]) < 0.5
    assert {np.sign(style.arc) for style in styles} == {-1.0, 1.0}


def test_it_starts_again_when_the_cube_is_lost(env):
    """Knock the cube out of the closed fingers: the expert opens them, goes back and lifts it."""
    base = env.unwrapped
    obs, _ = env.reset(seed=3)
    expert = LiftExpert(np.random.default_rng(3))
    phases, lost = [], False
    for _ in range(180):
        obs, _, _, _, info = env.step(expert.act(obs, base.eef_pose()[1]))
        phases.append(expert.phase)
        if not lost and expert.phase == "lift":
            lost = True
            sim = base._env.sim
            pose = sim.data.get_joint_qpos("cube_joint0").copy()
            pose[:3] = [0.03, 0.08, 0.83]
            sim.data.set_joint_qpos("cube_joint0", pose)
        if lost and info["success"]:
            break
    assert info["success"]
    assert "reach" in phases[phases.index("lift") :]


def test_noise_has_the_deviation_and_memory_it_is_given():
    noise = OrnsteinUhlenbeck(2000, std=0.5, tau=0.3, dt=0.05, rng=np.random.default_rng(0))
    before = noise.value.copy()
    for _ in range(6):  # 0.3 s
        after = noise.step()
    assert abs(after.std() - 0.5) < 0.03
    assert abs(np.corrcoef(before, after)[0, 1] - np.exp(-1)) < 0.06


def test_other_tasks_have_no_expert():
    with pytest.raises(
        UnknownExpertError, match="no scripted expert for task 'transport'; there is one for can, lift, sq"
    ):
        make_expert("transport", np.random.default_rng(0))
