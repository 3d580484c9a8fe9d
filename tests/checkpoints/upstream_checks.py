"""A policy read from upstream's checkpoint, held against what upstream computed with it: tests/fixtures/upstream."""

from __future__ import annotations

import torch

from diffpolicy_spec.noise import Noise
from diffpolicy_spec.samplers import SamplerConfig

TOLERANCE = 1e-5


def close(found, expected, what, tolerance=TOLERANCE):
    """Every number within `tolerance`, of the size of the largest if that is above 1."""
    error = (found - expected).abs().max().item()
    assert error <= tolerance * max(1.0, expected.abs().max().item()), f"{what}: {error:.2e}"


def observations(io, rename=None):
    """key -> (B, To, ...) as in the file."""
    return {(rename or {}).get(k, k): io[f"obs.{k}"] for k in (n[4:] for n in io if n.startswith("obs."))}


def check_normalizer(policy, io):
    for name in (n for n in io if n.startswith("normalized.")):
        key = name.removeprefix("normalized.")
        values = io[f"obs.{key}"]
        if key in policy.config.image_shapes:
            fields = policy.normalizer.fields(key)
            images = values.float() / 255
            found = images * fields["scale"][:, None, None] + fields["offset"][:, None, None]
        else:
            found = policy.normalizer.normalize(key, values.float())
        close(found, io[name], name)


def check_features(policy, io):
    close(policy.features(observations(io)), io["features"], "features")


def check_network(policy, io):
    with torch.no_grad():
        out = policy.network(io["network.x"], io["network.t"], io["network.global_cond"])
    close(out, io["network.out"], "network")


def check_chunk(policy, io, tolerance=TOLERANCE):
    """A whole chunk with upstream's noise, by the sampler upstream uses."""
    noise = Noise(io["noise.start"], io["noise.steps"], torch.zeros(io["noise.steps"].shape[:2]))
    method = "ddim" if policy.scheduler_config["_class_name"] == "DDIMScheduler" else "ddpm"
    out = policy.predict_action(observations(io), sampler=policy.bind(SamplerConfig(method)), noise=noise)
    close(out.plan, io["expected.plan"], "plan", tolerance)
    close(out.action_pred, io["expected.action_pred"], "action_pred", tolerance)
    close(out.action, io["expected.action"], "action", tolerance)
