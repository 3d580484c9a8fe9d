"""Settings of robomimic's diffusion policy: observations and their encoder, the chain, in this package's terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.fields import Fields
from diffpolicy_spec.policies.config import EncoderConfig

__all__ = ["Observed", "encoder_config", "observed", "scheduler_config"]

_BACKBONES = {"ResNet18Conv": "resnet18", "ResNet50Conv": "resnet50"}
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
_DIFFUSERS = "0.11.1"  # what robomimic requires
# What these randomizers do to images in training, they do not do in use.
_TRAINING_ONLY = ("ColorRandomizer", "GaussianNoiseRandomizer")


@dataclass(frozen=True)
class Observed:
    """The observations of a policy, in the order in which their features are joined.

    Attributes:
        order: all keys.
        vectors: low-dimensional key -> dimensions.
        images: camera -> (C, H, W).
    """

    order: tuple[str, ...]
    vectors: dict[str, int]
    images: dict[str, tuple[int, int, int]]


def observed(config: Fields, shapes: Fields) -> Observed:
    """What the policy sees: the keys of observation.modalities.obs, in the order of shape_metadata.all_shapes.

    Raises:
        CheckpointError: it is conditioned on goals, or on something else than vectors and RGB images.
    """
    groups = config.section("observation").section("modalities")
    kinds: dict[str, str] = {}
    for group in groups:
        modalities = groups.section(group, {})
        for modality in modalities:
            for key in modalities.names(modality, ()):
                if group != "obs":
                    raise CheckpointError(f"{groups.where}: the policy is conditioned on '{group}' ({key}): only "
                                          "observations are supported")  # fmt: skip
                if modality not in ("low_dim", "rgb"):
                    raise CheckpointError(f"{groups.where}: '{key}' is of modality '{modality}': only low_dim and rgb "
                                          "are supported")  # fmt: skip
                kinds[key] = modality
    order = tuple(key for key in shapes if key in kinds)
    missing = sorted(set(kinds) - set(order))
    if missing or not order:
        raise CheckpointError(f"{shapes.where} lacks {', '.join(missing) or 'all observations'}")
    vectors, images = {}, {}
    for key in order:
        if kinds[key] == "low_dim":
            vectors[key] = shapes.sizes(key, count=1)[0]
        else:
            channels, height, width = shapes.sizes(key, count=3)
            if channels != 3:
                raise CheckpointError(f"{shapes.where}: images of '{key}' must be (3, H, W), got {channels} channels")
            images[key] = (channels, height, width)
    return Observed(order, vectors, images)


def encoder_config(config: Fields, seen: Observed) -> tuple[EncoderConfig | None, tuple[str, ...]]:
    """How images become features, None without images; and notes.

    Raises:
        CheckpointError: an encoder that has no counterpart here, naming the setting.
    """
    encoders = config.section("observation").section("encoder")
    if seen.vectors:
        vector = encoders.section("low_dim", {})
        if vector.get("core_class", "None") != "None":
            raise CheckpointError(f"{vector.where}: core_class {vector.get('core_class')!r} on vectors is unsupported")
        if any(name not in (None, "None") for name, _ in _randomizers(vector)):
            raise CheckpointError(f"{vector.where}: randomizers of vectors are not supported")
    if not seen.images:
        return None, ()
    rgb = encoders.section("rgb")
    rgb.choice("core_class", ("VisualCore",))
    core = rgb.section("core_kwargs", {})
    backbone = _BACKBONES[core.choice("backbone_class", tuple(_BACKBONES), "ResNet18Conv")]
    if core.section("backbone_kwargs", {}).flag("input_coord_conv", False):
        raise CheckpointError(f"{core.where}: backbone_kwargs.input_coord_conv is not supported")
    if "pool_class" in core.values and "pool_class" not in core:
        raise CheckpointError(f"{core.where}: an encoder without a pool (pool_class null) is not supported")
    core.choice("pool_class", ("SpatialSoftmax",), "SpatialSoftmax")
    if not core.flag("flatten", True) or ("feature_dimension" in core.values and "feature_dimension" not in core):
        raise CheckpointError(f"{core.where}: an encoder without a linear layer (feature_dimension) is not supported")
    pool = core.section("pool_kwargs", {})
    if pool.flag("output_variance", False) or ("num_kp" in pool.values and "num_kp" not in pool):
        raise CheckpointError(f"{pool.where}: SpatialSoftmax with output_variance or without num_kp is not supported")
    crop, notes = _crop(rgb, seen)
    settings = EncoderConfig(backbone=backbone, keypoints=pool.integer("num_kp", 32), crop=crop,
                             features=core.integer("feature_dimension", 64), crop_rounding="down")  # fmt: skip
    return settings, notes


def _crop(rgb: Fields, seen: Observed) -> tuple[tuple[int, int] | None, tuple[str, ...]]:
    crop: tuple[int, int] | None = None
    notes = []
    for name, settings in _randomizers(rgb):
        if name in _TRAINING_ONLY:
            notes.append(f"{name} is left out: in use it does nothing")
        elif name == "CropRandomizer" and crop is None:
            crop = settings.integer("crop_height", 76), settings.integer("crop_width", 76)
            if settings.flag("pos_enc", False):
                raise CheckpointError(f"{settings.where}: CropRandomizer with pos_enc is not supported")
            if settings.integer("num_crops", 1) > 1:
                notes.append("CropRandomizer averages over num_crops crops in training, which is left out: in use it "
                             "takes one from the middle")  # fmt: skip
        elif name not in (None, "None"):
            raise CheckpointError(f"{rgb.where}: obs_randomizer_class {name!r:.60} is not supported")
    for key, (_, height, width) in seen.images.items():
        if crop is not None and (crop[0] >= height or crop[1] >= width):
            raise CheckpointError(f"{rgb.where}: a crop of {crop} does not fit into '{key}', {height} x {width}")
    return crop, tuple(notes)


def _randomizers(encoder: Fields) -> list[tuple[Any, Fields]]:
    """obs_randomizer_class and obs_randomizer_kwargs are one of each, or a list of each."""
    names, settings = encoder.get("obs_randomizer_class", None), encoder.get("obs_randomizer_kwargs", {})
    names = names if isinstance(names, list) else [names]
    settings = settings if isinstance(settings, list) else [settings]
    where = f"{encoder.where}: obs_randomizer_kwargs"
    # As robomimic pairs them: of lists of different lengths, it builds as many as the shorter has.
    return [(name, Fields(each or {}, where)) for name, each in zip(names, settings, strict=False)]


def scheduler_config(algo: Fields) -> tuple[dict[str, Any], int | None, tuple[str, ...]]:
    """diffusers scheduler as robomimic builds it, steps of the chain (None: all), and notes.

    Raises:
        CheckpointError: neither DDPM nor DDIM is enabled, or a setting is not supported.
    """
    for kind in ("ddpm", "ddim"):
        chain = algo.section(kind, {})
        if not chain.flag("enabled", False):
            continue
        trained = chain.integer("num_train_timesteps", most=100_000)
        steps = chain.integer("num_inference_timesteps", trained, most=trained)
        config: dict[str, Any] = {
            "_class_name": f"{kind.upper()}Scheduler",
            "_diffusers_version": _DIFFUSERS,
            "num_train_timesteps": trained,
            "beta_schedule": chain.choice("beta_schedule", _BETAS),
            "clip_sample": chain.flag("clip_sample"),
            "prediction_type": chain.choice("prediction_type", ("epsilon", "sample", "v_prediction")),
        }
        if kind == "ddim":
            config["set_alpha_to_one"] = chain.flag("set_alpha_to_one", True)
            config["steps_offset"] = chain.integer("steps_offset", 0, least=0)
        notes = (
            f"{steps} of {trained} DDPM steps are spaced as today's diffusers does; 0.11, which robomimic names, takes "
            "other variances when steps are left out",
        )
        fewer = kind == "ddpm" and steps < trained
        return config, steps if steps < trained or kind == "ddim" else None, notes if fewer else ()
    raise CheckpointError(f"{algo.where}: neither ddpm nor ddim is enabled")
