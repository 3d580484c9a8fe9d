"""A checkpoint, described: what it observes and does, its network, chain and statistics, and how it can be sampled."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.formats import detect, read_parts
from diffpolicy_spec.checkpoints.native import SPECULATION
from diffpolicy_spec.checkpoints.parts import Parts, build_networks
from diffpolicy_spec.checkpoints.shapes_only import shapes_only
from diffpolicy_spec.checkpoints.tensors import read_tensors
from diffpolicy_spec.choice.record import ChoiceError, read_choices
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.errors import NormalizationError
from diffpolicy_spec.samplers import SamplerConfig, bind
from diffpolicy_spec.schedule import ScheduleError
from diffpolicy_spec.tools.report import Report, shape_text

__all__ = ["describe_checkpoint"]

_SETTINGS = ("num_train_timesteps", "beta_schedule", "prediction_type", "variance_type", "clip_sample")


def describe_checkpoint(path: Path, *, every_weight: bool = False) -> Report:
    """A policy in any format that `load_policy` reads.

    Args:
        every_weight: read all weights and check that they are finite; otherwise large tensors stay in their file, and
            their names and shapes are checked.

    Raises:
        CheckpointError: it cannot be read, or what it says does not fit together.
        FileNotFoundError, PermissionError: it is not there, or may not be read.
    """
    with nullcontext() if every_weight else shapes_only():
        format = detect(path)
        parts = read_parts(path)
        stored = read_tensors(path / SPECULATION) if (path / SPECULATION).is_file() else {}
    sizes = _check(parts, path)
    try:
        choices = read_choices(path) if path.is_dir() else ()
    except ChoiceError as error:
        raise CheckpointError(str(error)) from error
    config, origin = parts.config, dict(parts.origin)
    exact, why = _exactly(parts)
    facts: dict[str, Any] = {
        "class": origin.pop("class", None),
        "weights": origin.pop("weights", None),
        "task": config.task or None,
        "network": _network(config),
        "parameters": sizes,
        "conditioning": config.conditioning,
        "actions": {"dim": config.action_dim, "repr": config.action_repr},
        "steps": {"planned": config.horizon, "observed": config.n_obs_steps, "executed": config.n_action_steps,
                  "from_action": config.first},
        "encoder": _encoder(config),
        "scheduler": {"class": str(parts.scheduler.get("_class_name", "DDPMScheduler")),
                      "steps_in_use": config.num_inference_steps or parts.scheduler.get("num_train_timesteps"),
                      **{key: parts.scheduler[key] for key in _SETTINGS if key in parts.scheduler}},
        "exact_acceleration": exact,
        "how": why,
        "speculation": _speculation(stored),
        "quickest_sampler_known_for": [choice.device for choice in choices],
        "origin": {key: str(value) for key, value in origin.items() if key != "format"},
        "observations": [_observation(parts, key) for key in config.obs_keys],
        "action_statistics": [_statistics(parts, "action")],
    }  # fmt: skip
    facts = {key: value for key, value in facts.items() if value not in (None, [], {})}
    return Report(path, "checkpoint", str(parts.origin.get("format", format)), facts, parts.notes)


def _check(parts: Parts, path: Path) -> dict[str, int]:
    """Names, shapes and statistics against the config; what load_policy checks, but for weights that were not read."""
    network, encoder = build_networks(parts, path)
    shapes = {key: shape[0] for key, shape in parts.config.image_shapes.items()}
    try:
        parts.normalizer.check({**parts.config.obs_dims, **shapes, "action": parts.config.action_dim})
    except NormalizationError as error:
        raise CheckpointError(f"{path}: {error}") from error
    counted = {"network": sum(p.numel() for p in network.parameters())}
    return counted if encoder is None else {**counted, "encoder": sum(p.numel() for p in encoder.parameters())}


def _exactly(parts: Parts) -> tuple[bool, str]:
    """Whether this policy, used as it is, can be sampled exactly by speculation, and what to do."""
    if parts.scheduler.get("_class_name") == "DDIMScheduler":
        return False, (
            f"it is used with DDIM ({parts.config.num_inference_steps} steps), which draws no noise to speculate on; "
            "SamplerConfig('speculative') draws the DDPM chain of the same network exactly"
        )
    try:
        bind(SamplerConfig("speculative", parts.config.num_inference_steps), parts.scheduler)
    except (ScheduleError, ValueError) as error:
        return False, str(error)
    return True, "load_policy(path).predict_action(obs), or accelerate(policy) on the live object"


def _network(config: PolicyConfig) -> dict[str, Any]:
    if config.transformer is not None:
        sizes = config.transformer
        return {"kind": "Transformer", "layers": sizes.n_layer, "heads": sizes.n_head, "width": sizes.n_emb}
    assert config.unet is not None  # a config has one of the two
    return {"kind": "U-Net", "down_dims": list(config.unet.down_dims), "kernel_size": config.unet.kernel_size}


def _encoder(config: PolicyConfig) -> dict[str, Any] | None:
    e = config.encoder
    if e is None:
        return None
    sizes = {"resize": e.resize and list(e.resize), "crop": e.crop and list(e.crop)}
    return {"kind": e.backbone, "norm": e.norm, "pool": e.pool, "features": e.feature_dim, **sizes, "shared": e.shared}


def _observation(parts: Parts, key: str) -> dict[str, Any]:
    images = parts.config.image_shapes
    shape = images.get(key) or (parts.config.obs_dims[key],)
    return {**_statistics(parts, key), "shape": shape_text(shape)}


def _statistics(parts: Parts, key: str) -> dict[str, Any]:
    """What the normaliser maps to [-1, 1], in the key's own units: the smallest and largest over its dimensions."""
    fields: Mapping[str, Tensor] = parts.normalizer.fields(key)
    a, b = ((end - fields["offset"]) / fields["scale"] for end in (-1.0, 1.0))
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    return {
        "key": key,
        "shape": shape_text(low.shape),
        "normalised": [round(float(low.min()), 6), round(float(high.max()), 6)],
    }


def _speculation(stored: Mapping[str, Tensor]) -> dict[str, int]:
    """Parts stored for speculation -> their parameters."""
    counted: dict[str, int] = {}
    for name, value in stored.items():
        part = name.partition(".")[0]
        counted[part] = counted.get(part, 0) + value.numel()
    return counted
