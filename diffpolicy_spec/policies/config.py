"""What a policy is, as plain data: it stands in a checkpoint's config.json and in configs/model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from diffpolicy_spec.policies.sizes import MOST_KEYS, MOST_LAYERS, MOST_STEPS, check_size
from diffpolicy_spec.rotations import ACTION_REPRS

__all__ = ["CONDITIONINGS", "EncoderConfig", "PolicyConfig", "TransformerConfig", "UnetConfig"]

CONDITIONINGS = ("global", "local", "inpainting")
"""How a network is told the observations, see `PolicyConfig.conditioning`."""


@dataclass(frozen=True)
class UnetConfig:
    """Sizes of the ConditionalUnet1D; see there."""

    down_dims: tuple[int, ...] = (256, 512, 1024)
    kernel_size: int = 5
    n_groups: int = 8
    diffusion_step_embed_dim: int = 256
    cond_predict_scale: bool = True

    def __post_init__(self) -> None:
        check_size("unet: levels", len(self.down_dims), most=16)
        dims = tuple(check_size("unet: each of down_dims", d) for d in self.down_dims)
        object.__setattr__(self, "down_dims", dims)
        for name in ("kernel_size", "n_groups", "diffusion_step_embed_dim"):
            check_size(f"unet: {name}", getattr(self, name))


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the TransformerForDiffusion; see there."""

    n_layer: int = 8
    n_head: int = 4
    n_emb: int = 256
    causal_attn: bool = True
    n_cond_layers: int = 0
    p_drop_emb: float = 0.0
    p_drop_attn: float = 0.3

    def __post_init__(self) -> None:
        check_size("transformer: n_layer", self.n_layer, MOST_LAYERS)
        check_size("transformer: n_cond_layers", self.n_cond_layers, MOST_LAYERS, least=0)
        check_size("transformer: n_emb", self.n_emb)
        check_size("transformer: n_head", self.n_head)


@dataclass(frozen=True)
class EncoderConfig:
    """How camera images become features: resize, crop, ResNet, pool, and for keypoints a linear layer and ReLU.

    Attributes:
        backbone: "resnet18", "resnet34" or "resnet50" (He et al. 2016).
        norm: "group" (16 channels a group) or "batch" (running statistics).
        pool: "spatial_softmax" (keypoints, then linear and ReLU: robomimic, LeRobot) or "average" (diffusion_policy's
            MultiImageObsEncoder: the pooled map is the feature).
        keypoints, features: of spatial_softmax: K positions, and the linear layer's outputs.
        resize: (H, W) that images are brought to first (bilinear, antialiased); None: as they are.
        crop: (H, W) cut out then: at random in training, the centre in use; None: no crop.
        crop_rounding: where the middle of an odd border is: "nearest" (torchvision's CenterCrop: halves to the even
            number) or "down" (robomimic).
        random_crop_in_use: cut out at random in use, too (diffusion_policy's hybrid policies without eval_fixed_crop).
        imagenet_norm: (x - mean) / std of ImageNet, on what the normaliser gives.
        shared: one network for all cameras.

    Raises:
        ValueError: unknown names or sizes that are not positive.
    """

    backbone: str = "resnet18"
    norm: str = "group"
    pool: str = "spatial_softmax"
    keypoints: int = 32
    features: int = 64
    resize: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    crop_rounding: str = "nearest"
    random_crop_in_use: bool = False
    imagenet_norm: bool = False
    shared: bool = False

    def __post_init__(self) -> None:
        for name, known in _ENCODER_NAMES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"encoder: {name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        for name in ("resize", "crop"):
            size = getattr(self, name)
            if size is not None:
                if len(size) != 2:
                    raise ValueError(f"encoder: {name} must be (height, width), got {str(size)[:60]}")
                object.__setattr__(self, name, tuple(check_size(f"encoder: {name}", n) for n in size))
        check_size("encoder: keypoints", self.keypoints)
        check_size("encoder: features", self.features)

    @property
    def feature_dim(self) -> int:
        """Features of one camera."""
        if self.pool == "spatial_softmax":
            return self.features
        return 2048 if self.backbone == "resnet50" else 512


