"""Our policies in robomimic's own rollout loop, on its own environment."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_policy import OBS_DIMS, tiny_policy

from diffpolicy_spec import SamplerConfig, load_policy
from diffpolicy_spec.envs import ControllerError, RenderUnavailable, make_env
from diffpolicy_spec.eval.robomimic_partner import ChunkedActions, as_rollout_policy, create_env
from diffpolicy_spec.eval.rollout import chunk_generator
from diffpolicy_spec.policies import EncoderConfig, ObservationError
from diffpolicy_spec.rotations import actions_from_rot6d


@pytest.fixture(scope="module")
def lift_args():
    with make_env("lift", action_repr="absolute") as env:
        return env.unwrapped.env_args()


def test_the_shipped_policy_solves_lift_in_robomimics_own_loop(lift_args):
    from robomimic.algo import RolloutPolicy
    from robomimic.utils.train_utils import rollout_with_stats, run_rollout

    env = create_env(lift_args, seed=1)
    from robomimic.envs.env_robosuite import EnvRobosuite  # after create_env, which stands in for mujoco_py

    policy = load_policy("lift")
    rollout = as_rollout_policy(policy, policy.bind(SamplerConfig("speculative")), seed=7)
    assert isinstance(env, EnvRobosuite)
    assert isinstance(rollout, RolloutPolicy)
    result = run_rollout(rollout, env, horizon=200, terminate_on_success=True)
    assert result["Success_Rate"] == 1.0
    assert result["Return"] == 1.0
    assert rollout.chunks.chunks == -(-result["Horizon"] // 8)  # a chunk for each 8 actions begun
    logs, _ = rollout_with_stats(rollout, {"Lift": env}, horizon=200, num_episodes=1, terminate_on_success=True)
    assert logs["Lift"]["Success_Rate"] == 1.0
    assert rollout.chunks.seed == 8


def observations(count, seed=0):
    rng = np.random.default_rng(seed)
    dims = OBS_DIMS | {"robot0_joint_pos": 7}  # robomimic observes more than the policy wants
    return [{key: rng.normal(2, 3, dim) for key, dim in dims.items()} for _ in range(count)]


def chunk(policy, sampler, pair, seed, number, plan):
    obs = {key: np.stack([o[key] for o in pair])[None] for key in OBS_DIMS}
    generator = [chunk_generator(seed, number)]
    output = policy.predict_action(obs, sampler=sampler, generator=generator, previous_plan=plan)
    return output.action[0].numpy().astype(np.float64), output.plan


def test_actions_are_the_chunks_of_the_newest_observations():
    policy = tiny_policy()
    sampler = policy.bind(SamplerConfig("ddpm"))
    player = ChunkedActions(policy, sampler, seed=3)
    for seed in (3, 4):
        seen = observations(10, seed)
        player.start_episode()
        got = np.stack([player.next_action(o) for o in seen])
        first, plan = chunk(policy, sampler, [seen[0], seen[0]], seed, 0, None)
        second, _ = chunk(policy, sampler, seen[7:9], seed, 1, plan)
        np.testing.assert_array_equal(got, actions_from_rot6d(np.concatenate([first, second[:2]])))
        assert got.shape == (10, 7)


def test_actions_that_are_the_environments_are_left_alone():
    policy = tiny_policy(action_repr="raw")
    player = ChunkedActions(policy, policy.bind(SamplerConfig("ddpm")), seed=0)
    seen = observations(1)[0]
    wanted, _ = chunk(policy, player.sampler, [seen, seen], 0, 0, None)
    np.testing.assert_array_equal(player.next_action(seen), wanted[0])


def test_bad_observations_and_goals_are_refused():
    rollout = as_rollout_policy(tiny_policy())
    rollout.start_episode()
    obs = observations(1)[0]
    with pytest.raises(ValueError, match="no goals"):
        rollout(ob=obs, goal=obs)
    with pytest.raises(ObservationError, match="lacks object; it has robot0_eef_pos"):
        rollout(ob={key: value for key, value in obs.items() if key != "object"})
    with pytest.raises(ObservationError, match="'object' must be"):
        rollout(ob=obs | {"object": np.zeros(14)})
    assert "DiffusionRolloutPolicy" in repr(rollout)


def test_noise_comes_from_the_episodes_own_generator():
    policy = tiny_policy()
    actions = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        actions.append(as_rollout_policy(policy)(ob=observations(1)[0]))
    np.testing.assert_array_equal(*actions)


def test_the_stand_in_for_mujoco_py_is_gone_after_the_import(lift_args):
    env = create_env(lift_args)
    assert "mujoco_py" not in sys.modules
    assert issubclass(env.rollout_exceptions, Exception)


def test_wrong_env_args_are_named(lift_args):
    bad = lift_args | {"env_kwargs": lift_args["env_kwargs"] | {"controller_configs": {"type": "IK_POSE"}}}
    with pytest.raises(ControllerError, match="'IK_POSE'"):
        create_env(bad)


def test_what_robomimic_lacks_is_named(tmp_path):
    """In a process of its own, with a torchvision that fails as one built for another torch does."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    program = """
