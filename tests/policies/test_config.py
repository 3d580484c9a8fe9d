"""Policy configs: plain data there and back, and shapes that do not fit together."""

import json
from dataclasses import replace

import pytest

from diffpolicy_spec.policies import PolicyConfig, UnetConfig


def config(**changes):
    values = {"obs_dims": {"z": 3, "a": 2}, "action_dim": 10, "action_repr": "absolute_rot6d", "task": "lift"}
    return PolicyConfig(**values | changes)


def test_there_and_back():
    given = config(unet=UnetConfig(down_dims=[16, 32]))
    again = PolicyConfig.from_dict(json.loads(json.dumps(given.to_dict())))
    assert again == given
    assert again.obs_keys == ("z", "a")  # the network's order, not the alphabet's
    assert (again.obs_dim, again.condition_dim) == (5, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_dims": {}}, "at least one key"),
        ({"obs_dims": {"a": 0}}, "obs_dims: .* must be a whole number from 1"),
        ({"action_dim": 7}, "10 dimensions an arm"),
        ({"action_repr": "relative"}, "action_repr must be one of absolute_rot6d, absolute, delta"),
        ({"n_action_steps": 16}, "passes the horizon 16"),
        ({"horizon": 18, "n_action_steps": 8}, "divisible by 4"),
        ({"n_obs_steps": 0}, "n_obs_steps must be a whole number from 1 to 4,096, got 0"),
    ],
)
def test_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config(), **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("action_dim"), "lacks action_dim"),
        (lambda d: d.update(horizont=8), "unknown horizont"),
        (lambda d: d["unet"].update(width=8), "unet: unknown width"),
        (lambda d: d.update(obs_dims=["object"]), "must map observation keys"),
        (lambda d: d.update(unet=3), "'unet' must be a mapping"),
    ],
)
def test_plain_data_that_is_not_a_config(change, message):
    data = config().to_dict()
    change(data)
    with pytest.raises(ValueError, match=message):
        PolicyConfig.from_dict(data)
