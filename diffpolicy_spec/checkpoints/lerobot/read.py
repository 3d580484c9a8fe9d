"""LeRobot's diffusion policies: a folder with config.json, model.safetensors and (newer releases) two processors.

Read from the files alone; LeRobot is not imported. Per step the network is told [observation.state, the images'
features in the config's order, observation.environment_state].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.fields import Fields, read_json
from diffpolicy_spec.checkpoints.lerobot.names import ENCODER, UNET, encoder_from_lerobot, unet_from_lerobot
from diffpolicy_spec.checkpoints.lerobot.processors import POSTPROCESSOR, PREPROCESSOR, read_processors
from diffpolicy_spec.checkpoints.lerobot.statistics import (
    ADVICE,
    BUFFERS,
    Feature,
    Statistics,
    from_buffers,
    normalization,
)
from diffpolicy_spec.checkpoints.parts import Parts
from diffpolicy_spec.checkpoints.tensors import read_tensors
from diffpolicy_spec.policies.config import EncoderConfig, PolicyConfig, UnetConfig
from diffpolicy_spec.policies.errors import NormalizationError
from diffpolicy_spec.policies.normalizer import LinearNormalizer

__all__ = ["CONFIG", "DEFAULTS", "ENVIRONMENT", "MODEL", "STATE", "read_lerobot"]

CONFIG, MODEL = "config.json", "model.safetensors"
STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"

DEFAULTS: dict[str, Any] = {
    "type": "diffusion", "n_obs_steps": 2, "input_features": None, "output_features": None, "device": None,
    "use_amp": False, "use_peft": False, "push_to_hub": False, "repo_id": None, "private": None, "tags": None,
    "license": None, "pretrained_path": None, "horizon": 16, "n_action_steps": 8,
    "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"},
    "drop_n_last_frames": 7, "vision_backbone": "resnet18", "resize_shape": None, "crop_ratio": 1.0,
    "crop_shape": None, "crop_is_random": True, "pretrained_backbone_weights": None, "use_group_norm": True,
    "spatial_softmax_num_keypoints": 32, "use_separate_rgb_encoder_per_camera": False,
    "down_dims": [512, 1024, 2048], "kernel_size": 5, "n_groups": 8, "diffusion_step_embed_dim": 128,
    "use_film_scale_modulation": True, "noise_scheduler_type": "DDPM", "num_train_timesteps": 100,
    "beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "epsilon",
    "clip_sample": True, "clip_sample_range": 1.0, "num_inference_steps": None, "compile_model": False,
    "compile_mode": "reduce-overhead", "do_mask_loss_for_padding": False, "optimizer_lr": 1e-4,
    "optimizer_betas": [0.95, 0.999], "optimizer_eps": 1e-8, "optimizer_weight_decay": 1e-6,
    "scheduler_name": "cosine", "scheduler_warmup_steps": 500,
}  # fmt: skip
"""Every setting of LeRobot 0.4.4's DiffusionConfig with its default, in the order in which it writes them."""

_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")


def read_lerobot(path: str | Path) -> Parts:
    """Read a policy folder, of a newer release (statistics in processor files) or an older one (in the weights).

    Observation keys stay LeRobot's (`observation.state`, `observation.images.top`), or are what the preprocessor
    renames to them. `action_repr` is "raw": what the environment takes.

    Raises:
        CheckpointError: a file is missing or damaged, the policy is of another type, statistics are missing, or a
            setting is one that this package has no counterpart for.
    """
    folder = Path(path)
    config = read_json(folder / CONFIG)
    kind = config.text("type")
    if kind != "diffusion":
        raise CheckpointError(f"{folder / CONFIG} is a LeRobot policy of type {kind[:40]!r}; only 'diffusion' is read")
    if config.flag("use_peft", False):
        raise CheckpointError(f"{folder / CONFIG} has use_peft: an adapter of another policy; merge it into that first")
    features, notes = _features(config)
    newer = (folder / PREPROCESSOR).is_file() or (folder / POSTPROCESSOR).is_file()
    processors = read_processors(folder) if newer else None
    names = _outer_names(features, {} if processors is None else processors.renamed, folder / PREPROCESSOR)
    policy, scheduler = _policy_config(config, features, names), _scheduler(config)
    weights = read_tensors(folder / MODEL)
    network, encoder, older = _weights(weights, shared=policy.encoder is None or policy.encoder.shared,
                                       where=folder / MODEL)  # fmt: skip
    if processors is None:
        inputs, outputs = _statistics_in_weights(config, older, features, folder)
    else:
        inputs, outputs = processors.inputs, processors.outputs
    params, told = normalization(inputs, outputs, features)
    try:
        normalizer = LinearNormalizer({names[key]: fields for key, fields in params.items()})
    except NormalizationError as error:
        raise CheckpointError(f"{inputs.where}: {error}") from error
    origin = {
        "format": "lerobot", "class": "DiffusionPolicy", "weights": MODEL,
        "statistics": "processor files" if newer else "inside the weights",
    }  # fmt: skip
    return Parts(policy, network, encoder, normalizer, scheduler, origin, (*notes, *told))


