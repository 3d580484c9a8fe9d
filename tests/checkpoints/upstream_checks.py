"""A policy read from upstream's checkpoint, held against what upstream computed with it: tests/fixtures/upstream."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diffpolicy_spec.noise import Noise
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.samplers import SamplerConfig

TOLERANCE = 1e-5


def close(found: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Of one shape, and every number within `tolerance`, of the size of the largest if that is above 1."""
    assert found.shape == expected.shape, what
    error = (found - expected).abs().max().item()
    assert error <= tolerance * max(1.0, expected.abs().max().item()), f"{what}: {error:.2e}"


def observations(io: Mapping[str, Tensor], config: PolicyConfig, prefix: str = "obs.") -> dict[str, Tensor]:
    """The file's observations under the policy's keys, (B, To, ...); images as floats in [0, 1]."""
    given = {key.removeprefix(prefix): value for key, value in io.items() if key.startswith(prefix)}
    if "obs" in given and "obs" not in config.obs_dims:
        parts = given.pop("obs").split(list(config.obs_dims.values()), dim=-1)
        given |= dict(zip(config.obs_dims, parts, strict=True))
    return {key: value.float() / 255 if value.dtype == torch.uint8 else value for key, value in given.items()}


def check_normalizer(policy: DiffusionPolicy, io: Mapping[str, Tensor]) -> None:
    obs = observations(io, policy.config)
    for key, expected in observations(io, policy.config, "normalized.").items():
        if key in policy.config.image_shapes:
            found = policy.normalizer.normalize(key, obs[key].movedim(2, -1)).movedim(-1, 2)
        else:
            found = policy.normalizer.normalize(key, obs[key])
        close(found, expected, f"normalized.{key}")


def check_features(policy: DiffusionPolicy, io: Mapping[str, Tensor]) -> None:
    close(policy.features(observations(io, policy.config)), io["features"], "features")


def check_network(policy: DiffusionPolicy, io: Mapping[str, Tensor]) -> None:
    """One call, under the condition that was recorded, else that of the observations."""
    given = io.get("network.global_cond")
    condition = policy.condition(observations(io, policy.config))[0] if given is None else given
    with torch.no_grad():
        close(policy.network(io["network.x"], io["network.t"], condition), io["network.out"], "network")


def check_chunk(policy: DiffusionPolicy, io: Mapping[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """A whole chunk with upstream's noise, by the sampler upstream uses."""
    noise = Noise(io["noise.start"], io["noise.steps"], torch.zeros(io["noise.steps"].shape[:2]))
    method = "ddim" if policy.scheduler_config["_class_name"] == "DDIMScheduler" else "ddpm"
    sampler = policy.bind(SamplerConfig(method))
    out = policy.predict_action(observations(io, policy.config), sampler=sampler, noise=noise)
    close(out.plan, io["expected.plan"], "plan", tolerance)
    close(out.action_pred, io["expected.action_pred"], "action_pred", tolerance)
    close(out.action, io["expected.action"], "action", tolerance)
