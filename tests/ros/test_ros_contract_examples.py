"""The contracts that come with the package are read, and hold what the robots' makers publish."""

import math

import pytest

from diffpolicy_spec.control import PolicyInfo
from diffpolicy_spec.ros.contract import load_contract, mismatches
from diffpolicy_spec.ros.contracts import example, examples


def info(obs, images, action_dim):
    return PolicyInfo(obs, images, n_obs_steps=2, n_action_steps=8, horizon=16, action_dim=action_dim, first=1)


FITTING = {
    "lift_sim": info({"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}, {}, 10),
    "panda": info({"joint_pos": 7, "joint_vel": 7, "gripper_pos": 1}, {"wrist": (3, 96, 96)}, 8),
    "ur": info({"joint_pos": 6, "tcp_pos": 3, "tcp_quat": 4}, {"wrist": (3, 96, 96)}, 6),
}


def test_every_example_has_a_policy_it_fits():
    assert set(examples()) == set(FITTING)


@pytest.mark.parametrize("name", sorted(FITTING))
def test_an_example_fits_a_policy_and_says_what_does_not(name):
    contract = load_contract(example(name))
    assert mismatches(contract, FITTING[name]) == []
    other = info({"missing": 3}, {}, 2)
    assert len(mismatches(contract, other)) == 2


def test_pandas_limits_are_the_published_ones():
    contract = load_contract(example("panda"))
    safety = contract.safety
    assert safety.names[:7] == tuple(f"panda_joint{i}" for i in range(1, 8))
    assert safety.low[:7] == (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973)
    assert safety.high[:7] == (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973)
    assert safety.velocity[:7] == (2.175,) * 4 + (2.61,) * 3
    assert safety.acceleration[:7] == (15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0)
    assert safety.jerk[:7] == (7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0)
    assert (safety.kind[7], safety.low[7], safety.high[7]) == ("free", 0.0, 0.08)


def test_a_ur_turns_twice_around_but_for_its_elbow():
    safety = load_contract(example("ur")).safety
    for name, high, velocity in zip(safety.names, safety.high, safety.velocity, strict=True):
        assert high == pytest.approx(math.pi if name == "elbow_joint" else 2 * math.pi, abs=1e-4)
        assert velocity == pytest.approx(math.pi, abs=1e-4)


def test_another_name_is_told():
    with pytest.raises(ValueError, match="no contract 'kuka' in the package; there are lift_sim, panda, ur"):
        example("kuka")