def _features(config: Fields) -> tuple[dict[str, Feature], tuple[str, ...]]:
    """The features that the network is given, in its order, and the action; notes on the others."""
    inputs, outputs = (_read_features(config, name) for name in ("input_features", "output_features"))
    images = {key: feature for key, feature in inputs.items() if feature.kind == "VISUAL"}
    environments = [key for key, feature in inputs.items() if feature.kind == "ENV"]
    if STATE not in inputs or inputs[STATE].kind != "STATE":
        raise CheckpointError(f"{config.where}: input_features lacks '{STATE}' of type STATE, which LeRobot's needs")
    if not images and not environments:
        raise CheckpointError(f"{config.where}: input_features has neither an image nor '{ENVIRONMENT}'")
    if environments and environments != [ENVIRONMENT]:
        raise CheckpointError(f"{config.where}: the feature of type ENV must be '{ENVIRONMENT}', got {environments}")
    if ACTION not in outputs or outputs[ACTION].kind != "ACTION":
        raise CheckpointError(f"{config.where}: output_features lacks '{ACTION}' of type ACTION")
    used = {STATE: inputs[STATE], **images, **{key: inputs[key] for key in environments}, ACTION: outputs[ACTION]}
    for key, feature in used.items():
        size = 3 if feature.kind == "VISUAL" else 1
        if len(feature.shape) != size:
            raise CheckpointError(f"{config.where}: '{key}' must have {size} dimensions, got {feature.shape}")
    if len({feature.shape for feature in images.values()}) > 1 or any(f.shape[0] != 3 for f in images.values()):
        shapes = {key: feature.shape for key, feature in images.items()}
        raise CheckpointError(f"{config.where}: images must have 3 channels and one size, got {shapes}")
    others = sorted({*inputs, *outputs} - set(used))
    notes = [f"LeRobot's network does not look at {', '.join(others)}; they are left out"] if others else []
    unknown = sorted(name for name in config if name not in DEFAULTS and name in config)
    if unknown:
        notes.append(f"settings of config.json that are not known here and left out: {', '.join(unknown)}")
    return used, tuple(notes)


def _read_features(config: Fields, name: str) -> dict[str, Feature]:
    section = config.section(name)
    read = {}
    for key in section:
        feature = section.section(key)
        read[key] = Feature(feature.text("type"), feature.sizes("shape"))
    return read


def _outer_names(features: Mapping[str, Feature], renamed: Mapping[str, str], where: Path) -> dict[str, str]:
    """Key in the policy's config -> the name under which the preprocessor takes it."""
    names = {}
    for key in features:
        sources = [old for old, new in renamed.items() if new == key]
        if len(sources) > 1 or (not sources and key in renamed):
            raise CheckpointError(f"{where}: its rename_map gives '{key}' {len(sources)} sources: {dict(renamed)}")
        names[key] = sources[0] if sources and key != ACTION else key
    if len(set(names.values())) < len(names):
        raise CheckpointError(f"{where}: its rename_map gives two features one source: {dict(renamed)}")
    return names


