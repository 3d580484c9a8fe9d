"""config.json of a policy written for LeRobot 0.4.4: under which names its observations go, and every setting."""

from __future__ import annotations

from typing import Any

import torch

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.lerobot.read import ACTION, DEFAULTS, ENVIRONMENT, STATE
from diffpolicy_spec.policies.config import EncoderConfig, PolicyConfig
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.schedule import Schedule, ScheduleError

__all__ = ["lerobot_features", "lerobot_settings"]

_PASSED_ON = (
    "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type", "clip_sample",
    "clip_sample_range",
)  # fmt: skip
_ROBOT = ("robot", "agent")


def lerobot_features(config: PolicyConfig) -> dict[str, tuple[str, ...]]:
    """LeRobot's feature -> the policy's observation keys that are joined in it, in the network's order.

    LeRobot knows one state vector, images, and one environment state. With images every vector goes into the state.
    Without, there must be an environment state: the keys that are not the robot's ("robot...", "agent..."), or all but
    the first where that leaves either empty, or the only key once more.

    Raises:
        CheckpointError: no vector at all.
    """
    vectors = [key for key in config.feature_order if key in config.obs_dims]
    if not vectors:
        raise CheckpointError(f"LeRobot needs a state vector beside images; the policy has {list(config.image_shapes)}")
    images = {key if key.startswith("observation.") else f"observation.images.{key}": (key,)
              for key in config.image_shapes}  # fmt: skip
    if {STATE, ENVIRONMENT} >= set(vectors) and STATE in vectors and (images or ENVIRONMENT in vectors):
        state, environment = [STATE], [key for key in vectors if key == ENVIRONMENT]
    elif images:
        state, environment = vectors, []
    else:
        state = [key for key in vectors if key.startswith(_ROBOT)]
        if not state or len(state) == len(vectors):
            state = vectors[:1]
        environment = [key for key in vectors if key not in state] or state
    return {STATE: tuple(state), **images, **({ENVIRONMENT: tuple(environment)} if environment else {})}


