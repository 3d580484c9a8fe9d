"""A policy written as a folder that LeRobot 0.4.4 loads: config.json, model.safetensors, two processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec.atomic import atomic_folder
from diffpolicy_spec.checkpoints.lerobot.names import ENCODER, UNET, encoder_to_lerobot, unet_name_to_lerobot
from diffpolicy_spec.checkpoints.lerobot.processors import POSTPROCESSOR, PREPROCESSOR
from diffpolicy_spec.checkpoints.lerobot.read import ACTION, CONFIG, ENVIRONMENT, MODEL, STATE
from diffpolicy_spec.checkpoints.lerobot.write_config import lerobot_features, lerobot_settings
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.policies.images import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["lerobot_losses", "write_lerobot"]


def write_lerobot(policy: DiffusionPolicy, path: str | Path) -> list[str]:
    """Write a policy folder for LeRobot; it appears under its name only when complete.

    The network is the same function: its condition's columns are brought into LeRobot's order (state, images,
    environment state), a temperature goes into the keypoints' weights, ImageNet's normalisation into the statistics,
    which become the min and max of the same linear map.

    Returns:
        What LeRobot's format has no place for, and which observations were joined under which of its names; sentences.

    Raises:
        CheckpointError: LeRobot has no such network, conditioning, encoder or chain; the message says what.
        FileExistsError: `path` is something other than a LeRobot policy folder.
    """
    path = Path(path)
    if path.exists() and not _replaceable(path):
        raise FileExistsError(f"{path} exists and is not a LeRobot policy folder: not replaced")
    config = policy.config
    features = lerobot_features(config)
    settings = lerobot_settings(policy, features)
    tensors = _tensors(policy, features)
    statistics = _statistics(policy, features)
    from safetensors.torch import save_file

    with atomic_folder(path) as folder:
        save_file(tensors, folder / MODEL, metadata={"format": "pt"})
        for name, steps in _processors(settings).items():
            for step in steps:
                if "state_file" in step:
                    save_file(statistics, folder / step["state_file"], metadata={"format": "pt"})
            (folder / name).write_text(json.dumps({"name": Path(name).stem, "steps": steps}, indent=2) + "\n")
        (folder / CONFIG).write_text(json.dumps(settings, indent=4, allow_nan=False) + "\n")
    return _told(policy, features)


def _replaceable(path: Path) -> bool:
    if not path.is_dir():
        return False
    try:
        return json.loads((path / CONFIG).read_bytes()).get("type") == "diffusion"
    except (OSError, ValueError, AttributeError):
        return not any(path.iterdir())


def _tensors(policy: DiffusionPolicy, features: dict[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """model.safetensors."""
    config = policy.config
    assert config.unet is not None  # lerobot_settings has seen to it
    columns = _columns(config, features)
    named = {}
    for name, value in policy.network.state_dict().items():
        value = value.detach().float().cpu()
        if name.endswith("cond_encoder.1.weight"):
            # A column of zeros is put at the end, for what is given twice.
            value = torch.cat([value, value.new_zeros(len(value), 1)], dim=1)[:, columns]
        named[name] = value.contiguous()
    written = {f"{UNET}{unet_name_to_lerobot(name)}": value for name, value in named.items()}
    if policy.encoder is not None and config.encoder is not None:
        encoder = {name: value.detach().cpu() for name, value in policy.encoder.state_dict().items()}
        for name, value in encoder_to_lerobot(encoder, shared=config.encoder.shared).items():
            written[f"{ENCODER}{name}"] = value.contiguous()
    return written


def _columns(config: PolicyConfig, features: dict[str, tuple[str, ...]]) -> Tensor:
    """Of (step embedding, features of To steps, one of zeros): which stands where in LeRobot's order."""
    assert config.unet is not None
    width = {key: config.obs_dims.get(key) or config.encoder.feature_dim for key in config.feature_order}  # type: ignore[union-attr]
    start, at = {}, 0
    for key in config.feature_order:
        start[key], at = at, at + width[key]
    embed, total = config.unet.diffusion_step_embed_dim, config.obs_dim
    zeros = embed + config.n_obs_steps * total
    columns = list(range(embed))
    for step in range(config.n_obs_steps):
        seen: set[str] = set()
        for key in (key for keys in features.values() for key in keys):
            first = embed + step * total + start[key]
            columns += [zeros] * width[key] if key in seen else range(first, first + width[key])
            seen.add(key)
    return torch.tensor(columns)


