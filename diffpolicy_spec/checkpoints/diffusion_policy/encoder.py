"""The image encoders of diffusion_policy's policies, as an EncoderConfig."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.fields import Fields
from diffpolicy_spec.checkpoints.pickles import StoredTensor
from diffpolicy_spec.policies.config import EncoderConfig

__all__ = ["ShapeMeta", "hybrid_encoder", "multi_image_encoder", "read_shape_meta"]

_HYBRID_CROP = (76, 76)
_TORCHVISION = "0.13.1"  # the release that diffusion_policy pins
_BACKBONES = ("resnet18", "resnet34", "resnet50")
_MULTI = ("_target_", "_recursive_", "_convert_", "shape_meta", "rgb_model", "resize_shape", "crop_shape",
          "random_crop", "use_group_norm", "share_rgb_model", "imagenet_norm")  # fmt: skip


@dataclass(frozen=True)
class ShapeMeta:
    """cfg's shape_meta: action dimensions, and the observations in its order."""

    action_dim: int
    obs_dims: dict[str, int]
    image_shapes: dict[str, tuple[int, int, int]]
    order: tuple[str, ...]


def read_shape_meta(settings: Fields) -> ShapeMeta:
    """Read `shape_meta` of a policy's settings.

    Raises:
        CheckpointError: a kind or shape of observation that no policy class has.
    """
    meta = settings.section("shape_meta")
    obs = meta.section("obs")
    dims: dict[str, int] = {}
    images: dict[str, tuple[int, int, int]] = {}
    for key in obs:
        entry = obs.section(key)
        kind = entry.text("type", "low_dim")
        if kind == "rgb":
            channels, height, width = entry.sizes("shape", count=3)
            images[key] = (channels, height, width)
        elif kind == "low_dim":
            (dims[key],) = entry.sizes("shape", count=1)
        else:
            raise CheckpointError(f"{entry.where}: type '{kind[:40]}' is not read; 'rgb' and 'low_dim' are")
    (action_dim,) = meta.section("action").sizes("shape", count=1)
    return ShapeMeta(action_dim, dims, images, tuple(obs))


def hybrid_encoder(settings: Fields, weights: Mapping[str, StoredTensor]) -> tuple[EncoderConfig, tuple[str, ...]]:
    """robomimic's VisualCore as the hybrid policies build it: ResNet18, keypoints, linear; and notes.

    How many keypoints and features it has is told by its weights.
    """
    keypoints = _rows(weights, ".nets.1.nets.weight", 32)
    features = _rows(weights, ".nets.3.weight", 64)
    crop: tuple[int, ...] | None = _HYBRID_CROP
    if "crop_shape" in settings.values:
        crop = settings.sizes("crop_shape", count=2) if "crop_shape" in settings else None
    fixed = settings.flag("eval_fixed_crop", False)
    notes: tuple[str, ...] = ()
    if crop is not None and not fixed:
        notes = ("crops are random in use, too, as they are in robomimic 0.2: it was made without eval_fixed_crop",)
    config = EncoderConfig(
        norm=_norm(weights), keypoints=keypoints, features=features, crop=_pair(crop),
        random_crop_in_use=crop is not None and not fixed,
    )  # fmt: skip
    return config, notes


def multi_image_encoder(
    settings: Fields, weights: Mapping[str, StoredTensor], images: Mapping[str, tuple[int, int, int]]
) -> tuple[EncoderConfig, tuple[str, ...]]:
    """MultiImageObsEncoder: a torchvision ResNet for each camera, or one for all; and notes.

    Args:
        images: camera -> (C, H, W).

    Raises:
        CheckpointError: another encoder, another network, or a size for each camera.
    """
    encoder = settings.section("obs_encoder")
    target = encoder.text("_target_").rpartition(".")[2]
    if target != "MultiImageObsEncoder":
        raise CheckpointError(f"{encoder.where}: the encoder '{target[:60]}' is not read; MultiImageObsEncoder is")
    unknown = sorted(name[:60] for name in encoder if name not in _MULTI)
    if unknown:
        raise CheckpointError(f"{encoder.where} has settings that are not known here: {', '.join(unknown)}")
    model = encoder.section("rgb_model")
    if "_target_" not in model:
        raise CheckpointError(f"{model.where}: a network of its own for each camera is not read; one '_target_' is")
    builder = model.text("_target_").rpartition(".")[2]
    if builder != "get_resnet":
        raise CheckpointError(f"{model.where}: '{builder[:60]}' is not read; diffusion_policy's get_resnet is")
    if model.text("weights", "").lower() == "r3m":
        raise CheckpointError(f"{model.where}: weights 'r3m' is not read: its network is built by another project")
    crop, resize = (_one_size(encoder, name, tuple(images)) for name in ("crop_shape", "resize_shape"))
    notes = []
    if crop is not None and not encoder.flag("random_crop", True):
        crop = None
        notes.append("nothing is cropped: diffusion_policy's encoder ignores crop_shape without random_crop")
    if resize is not None and any(shape[1:] != resize for shape in images.values()):
        notes.append(f"images are resized with antialiasing, as torchvision does since 0.17; {_TORCHVISION}, which "
                     "diffusion_policy pins, does without")  # fmt: skip
    config = EncoderConfig(
        backbone=model.choice("name", _BACKBONES),
        norm=_norm(weights),
        pool="average",
        resize=resize,
        crop=crop,
        imagenet_norm=encoder.flag("imagenet_norm", False),
        shared=encoder.flag("share_rgb_model", False),
    )
    return config, tuple(notes)


def _one_size(encoder: Fields, name: str, cameras: Sequence[str]) -> tuple[int, int] | None:
    if name not in encoder:
        return None
    if not isinstance(encoder.get(name), Mapping):
        return _pair(encoder.sizes(name, count=2))
    each = encoder.section(name)
    sizes = {each.sizes(camera, count=2) for camera in cameras}
    if len(sizes) > 1:
        raise CheckpointError(f"{encoder.where}: '{name}' differs from camera to camera, which is not read")
    return _pair(sizes.pop())


def _pair(size: Sequence[int] | None) -> tuple[int, int] | None:
    return None if size is None else (size[0], size[1])


def _norm(weights: Mapping[str, StoredTensor]) -> str:
    """Told by the weights: only batch normalisation has running statistics."""
    return "batch" if any(name.endswith(".running_mean") for name in weights) else "group"


def _rows(weights: Mapping[str, StoredTensor], suffix: str, default: int) -> int:
    sizes = {tensor.shape[0] for name, tensor in weights.items() if name.endswith(suffix) and tensor.shape}
    return sizes.pop() if len(sizes) == 1 else default
