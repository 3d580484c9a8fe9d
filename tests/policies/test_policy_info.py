"""What loops, servers and logs are told of a policy; committed actions; warm-up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_policy import CAMERAS, OBS_DIMS, TRANSFORMER, tiny_obs, tiny_policy

from diffpolicy_spec import SamplerConfig
from diffpolicy_spec.policies.committed import inpainting_of
from diffpolicy_spec.policies.info import policy_info, policy_name
from diffpolicy_spec.policies.warm_up import middle_observation, warm_up


def test_the_info_says_what_the_config_says():
    policy = tiny_policy(**CAMERAS)
    info = policy_info(policy, SamplerConfig("ddim", 10), name="mine")
    assert info.obs_dims == OBS_DIMS
    assert info.image_shapes == {"front": (3, 40, 40), "wrist": (3, 38, 40)}
    assert (info.n_obs_steps, info.n_action_steps, info.horizon, info.action_dim, info.first) == (2, 8, 16, 10, 1)
    assert info.action_repr == "absolute_rot6d"
    assert info.policy.startswith("mine ")
    assert info.sampler == "ddim, 10 steps, eta 0"
    assert policy_info(policy).sampler == "speculative, 100 steps"
    assert policy_info(policy, policy.bind(SamplerConfig(options={"window": 8}))).sampler.endswith("window 8")


def test_other_weights_or_statistics_have_another_name():
    names = {policy_name(tiny_policy(seed)) for seed in (0, 0, 1)}
    policy = tiny_policy(0)
    assert policy_name(policy) in names
    policy.normalizer.params["action"]["offset"].add_(0.1)
    names.add(policy_name(policy))
    assert len(names) == 3


def test_a_chunk_continues_committed_actions():
    policy = tiny_policy()
    first, committed = policy.config.first, np.random.default_rng(0).normal(1, 0.2, size=(5, 10))
    inpaint = inpainting_of(policy, committed)
    assert inpaint.mask.nonzero()[:, 1].unique().tolist() == [1, 2, 3, 4, 5]
    output = policy.predict_action(tiny_obs(1), inpaint=inpaint)
    np.testing.assert_allclose(output.action_pred[0, first : first + 5].numpy(), committed, rtol=1e-5, atol=1e-5)
    free = output.action_pred[0, first + 5 :]
    assert torch.isfinite(free).all()
    assert free.std() > 0
    both = inpainting_of(policy, np.stack([committed, committed + 1]))
    assert both.values.shape == (2, 16, 10)


@pytest.mark.parametrize("wrong", [np.zeros((0, 10)), np.zeros((16, 10)), np.zeros((3, 9)), np.zeros(10),
                                   np.full((2, 10), np.nan)])  # fmt: skip
def test_committed_actions_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="committed actions"):
        inpainting_of(tiny_policy(), wrong)


@pytest.mark.parametrize("changes", [{}, CAMERAS, TRANSFORMER])
def test_warm_up_leaves_nothing_but_known_times(changes: dict):
    policy = tiny_policy(**changes)
    policy.features(middle_observation(policy))
    sampler = policy.bind(SamplerConfig("ddim", 10))
    warm_up(policy, sampler, 2, finish_steps=3, inpainted=True)
    pace = next(iter(policy.runner()._paces.values()))
    assert pace.expect("round") > 0
    assert pace.expect("finish") > 0
    low = policy.normalizer.normalize("object", torch.as_tensor(middle_observation(policy)["object"]))
    assert low.abs().max() < 1e-5


def test_warm_up_tells_a_network_that_is_broken():
    policy = tiny_policy()
    with torch.no_grad():
        next(policy.network.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        warm_up(policy)
