"""Continuous batching: each chunk is the one its robot would get alone, whatever else is under way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_policy import tiny_obs, tiny_policy

from diffpolicy_spec.policies.engine import Engine, Finished
from diffpolicy_spec.policies.errors import ObservationError
from diffpolicy_spec.samplers import SamplerConfig

SAMPLERS = {
    "default": None,
    "blocks": SamplerConfig(options={"verifier": "block", "window": 12}),
    "secant": SamplerConfig(options={"memory": 3}),
    "parent": SamplerConfig(options={"drafter": "parent"}),
    "drift": SamplerConfig(options={"drafter": "drift_nearest"}),
    "windows by step": SamplerConfig(options={"window": [8] * 10 + [4] * 10}, num_inference_steps=20),
    "tree": SamplerConfig("tree"),
    "paradigms": SamplerConfig("paradigms"),
    "ddpm": SamplerConfig("ddpm", 20),
    "ddim": SamplerConfig("ddim", 10),
}


def one(i: int) -> dict[str, np.ndarray]:
    """Observation i, of one robot."""
    return {key: value[0] for key, value in tiny_obs(1, seed=i).items()}


def alone(policy, config, i: int) -> np.ndarray:
    sampler = policy.bind(config)
    output = policy.predict_action(tiny_obs(1, seed=i), sampler=sampler, generator=[torch.Generator().manual_seed(i)])
    return output.action_pred[0].numpy()


def serve(engine: Engine, requests: int, arrivals: np.random.Generator) -> list[Finished]:
    """Requests that come while others are under way; answers by number of the request."""
    tickets, answers = [], {}
    while len(answers) < requests:
        if len(tickets) < requests and arrivals.random() < 0.4:
            tickets.append(engine.submit(one(len(tickets)), seed=len(tickets)))
        answers |= {finished.ticket: finished for finished in engine.step()}
    return [answers[ticket] for ticket in tickets]


@pytest.mark.parametrize("config", SAMPLERS.values(), ids=SAMPLERS)
def test_a_chain_in_a_busy_pool_is_that_chain_alone(config):
    policy = tiny_policy()
    answers = serve(Engine(policy, config, max_chains=4, adaptive=False), 10, np.random.default_rng(0))
    same = 0
    for i, answer in enumerate(answers):
        assert answer.error is None
        assert answer.exact
        same += np.allclose(answer.action_pred, alone(policy, config, i), atol=1e-4)
    assert same >= 9  # the last bits of a batch may turn one acceptance in thousands
    assert np.mean([answer.shared for answer in answers]) > 1.5


def test_observations_are_checked_when_they_are_submitted():
    engine = Engine(tiny_policy())
    broken = one(0)
    broken["object"] = np.full_like(broken["object"], np.nan)
    for obs in ({}, {**one(0), "more": np.zeros(2)}, broken, None):
        with pytest.raises(ObservationError):
            engine.submit(obs)
    assert engine.waiting == 0
    assert engine.step() == []
