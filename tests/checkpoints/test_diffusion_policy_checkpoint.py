"""Checkpoints of diffusion_policy give what its own code gave with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from upstream_fixtures import fixture, named

from diffpolicy_spec.checkpoints.diffusion_policy import read_diffusion_policy
from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.parts import build_policy
from diffpolicy_spec.noise import Noise
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.samplers import SamplerConfig

TOLERANCE = 1e-5
NAMES = named("dp_")


def load(name: str, folder: Path) -> tuple[DiffusionPolicy, dict[str, Tensor], dict[str, Any]]:
    path, io, facts = fixture(name, folder)
    return build_policy(read_diffusion_policy(path), path), io, facts


def observations(io: Mapping[str, Tensor], config: PolicyConfig, prefix: str = "obs.") -> dict[str, Tensor]:
    """The fixture's observations under our keys; images as floats in [0, 1]."""
    given = {key.removeprefix(prefix): value for key, value in io.items() if key.startswith(prefix)}
    if "obs" in given and "obs" not in config.obs_dims:
        parts = given.pop("obs").split(list(config.obs_dims.values()), dim=-1)
        given |= dict(zip(config.obs_dims, parts, strict=True))
    return {key: value.float() / 255 if value.dtype == torch.uint8 else value for key, value in given.items()}


def close(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == theirs.shape
    worst = float((ours - theirs).abs().max())
    assert worst <= tolerance * max(1.0, float(theirs.abs().max())), worst


@pytest.mark.parametrize("name", NAMES)
def test_against_upstream(name: str, tmp_path: Path) -> None:
    """Class and weights, normalised observations, features, one call of the network, and a whole chunk."""
    policy, io, facts = load(name, tmp_path)
    config = policy.config
    assert policy.origin["class"] == facts["class"].rpartition(".")[2]
    assert (policy.origin["weights"], policy.origin["task"]) == (facts["weights"], facts["task"])
    for key in ("n_obs_steps", "n_action_steps", "action_dim"):
        assert getattr(config, key) == facts["settings"][key], key

    obs = observations(io, config)
    for key, theirs in observations(io, config, "normalized.").items():
        image = key in config.image_shapes
        ours = policy.normalizer.normalize(key, obs[key].movedim(2, -1)).movedim(-1, 2) if image else None
        close(policy.normalizer.normalize(key, obs[key]) if ours is None else ours, theirs)
    features = policy.features(obs)
    close(features, io["features"])

    condition, _ = policy.condition(obs)
    with torch.no_grad():
        close(policy.network(io["network.x"], io["network.t"], condition), io["network.out"])

    steps = io["noise.steps"]
    noise = Noise(io["noise.start"], steps, torch.zeros(steps.shape[:2]))
    method = "ddim" if policy.scheduler_config["_class_name"] == "DDIMScheduler" else "ddpm"
    out = policy.predict_action(obs, sampler=policy.bind(SamplerConfig(method)), noise=noise)
    close(out.plan, io["expected.plan"])
    close(out.action_pred, io["expected.action_pred"])
    close(out.action, io["expected.action"])


def test_choice_of_weights(tmp_path: Path) -> None:
    path, _, _ = fixture("dp_unet_lowdim_global", tmp_path)
    average, raw = (read_diffusion_policy(path, weights) for weights in ("ema_model", "model"))
    assert (average.origin["weights"], raw.origin["weights"]) == ("ema_model", "model")
    assert any(not torch.equal(average.network[name], raw.network[name]) for name in raw.network)
    auto = read_diffusion_policy(path)
    assert all(torch.equal(auto.network[name], value) for name, value in average.network.items())
    with pytest.raises(ValueError, match="weights must be one of"):
        read_diffusion_policy(path, "best")
    path, _, _ = fixture("dp_unet_no_ema", tmp_path)
    with pytest.raises(CheckpointError, match="lacks 'ema_model'; there are: model"):
        read_diffusion_policy(path, "ema_model")