def _policy_config(config: Fields, features: Mapping[str, Feature], names: Mapping[str, str]) -> PolicyConfig:
    images = {names[key]: feature.shape for key, feature in features.items() if feature.kind == "VISUAL"}
    vectors = {names[key]: feature.shape[0] for key, feature in features.items() if feature.kind in ("STATE", "ENV")}
    steps = config.integer("num_inference_steps") if "num_inference_steps" in config else None
    try:
        return PolicyConfig(
            obs_dims=vectors,
            action_dim=features[ACTION].shape[0],
            action_repr="raw",
            horizon=config.integer("horizon", DEFAULTS["horizon"]),
            n_obs_steps=config.integer("n_obs_steps", DEFAULTS["n_obs_steps"]),
            n_action_steps=config.integer("n_action_steps", DEFAULTS["n_action_steps"]),
            unet=UnetConfig(
                down_dims=config.sizes("down_dims", DEFAULTS["down_dims"]),
                kernel_size=config.integer("kernel_size", DEFAULTS["kernel_size"], most=999),
                n_groups=config.integer("n_groups", DEFAULTS["n_groups"]),
                diffusion_step_embed_dim=config.integer("diffusion_step_embed_dim", 128),
                cond_predict_scale=config.flag("use_film_scale_modulation", True),
            ),
            image_shapes=images,  # type: ignore[arg-type]  # three sizes each: checked in _features
            encoder=_encoder_config(config) if images else None,
            feature_order=tuple(names[key] for key in features if key != ACTION),
            num_inference_steps=steps,
        )
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{config.where} does not describe a policy: {error}") from error


def _encoder_config(config: Fields) -> EncoderConfig:
    keypoints = config.integer("spatial_softmax_num_keypoints", 32)
    resize = config.sizes("resize_shape", count=2) if "resize_shape" in config else None
    crop = config.sizes("crop_shape", count=2) if "crop_shape" in config else None
    ratio = config.number("crop_ratio", 1.0)
    if not 0 < ratio <= 1:
        raise CheckpointError(f"{config.where}: 'crop_ratio' must be in (0, 1], got {ratio}")
    if resize is not None:  # then a crop_shape of its own does not count
        crop = (int(resize[0] * ratio), int(resize[1] * ratio)) if ratio < 1 else None
    return EncoderConfig(
        backbone=config.choice("vision_backbone", ("resnet18", "resnet34", "resnet50"), "resnet18"),
        norm="group" if config.flag("use_group_norm", True) else "batch",
        keypoints=keypoints,
        features=2 * keypoints,
        resize=resize,  # type: ignore[arg-type]  # two sizes
        crop=crop,  # type: ignore[arg-type]
        shared=not config.flag("use_separate_rgb_encoder_per_camera", False),
    )


def _scheduler(config: Fields) -> dict[str, Any]:
    """As LeRobot builds it: what it does not pass on has diffusers' defaults."""
    kind = config.choice("noise_scheduler_type", ("DDPM", "DDIM"), "DDPM")
    return {
        "_class_name": f"{kind}Scheduler",
        "num_train_timesteps": config.integer("num_train_timesteps", 100, most=100_000),
        "beta_start": config.number("beta_start", 0.0001),
        "beta_end": config.number("beta_end", 0.02),
        "beta_schedule": config.choice("beta_schedule", _BETAS, "squaredcos_cap_v2"),
        "clip_sample": config.flag("clip_sample", True),
        "clip_sample_range": config.number("clip_sample_range", 1.0),
        "prediction_type": config.choice("prediction_type", ("epsilon", "sample"), "epsilon"),
    }


def _weights(tensors: dict[str, Tensor], *, shared: bool, where: Path) -> tuple[dict[str, Tensor], ...]:
    """(network, encoder, statistics); the last with the names they have in the file."""
    parts: dict[str, dict[str, Tensor]] = {UNET: {}, ENCODER: {}, "": {}}
    for name, value in tensors.items():
        plain = name.removeprefix("_orig_mod.")
        part = next((p for p in (UNET, ENCODER) if plain.startswith(p)), "")
        if not part and not plain.startswith(BUFFERS):
            raise CheckpointError(f"{where} has an unexpected tensor '{name[:100]}' {tuple(value.shape)}")
        parts[part][plain.removeprefix(part)] = value
    encoder = encoder_from_lerobot(parts[ENCODER], shared=shared, where=str(where))
    return unet_from_lerobot(parts[UNET]), encoder, parts[""]


def _statistics_in_weights(
    config: Fields, tensors: Mapping[str, Tensor], features: Mapping[str, Feature], folder: Path
) -> tuple[Statistics, Statistics]:
    if not tensors:
        raise CheckpointError(
            f"{folder} has no statistics to normalise with: neither {PREPROCESSOR} and {POSTPROCESSOR} nor "
            f"{', '.join(BUFFERS[:2])} inside {MODEL}: {ADVICE}"
        )
    section = config.section("normalization_mapping", DEFAULTS["normalization_mapping"])
    modes = {kind: section.text(kind) for kind in section}
    inputs, outputs = (
        from_buffers(tensors, prefix, features, modes, str(folder / MODEL)) for prefix in BUFFERS[:2]
    )  # fmt: skip
    return inputs, outputs