def _statistics(policy: DiffusionPolicy, features: dict[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """min and max of each feature: where y = x scale + offset is -1 and 1."""
    found = {}
    for name, keys in {**features, ACTION: (ACTION,)}.items():
        fields = [policy.normalizer.fields(key) for key in keys]
        scale, offset = (torch.cat([f[part] for f in fields]).double().cpu() for part in ("scale", "offset"))
        if keys[0] in policy.config.image_shapes:
            if policy.config.encoder is not None and policy.config.encoder.imagenet_norm:
                mean, std = torch.tensor(IMAGENET_MEAN).double(), torch.tensor(IMAGENET_STD).double()
                scale, offset = scale / std, (offset - mean) / std
            scale, offset = scale[:, None, None], offset[:, None, None]
        found[f"{name}.min"] = ((-1 - offset) / scale).float().contiguous()
        found[f"{name}.max"] = ((1 - offset) / scale).float().contiguous()
    return found


def _processors(settings: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Steps as `make_diffusion_pre_post_processors` writes them."""
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}

    def normalizing(name: str, index: int, features: dict[str, Any], kind: str) -> dict[str, Any]:
        config = {"eps": 1e-8, "features": features, "norm_map": settings["normalization_mapping"]}
        file = f"{Path(name).stem}_step_{index}_{kind}.safetensors"
        return {"registry_name": kind, "config": config, "state_file": file}

    inputs, outputs = settings["input_features"], settings["output_features"]
    return {
        PREPROCESSOR: [
            {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
            {"registry_name": "to_batch_processor", "config": {}},
            device,
            normalizing(PREPROCESSOR, 3, {**inputs, **outputs}, "normalizer_processor"),
        ],
        POSTPROCESSOR: [normalizing(POSTPROCESSOR, 0, outputs, "unnormalizer_processor"), device],
    }


def lerobot_losses(policy: DiffusionPolicy) -> list[str]:
    """Where LeRobot would act otherwise than this policy does; sentences."""
    encoder, told = policy.config.encoder, []
    if encoder is not None and encoder.crop is not None:
        if encoder.random_crop_in_use:
            told.append("crops are taken at random in use here, from the middle in LeRobot")
        size = encoder.resize or next(iter(policy.config.image_shapes.values()))[1:]
        odd = any((n - m) % 4 == 3 for n, m in zip(size, encoder.crop, strict=True))  # x.5, and x + 1 is even
        if encoder.crop_rounding == "down" and odd:
            told.append("crops lie one pixel further down or right in LeRobot, which rounds the middle up")
    return told


def _told(policy: DiffusionPolicy, features: dict[str, tuple[str, ...]]) -> list[str]:
    config = policy.config
    told = [f"'{name}' is {' and then '.join(keys)}" for name, keys in features.items() if keys != (name,)]
    if features.get(ENVIRONMENT) == features[STATE]:
        told.append(f"LeRobot needs a second observation: '{ENVIRONMENT}' is the state again, its weights are zero")
    if config.action_repr != "raw":
        told.append(f"that actions are {config.action_repr} is not written: LeRobot's are what its environment takes")
    if config.task:
        told.append(f"the task's name, {config.task}, is not written")
    if policy.speculation is not None or policy.choices:
        told.append("what calibration found for speculation is not written")
    given = policy.scheduler_config
    if "_diffusers_version" in given and given.get("_class_name") != "DDIMScheduler":
        told.append("the chain is rounded as the diffusers that LeRobot runs with does it, not an old release: by 3e-5")
    return [*lerobot_losses(policy), *told]
