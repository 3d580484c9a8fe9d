"""`cfg.policy` of diffusion_policy as a PolicyConfig and a scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from diffpolicy_spec.checkpoints.diffusion_policy.encoder import hybrid_encoder, multi_image_encoder, read_shape_meta
from diffpolicy_spec.checkpoints.diffusion_policy.task import Task, read_task, split_obs
from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.fields import Fields
from diffpolicy_spec.checkpoints.pickles import StoredTensor
from diffpolicy_spec.policies.config import PolicyConfig, TransformerConfig, UnetConfig
from diffpolicy_spec.scheduler_settings import SETTINGS

__all__ = ["CLASSES", "Kind", "Settings", "policy_class", "read_settings"]


@dataclass(frozen=True)
class Kind:
    """A policy class.

    Attributes:
        name: of the class.
        network: "unet" or "transformer".
        images: "" for none, "hybrid" for robomimic's encoder, "multi" for MultiImageObsEncoder.
        settings: names in `cfg.policy` beside those that all have.
    """

    name: str
    network: str
    images: str
    settings: frozenset[str]


_COMMON = frozenset((
    "_target_", "_recursive_", "_convert_", "noise_scheduler", "horizon", "n_action_steps", "n_obs_steps",
    "num_inference_steps", "eta",
))  # fmt: skip
_LOWDIM = frozenset(("model", "obs_dim", "action_dim", "pred_action_steps_only"))
_UNET = frozenset(("diffusion_step_embed_dim", "down_dims", "kernel_size", "n_groups", "cond_predict_scale"))
_TRANSFORMER = frozenset((
    "n_layer", "n_cond_layers", "n_head", "n_emb", "p_drop_emb", "p_drop_attn", "causal_attn", "time_as_cond",
))  # fmt: skip
_UNET_MODEL = _UNET | {"_target_", "input_dim", "local_cond_dim", "global_cond_dim"}
_TRANSFORMER_MODEL = _TRANSFORMER | {
    "_target_", "input_dim", "output_dim", "horizon", "n_obs_steps", "cond_dim", "obs_as_cond",
}  # fmt: skip
_HYBRID = frozenset(("shape_meta", "crop_shape", "obs_encoder_group_norm", "eval_fixed_crop"))
_KINDS = (
    Kind("DiffusionUnetLowdimPolicy", "unet", "",
         _LOWDIM | {"obs_as_local_cond", "obs_as_global_cond", "oa_step_convention"}),
    Kind("DiffusionTransformerLowdimPolicy", "transformer", "", _LOWDIM | {"obs_as_cond"}),
    Kind("DiffusionUnetHybridImagePolicy", "unet", "hybrid", _UNET | _HYBRID | {"obs_as_global_cond"}),
    Kind("DiffusionTransformerHybridImagePolicy", "transformer", "hybrid",
         _TRANSFORMER | _HYBRID | {"obs_as_cond", "pred_action_steps_only"}),
    Kind("DiffusionUnetImagePolicy", "unet", "multi", _UNET | {"shape_meta", "obs_encoder", "obs_as_global_cond"}),
)  # fmt: skip

CLASSES = {kind.name: kind for kind in _KINDS}
"""The policy classes that are read."""

_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
_DIFFUSERS = "0.11.1"  # the release that diffusion_policy pins


@dataclass(frozen=True)
class Settings:
    """What a config says.

    Attributes:
        policy: in this package's terms.
        scheduler: config of its diffusers scheduler.
        kind: its policy class.
        task: its task.
        notes: what was assumed.
    """

    policy: PolicyConfig
    scheduler: dict[str, Any]
    kind: Kind
    task: Task
    notes: tuple[str, ...]


def policy_class(settings: Fields) -> Kind:
    """The class of `cfg.policy`.

    Raises:
        CheckpointError: one that is not read.
    """
    target = settings.text("_target_")
    kind = CLASSES.get(target.rpartition(".")[2])
    if kind is None:
        raise CheckpointError(f"{settings.where}: the class '{target[:120]}' is not read; {', '.join(CLASSES)} are")
    unknown = sorted(name[:60] for name in settings if name not in _COMMON | kind.settings)
    if unknown:
        raise CheckpointError(f"{settings.where} has settings that {kind.name} does not have: {', '.join(unknown)}")
    return kind


def read_settings(settings: Fields, config: Mapping[str, Any], encoder: Mapping[str, StoredTensor]) -> Settings:
    """Read `cfg.policy`.

    Args:
        settings: cfg.policy, resolved.
        config: cfg as it is, for its task.
        encoder: the encoder's weights, for what they alone tell.

    Raises:
        CheckpointError: a setting that is missing, wrong, or has no counterpart here.
    """
    kind = policy_class(settings)
    scheduler, steps, notes = _scheduler(settings)
    try:
        read = _with_images if kind.images else _lowdim
        policy, task, told = read(settings, config, kind, encoder)
        policy = replace(policy, num_inference_steps=steps)
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{settings.where} does not describe a policy: {error}") from error
    return Settings(policy, scheduler, kind, task, (*task.notes, *told, *notes))


def _lowdim(
    settings: Fields, config: Mapping[str, Any], kind: Kind, encoder: Mapping[str, StoredTensor]
) -> tuple[PolicyConfig, Task, tuple[str, ...]]:
    if encoder:
        raise CheckpointError(f"{settings.where}: {kind.name} has no image encoder, and its weights hold one")
    model = settings.section("model")
    action_dim, obs_dim = settings.integer("action_dim"), settings.integer("obs_dim")
    task = read_task(config, action_dim)
    plan = _plan(settings, kind, model)
    # The U-Net policy counts from To on where it does not say otherwise.
    only = settings.flag("pred_action_steps_only", False)
    late = kind.network == "unet" and not only and not settings.flag("oa_step_convention", False)
    if late:
        plan["first_action"] = plan["n_obs_steps"]
    policy = PolicyConfig(
        obs_dims=split_obs(task, obs_dim), action_dim=action_dim, action_repr=task.action_repr, task=task.name, **plan
    )
    notes = ("actions are executed from the one after the newest observation's on",) if late else ()
    return policy, task, notes


def _with_images(
    settings: Fields, config: Mapping[str, Any], kind: Kind, encoder: Mapping[str, StoredTensor]
) -> tuple[PolicyConfig, Task, tuple[str, ...]]:
    meta = read_shape_meta(settings)
    task = read_task(config, meta.action_dim)
    cameras, order = list(meta.image_shapes), meta.order
    if kind.images == "multi":  # cameras by name, then the others by name
        cameras = sorted(cameras)
        order = (*cameras, *sorted(meta.obs_dims))
    if not cameras:
        raise CheckpointError(f"{settings.where}: {kind.name} without a camera in shape_meta")
    if kind.images == "multi":
        section, notes = multi_image_encoder(settings, encoder, meta.image_shapes)
    else:
        section, notes = hybrid_encoder(settings, encoder)
    policy = PolicyConfig(
        obs_dims=meta.obs_dims, image_shapes={camera: meta.image_shapes[camera] for camera in cameras},
        feature_order=order, encoder=section, action_dim=meta.action_dim, action_repr=task.action_repr,
        task=task.name, **_plan(settings, kind, settings),
    )  # fmt: skip
    return policy, task, notes


def _plan(settings: Fields, kind: Kind, model: Fields) -> dict[str, Any]:
    """Horizon, steps, conditioning and network; `model` is where the network's sizes stand."""
    horizon, To, Ta = (settings.integer(name) for name in ("horizon", "n_obs_steps", "n_action_steps"))
    conditioning = _conditioning(settings, kind)
    plan = {"horizon": horizon, "n_obs_steps": To, "n_action_steps": Ta, "conditioning": conditioning}
    if kind.network == "unet":
        plan["unet"] = _unet(model, within=model is settings)
    else:
        plan["unet"], plan["transformer"] = None, _transformer(model, within=model is settings)
    plan["first_action"] = To - 1
    if settings.flag("pred_action_steps_only", False):
        if conditioning != "global":
            raise CheckpointError(f"{settings.where}: pred_action_steps_only needs a global condition")
        plan["horizon"], plan["first_action"] = Ta, 0
    return plan


