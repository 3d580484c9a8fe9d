"""A real but tiny policy for Lift: random weights, 10 denoising steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 10,
    "beta_start": 0.01,
    "beta_end": 0.3,
    "beta_schedule": "linear",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}
# Where the gripper and the cube move on Lift's table, so that random plans are poses the arm can follow.
OBS_DIMS = {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
ACTION_LOW = (-0.1, -0.1, 0.95, 0.8, -0.2, -0.2, -0.2, -1.0, -0.2, -1.0)
ACTION_HIGH = (0.1, 0.1, 1.1, 1.0, 0.2, 0.2, 0.2, -0.8, 0.2, 1.0)


def make_tiny_policy():
    from diffpolicy_spec.policies import DiffusionPolicy
    from diffpolicy_spec.policies.config import PolicyConfig, UnetConfig
    from diffpolicy_spec.policies.diffusion import build_network
    from diffpolicy_spec.policies.normalizer import LinearNormalizer, fit_limits

    torch.manual_seed(7)
    unet = UnetConfig(down_dims=(16, 32), kernel_size=3, n_groups=4, diffusion_step_embed_dim=16)
    config = PolicyConfig(OBS_DIMS, 10, "absolute_rot6d", task="lift", unet=unet)
    params = {key: fit_limits(np.stack([-np.ones(d), np.ones(d)])) for key, d in OBS_DIMS.items()}
    params["action"] = fit_limits(np.stack([ACTION_LOW, ACTION_HIGH]))
    return DiffusionPolicy(config, build_network(config), LinearNormalizer(params), SCHEDULER)


@pytest.fixture(scope="session")
def policy():
    return make_tiny_policy()


@pytest.fixture(scope="session")
def checkpoint(policy, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    policy.save(path)
    return path


@pytest.fixture(scope="session")
def envs(policy):
    from diffpolicy_spec.envs import make_env

    made = [make_env("lift", action_repr=policy.config.action_repr) for _ in range(2)]
    yield made
    for env in made:
        env.close()


@pytest.fixture(scope="session")
def draws():
    """Skips where nothing can be drawn."""
    from diffpolicy_spec.envs import RenderUnavailable, make_env

    with make_env("lift", cameras=("agentview",), image_size=8) as env:
        try:
            env.reset(seed=0)
        except RenderUnavailable as error:
            pytest.skip(str(error))