def lerobot_settings(policy: DiffusionPolicy, features: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """config.json.

    Raises:
        CheckpointError: what LeRobot cannot have.
    """
    config = policy.config
    unet = config.unet
    if unet is None:
        raise CheckpointError("LeRobot's diffusion policy has a U-Net, this policy a transformer: it cannot be written")
    if config.conditioning != "global":
        raise CheckpointError(f"LeRobot's U-Net has a global condition, this policy is told by {config.conditioning}")
    if config.first != config.n_obs_steps - 1:
        raise CheckpointError(
            f"LeRobot executes a plan from action n_obs_steps - 1 = {config.n_obs_steps - 1} on, this policy from "
            f"{config.first} on"
        )
    if config.horizon % 2 ** len(unet.down_dims):
        raise CheckpointError(
            f"LeRobot needs a horizon divisible by {2 ** len(unet.down_dims)} for {len(unet.down_dims)} levels, "
            f"this policy has {config.horizon}"
        )
    kinds = {STATE: "STATE", ENVIRONMENT: "ENV"}
    inputs: dict[str, Any] = {}
    for name, keys in features.items():
        image = keys[0] in config.image_shapes
        shape = list(config.image_shapes[keys[0]]) if image else [sum(config.obs_dims[key] for key in keys)]
        inputs[name] = {"type": "VISUAL" if image else kinds[name], "shape": shape}
    return {
        **DEFAULTS,
        "n_obs_steps": config.n_obs_steps,
        "input_features": inputs,
        "output_features": {ACTION: {"type": "ACTION", "shape": [config.action_dim]}},
        "device": "cpu",
        "horizon": config.horizon,
        "n_action_steps": config.n_action_steps,
        "normalization_mapping": dict.fromkeys(("VISUAL", "STATE", "ENV", "ACTION"), "MIN_MAX"),
        "drop_n_last_frames": max(config.horizon - config.n_action_steps - config.n_obs_steps + 1, 0),
        "down_dims": list(unet.down_dims),
        "kernel_size": unet.kernel_size,
        "n_groups": unet.n_groups,
        "diffusion_step_embed_dim": unet.diffusion_step_embed_dim,
        "use_film_scale_modulation": unet.cond_predict_scale,
        **_encoder_settings(config),
        **_scheduler_settings(policy),
    }


def _encoder_settings(config: PolicyConfig) -> dict[str, Any]:
    encoder = config.encoder
    if encoder is None:
        return {}
    shapes = set(config.image_shapes.values())
    if len(shapes) > 1 or next(iter(shapes))[0] != 3:
        raise CheckpointError(f"LeRobot needs images with 3 channels and of one size, got {config.image_shapes}")
    if encoder.pool != "spatial_softmax" or encoder.features != 2 * encoder.keypoints:
        raise CheckpointError(
            "LeRobot's image encoder has keypoints (spatial softmax) and twice as many features; this policy's has "
            f"pool '{encoder.pool}', {encoder.keypoints} keypoints and {encoder.features} features"
        )
    return {
        "vision_backbone": encoder.backbone,
        "use_group_norm": encoder.norm == "group",
        "spatial_softmax_num_keypoints": encoder.keypoints,
        "use_separate_rgb_encoder_per_camera": not encoder.shared,
        **_size_settings(encoder),
    }


def _size_settings(encoder: EncoderConfig) -> dict[str, Any]:
    """resize_shape, crop_shape and crop_ratio; with a resize LeRobot makes the crop int(resize * ratio)."""
    resize, crop = encoder.resize, encoder.crop
    if resize is None:
        return {"crop_shape": None if crop is None else list(crop)}
    if crop is None or crop == resize:
        return {"resize_shape": list(resize)}
    sides = list(zip(crop, resize, strict=True))
    low, high = max(c / r for c, r in sides), min((c + 1) / r for c, r in sides)
    ratio = next((x for x in (low, (low + high) / 2) if tuple(int(r * x) for r in resize) == crop and x < 1), None)
    if ratio is None:
        raise CheckpointError(f"LeRobot crops both sides by one ratio: no ratio makes {crop} of {resize}")
    return {"resize_shape": list(resize), "crop_shape": list(crop), "crop_ratio": ratio}


def _scheduler_settings(policy: DiffusionPolicy) -> dict[str, Any]:
    """LeRobot passes seven settings on to the scheduler: the chain must be the same with defaults for the others."""
    given, steps = policy.scheduler_config, policy.config.num_inference_steps
    name = given.get("_class_name", "DDPMScheduler")
    kept = {key: given[key] for key in _PASSED_ON if key in given}
    try:
        # An old release's rounding is no setting: that of the release that LeRobot runs with takes its place.
        ours = Schedule.from_diffusers({k: v for k, v in given.items() if k != "_diffusers_version"}, steps)
        theirs = Schedule.from_diffusers({**kept, "_class_name": name}, steps)
    except ScheduleError as error:
        raise CheckpointError(f"the policy's chain cannot be written for LeRobot: {error}") from error
    same = all(getattr(ours, n) == getattr(theirs, n) for n in ("kind", "eta", "prediction_type", "clip", "threshold"))
    tables = ("timesteps", "A", "B", "sigma", "abar", "clipped", "unclipped")
    if not same or not all(torch.equal(getattr(ours, n), getattr(theirs, n)) for n in tables):
        others = {k: v for k, v in given.items() if k not in _PASSED_ON and not k.startswith("_")}
        raise CheckpointError(f"LeRobot's scheduler has no such settings, and another chain without them: {others}")
    if ours.prediction_type == "v_prediction":
        raise CheckpointError("LeRobot's policies predict the noise or the sample, this one v")
    diffusers = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02,
                 "prediction_type": "epsilon", "clip_sample": True, "clip_sample_range": 1.0}  # fmt: skip
    return {"noise_scheduler_type": name.removesuffix("Scheduler"), "num_inference_steps": steps, **diffusers, **kept}