def _conditioning(settings: Fields, kind: Kind) -> str:
    if kind.network == "transformer":
        return "global" if settings.flag("obs_as_cond", bool(kind.images)) else "inpainting"
    local = settings.flag("obs_as_local_cond", False)
    if settings.flag("obs_as_global_cond", bool(kind.images)):
        if local:
            raise CheckpointError(f"{settings.where}: obs_as_local_cond and obs_as_global_cond exclude each other")
        return "global"
    return "local" if local else "inpainting"


def _check_model(model: Fields, name: str, known: frozenset[str]) -> None:
    target = model.text("_target_").rpartition(".")[2]
    if target != name:
        raise CheckpointError(f"{model.where}: the network '{target[:60]}' is not read; {name} is")
    unknown = sorted(key[:60] for key in model if key not in known)
    if unknown:
        raise CheckpointError(f"{model.where} has settings that {name} does not have: {', '.join(unknown)}")


def _unet(model: Fields, *, within: bool) -> UnetConfig:
    """Defaults are those of ConditionalUnet1D, or of the policy that it is built `within`."""
    if not within:
        _check_model(model, "ConditionalUnet1D", _UNET_MODEL)
    return UnetConfig(
        down_dims=model.sizes("down_dims", (256, 512, 1024)),
        kernel_size=model.integer("kernel_size", 5 if within else 3, most=999),
        n_groups=model.integer("n_groups", 8),
        diffusion_step_embed_dim=model.integer("diffusion_step_embed_dim", 256),
        cond_predict_scale=model.flag("cond_predict_scale", within),
    )