_ENCODER_NAMES = {
    "backbone": ("resnet18", "resnet34", "resnet50"),
    "norm": ("group", "batch"),
    "pool": ("spatial_softmax", "average"),
    "crop_rounding": ("nearest", "down"),
}


@dataclass(frozen=True)
class PolicyConfig:
    """Shapes and conventions of a diffusion policy.

    Attributes:
        obs_dims: low-dimensional observation key -> dimensions.
        action_dim: Da, dimensions of the policy's action (10 for pos + rot6d + gripper).
        action_repr: what the action means: one of ACTION_REPRS.
        task: name of the task it was trained on, for `make_env(task)`; may be empty.
        horizon: T, actions a plan holds.
        n_obs_steps: To, observations it looks at.
        n_action_steps: Ta, actions executed before the next plan.
        unet, transformer: sizes of the network; one of the two, the other None.
        image_shapes: camera -> (C, H, W) of its images.
        encoder: how images become features; None without cameras.
        feature_order: observation keys in the order in which a step's features are joined; (): obs_dims, then cameras.
        conditioning: how the network is told the To steps' features. "global": one vector. "local": beside each action
            of the plan, 0 after the first To (U-Net only). "inpainting": known coordinates of a plan that holds an
            action and a step's features.
        first_action: of the plan, which is executed first; None: n_obs_steps - 1, that of the newest observation.
        num_inference_steps: K, of the chain the policy is used with; None: all training timesteps.

    Raises:
        ValueError: shapes that do not fit together, naming the field.
    """

    obs_dims: dict[str, int]
    action_dim: int
    action_repr: str
    task: str = ""
    horizon: int = 16
    n_obs_steps: int = 2
    n_action_steps: int = 8
    unet: UnetConfig | None = field(default_factory=UnetConfig)
    transformer: TransformerConfig | None = None
    image_shapes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    encoder: EncoderConfig | None = None
    feature_order: tuple[str, ...] = ()
    conditioning: str = "global"
    first_action: int | None = None
    num_inference_steps: int | None = None

    def __post_init__(self) -> None:
        check_size("the number of observations", len(self.obs_dims) + len(self.image_shapes), MOST_KEYS, least=0)
        dims = {str(k): check_size(f"obs_dims: '{str(k)[:60]}'", v) for k, v in self.obs_dims.items()}
        object.__setattr__(self, "obs_dims", dims)
        shapes = {
            str(k): tuple(check_size(f"image_shapes: '{str(k)[:60]}'", n) for n in v)
            for k, v in self.image_shapes.items()
        }
        object.__setattr__(self, "image_shapes", shapes)
        keys = (*self.obs_dims, *shapes)
        object.__setattr__(self, "feature_order", tuple(self.feature_order) or keys)
        if self.first_action is None:
            object.__setattr__(self, "first_action", self.n_obs_steps - 1)
        if not keys:
            raise ValueError(f"obs_dims must name at least one key; got {self.obs_dims}")
        for key, shape in shapes.items():
            if len(shape) != 3:
                raise ValueError(f"image_shapes: '{key}' must be (C, H, W), got {shape}")
        if (self.encoder is None) != (not shapes):
            raise ValueError(f"an encoder is for images: got encoder={self.encoder}, image_shapes={shapes}")
        if sorted(self.feature_order) != sorted(keys) or len(set(keys)) != len(keys):
            raise ValueError(f"feature_order must hold each observation key once: {self.feature_order}, keys {keys}")
        check_size("action_dim", self.action_dim)
        for name in ("horizon", "n_obs_steps", "n_action_steps"):
            check_size(name, getattr(self, name), MOST_STEPS)
        if self.action_repr not in ACTION_REPRS:
            raise ValueError(f"action_repr must be one of {', '.join(ACTION_REPRS)}; got '{self.action_repr}'")
        if self.action_repr == "absolute_rot6d" and self.action_dim % 10:
            raise ValueError(f"absolute_rot6d needs 10 dimensions an arm, got action_dim={self.action_dim}")
        if self.first + self.n_action_steps > self.horizon or self.first < 0:
            raise ValueError(
                f"n_action_steps={self.n_action_steps} from action {self.first} of the plan on passes the horizon "
                f"{self.horizon}"
            )
        if self.conditioning not in CONDITIONINGS:
            raise ValueError(f"conditioning must be one of {', '.join(CONDITIONINGS)}; got '{self.conditioning}'")
        if self.n_obs_steps > self.horizon and self.conditioning != "global":
            raise ValueError(f"{self.conditioning} conditioning needs n_obs_steps <= horizon")
        if (self.unet is None) == (self.transformer is None):
            raise ValueError("a policy has a unet or a transformer: give one of them, and the other as null")
        if self.unet is None and self.conditioning == "local":
            raise ValueError("local conditioning needs a unet")
        if self.num_inference_steps is not None:
            check_size("num_inference_steps", self.num_inference_steps)
        if self.unet is not None:
            factor = 2 ** (len(self.unet.down_dims) - 1)
            if self.horizon % factor:
                raise ValueError(f"horizon must be divisible by {factor} for {len(self.unet.down_dims)} levels")

    @property
    def first(self) -> int:
        """`first_action`, a number."""
        assert self.first_action is not None  # __post_init__ has set it
        return self.first_action

    @property
    def obs_keys(self) -> tuple[str, ...]:
        """Observation keys, low-dimensional ones and cameras, in the order of `feature_order`."""
        return self.feature_order

    @property
    def obs_dim(self) -> int:
        """Do, features of one observation."""
        each = 0 if self.encoder is None else self.encoder.feature_dim
        return sum(self.obs_dims.values()) + each * len(self.image_shapes)

    @property
    def condition_dim(self) -> int:
        """C, dimensions of the network's condition: To * Do global, T * Do local, 0 for inpainting."""
        return {"global": self.n_obs_steps, "local": self.horizon, "inpainting": 0}[self.conditioning] * self.obs_dim

    @property
    def plan_dim(self) -> int:
        """D, dimensions of a step of the plan that is sampled: Da, and Do more for inpainting."""
        return self.action_dim + (self.obs_dim if self.conditioning == "inpainting" else 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the order of obs_dims and image_shapes matters and is kept."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PolicyConfig:
        """The inverse of `to_dict`; with a transformer, `unet` may be left out.

        Raises:
            ValueError: unknown or missing names, or values that do not fit.
        """
        values = dict(data)
        _check_names("policy config", cls, values)
        missing = [n for n in ("obs_dims", "action_dim", "action_repr") if n not in values]
        if missing:
            raise ValueError(f"policy config lacks {', '.join(missing)}")
        for name in ("obs_dims", "image_shapes"):
            if not isinstance(values.get(name, {}), Mapping):
                raise ValueError(f"policy config: '{name}' must map observation keys to their sizes")
        if values.get("transformer") is not None:
            values.setdefault("unet", None)
        for name, section in (("unet", UnetConfig), ("transformer", TransformerConfig), ("encoder", EncoderConfig)):
            given = values.get(name)
            if given is None:
                continue
            if not isinstance(given, Mapping):
                raise ValueError(f"policy config: '{name}' must be a mapping, got {type(given).__name__}")
            _check_names(f"policy config: {name}", section, given)
            values[name] = section(**given)
        return cls(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _check_names(what: str, cls: type, values: Mapping[str, Any]) -> None:
    unknown = sorted(set(values) - {f.name for f in fields(cls)})
    if unknown:
        raise ValueError(f"{what}: unknown {', '.join(unknown)}")
