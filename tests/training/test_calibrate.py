"""dps-calibrate on a small policy and a real hdf5."""

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tiny_dataset import write_dataset
from tiny_policy import tiny_policy

from diffpolicy_spec import SamplerConfig, load_policy
from diffpolicy_spec.data import DataError
from diffpolicy_spec.training.calibrate import draw_conditions, run


def settings(**changes):
    with initialize_config_module("diffpolicy_spec.configs", version_base="1.3"):
        cfg = OmegaConf.to_container(compose("calibrate"), resolve=True)
    return cfg | {"chains": 6, "perturbations": 1} | changes


def test_the_gains_are_stored_and_used(tmp_path):
    folder, dataset = tmp_path / "policy", write_dataset(tmp_path / "demos.hdf5")
    tiny_policy().save(folder)
    assert load_policy(folder).bind().drafter.gains is None
    assert run(settings(checkpoint=str(folder), dataset=str(dataset))) == folder
    gains = load_policy(folder).bind().drafter.gains
    assert gains.G.shape == (100, 160, 160)
    assert bool(torch.isfinite(gains.G).all())
    # the checkpoint says the same as before
    for name, value in tiny_policy().network.state_dict().items():
        torch.testing.assert_close(load_policy(folder).network.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert load_policy(folder).bind(SamplerConfig(options={"gain": True})).drafter.gains is not None


def test_conditions_are_moments_of_the_demonstrations(tmp_path):
    policy, dataset = tiny_policy(), write_dataset(tmp_path / "demos.hdf5")
    some = draw_conditions(policy, dataset, 10, "train", seed=0)
    assert some.shape == (10, policy.config.condition_dim)
    assert torch.equal(some, draw_conditions(policy, dataset, 10, "train", seed=0))
    assert len(some.unique(dim=0)) > 5
    assert len(draw_conditions(policy, dataset, 500, "train", seed=0)) == 500


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(ValueError, match="checkpoint=PATH"):
        run(settings(checkpoint=None))
    folder = tmp_path / "policy"
    tiny_policy().save(folder)
    with pytest.raises(FileNotFoundError):
        run(settings(checkpoint=str(folder), dataset=str(tmp_path / "none.hdf5")))
    with pytest.raises(DataError, match="mask"):
        run(settings(checkpoint=str(folder), dataset=str(write_dataset(tmp_path / "d.hdf5")), filter="best"))