def _transformer(model: Fields, *, within: bool) -> TransformerConfig:
    """Defaults are those of TransformerForDiffusion, or of the policy that it is built `within`."""
    if not within:
        _check_model(model, "TransformerForDiffusion", _TRANSFORMER_MODEL)
    if not model.flag("time_as_cond", True):
        raise CheckpointError(f"{model.where}: time_as_cond=False (an encoder-only transformer) is not read")
    return TransformerConfig(
        n_layer=model.integer("n_layer", 8 if within else 12, most=1000),
        n_head=model.integer("n_head", 4 if within else 12),
        n_emb=model.integer("n_emb", 256 if within else 768),
        causal_attn=model.flag("causal_attn", within),
        n_cond_layers=model.integer("n_cond_layers", 0, least=0, most=1000),
        p_drop_emb=model.number("p_drop_emb", 0.0 if within else 0.1),
        p_drop_attn=model.number("p_drop_attn", 0.3 if within else 0.1),
    )


def _scheduler(settings: Fields) -> tuple[dict[str, Any], int | None, tuple[str, ...]]:
    """(config of the scheduler, K or None for all, notes)."""
    section = settings.section("noise_scheduler")
    target = section.text("_target_").rpartition(".")[2]
    if target not in _SCHEDULERS:
        raise CheckpointError(f"{section.where}: '{target[:60]}' is not read; {' and '.join(_SCHEDULERS)} are")
    if settings.number("eta", 0.0) != 0.0:
        raise CheckpointError(f"{settings.where}: DDIM with eta={settings.number('eta')} is not read; with eta=0 it is")
    config = {name: section.values[name] for name in section if not name.startswith("_")}
    if "predict_epsilon" in config:  # prediction_type in old releases, which 0.11 still takes
        config["prediction_type"] = "epsilon" if section.flag("predict_epsilon", True) else "sample"
        del config["predict_epsilon"]
    unknown = sorted(name[:60] for name in set(config) - SETTINGS)
    if unknown:
        raise CheckpointError(f"{section.where} has settings that {target} does not have: {', '.join(unknown)}")
    train = section.integer("num_train_timesteps", 1000, most=100_000)
    steps = settings.integer("num_inference_steps", train, most=train)
    plain = section.get("timestep_spacing", "leading") == "leading" and not section.integer("steps_offset", 0, least=0)
    notes: tuple[str, ...] = ()
    if target == "DDPMScheduler" and steps < train:
        notes = (
            f"{steps} of {train} steps: diffusers {_DIFFUSERS}, which diffusion_policy pins, takes t - 1 as the "
            "timestep after t then; here the chain goes to the next timestep that is visited, as diffusers does today",
        )
    scheduler = {"_class_name": target, "_diffusers_version": _DIFFUSERS, **config}
    return scheduler, None if steps == train and plain else steps, notes