import os
import subprocess
import sys
from diffpolicy_spec.eval.robomimic_partner import as_rollout_policy, create_env
class Policy:
    class config:
        n_obs_steps = 2
def tell(call):
    try:
        call()
    except ImportError as error:
        print(error)
tell(lambda: as_rollout_policy(Policy()))
for name in [name for name in sys.modules if name.partition(".")[0] == "robomimic"]:
    del sys.modules[name]
sys.modules["robomimic"] = None
tell(lambda: as_rollout_policy(Policy()))
tell(lambda: create_env({"env_name": "Lift", "env_version": "1.5.2", "type": 1, "env_kwargs": {}}))
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    told = [line for line in run.stdout.splitlines() if "robomimic" in line and "WARNING" not in line]
    assert "nms does not exist" in told[0]
    assert "install the torchvision that fits" in told[0]
    for line in told[-2:]:
        assert "pip install 'diffpolicy-spec[robomimic]'" in line


def test_a_policy_with_cameras_in_robomimics_own_loop():
    """robomimic draws the images and turns them to (C, H, W) in [0, 1]; the policy is shown what it drew."""
    from robomimic.utils.train_utils import run_rollout

    sizes = {"agentview_image": (48, 40), "robot0_eye_in_hand_image": (48, 40)}
    cameras = [key.removesuffix("_image") for key in sizes]
    with make_env("lift", action_repr="absolute", cameras=cameras, image_size=(48, 40)) as env:
        args = env.unwrapped.env_args()
        try:
            ours, _ = env.reset(seed=3)
        except RenderUnavailable as error:
            pytest.skip(str(error))
    policy = tiny_policy(
        obs_dims={"robot0_eef_pos": 3}, image_shapes={key: (3, *size) for key, size in sizes.items()},
        encoder=EncoderConfig(crop=(36, 36), keypoints=4, features=6),
    )  # fmt: skip
    shown, predict = [], policy.predict_action

    def predict_action(obs, **options):
        shown.append(obs)
        return predict(obs, **options)

    policy.predict_action = predict_action
    env = create_env(args, use_images=True, seed=1)
    rollout = as_rollout_policy(policy, policy.bind(SamplerConfig("ddim", num_inference_steps=4)))
    result = run_rollout(rollout, env, horizon=9)
    assert (result["Horizon"], rollout.chunks.chunks) == (9, 2)
    for key, size in sizes.items():
        images = shown[1][key]
        assert images.shape == (1, 2, 3, *size)
        assert 0 <= images.min() < images.max() <= 1
        rows, ours_rows = images[0, 1].mean(axis=(0, 2)), ours[key].mean(axis=(1, 2)) / 255
        assert np.corrcoef(rows, ours_rows)[0, 1] > 0.8  # the same table, the right way up
    turned = {key: (np.moveaxis(shown[0][key][0, 0], 0, -1) * 255).round().astype(np.uint8) for key in sizes}
    player = ChunkedActions(policy, rollout.chunks.sampler)
    player.start_episode()
    player.next_action({"robot0_eef_pos": shown[0]["robot0_eef_pos"][0, 0], **turned})
    for key in sizes:
        np.testing.assert_allclose(shown[2][key] / 255, shown[0][key], atol=1e-6)
