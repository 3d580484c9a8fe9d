"""robomimic's diffusion policies (0.4, 0.5, master): one .pth file.

Read by this package's own reader of pickled files: nothing in it is executed, and robomimic is not imported. A step's
features are joined in the order of shape_metadata.all_shapes; images are in [0, 1] and are not shifted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec.checkpoints.encoder_names import from_visual_core
from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.fields import Fields, parse_json
from diffpolicy_spec.checkpoints.parts import Parts
from diffpolicy_spec.checkpoints.pickles import StoredTensor, load_tensors, read_pickled
from diffpolicy_spec.checkpoints.robomimic.actions import inverse_affine, read_actions
from diffpolicy_spec.checkpoints.robomimic.config import Observed, encoder_config, observed, scheduler_config
from diffpolicy_spec.policies.config import PolicyConfig, UnetConfig
from diffpolicy_spec.policies.errors import NormalizationError
from diffpolicy_spec.policies.normalizer import Fields as NormalizerFields
from diffpolicy_spec.policies.normalizer import LinearNormalizer

__all__ = ["read_robomimic"]

_TASKS = {
    "Lift": "lift", "PickPlaceCan": "can", "NutAssemblySquare": "square", "ToolHang": "tool_hang",
    "TwoArmTransport": "transport",
}  # fmt: skip
_WEIGHTS = {"auto": ("ema", "nets"), "ema": ("ema",), "ema_model": ("ema",), "nets": ("nets",), "model": ("nets",)}
_UNET, _NETS = "policy.noise_pred_net.", "policy.obs_encoder.nets.obs.obs_nets."
_DEFAULT_UNET = UnetConfig()


def read_robomimic(path: str | Path, weights: str = "auto", *, payload: Mapping[str, Any] | None = None) -> Parts:
    """Read a checkpoint of robomimic's `diffusion_policy`.

    Args:
        weights: "ema" (or "ema_model"), "nets" (or "model"), or "auto": the averaged ones where there are any.
        payload: what `read_pickled(path)` returns, if it has been read already.

    Raises:
        CheckpointError: damaged, another algorithm, or a setting that this package has no counterpart for.
    """
    path = Path(path)
    if weights not in _WEIGHTS:
        raise CheckpointError(f"weights must be one of {', '.join(_WEIGHTS)}; got '{weights}'")
    top = Fields(read_pickled(path) if payload is None else payload, str(path))
    name = top.text("algo_name")
    if name != "diffusion_policy":
        raise CheckpointError(f"{path} is a robomimic policy of algorithm '{name:.60}'; only diffusion_policy is read")
    config = parse_json(top.text("config"), f"{path}: config")
    algo, shapes = config.section("algo"), top.section("shape_metadata")
    if not algo.section("unet", {}).flag("enabled", True):
        raise CheckpointError(f"{algo.where}: unet.enabled is false; robomimic's only other network is a transformer "
                              "that it does not have yet")  # fmt: skip
    seen = observed(config, shapes.section("all_shapes"))
    encoder, notes = encoder_config(config, seen)
    scheduler, steps, told = scheduler_config(algo)
    environment = top.section("env_metadata", {})
    dims = shapes.integer("ac_dim")
    actions = read_actions(config.section("train"), top.get("action_normalization_stats", None), dims,
                           environment.get("env_kwargs", None), str(path))  # fmt: skip
    chosen, state = _state(top.section("model"), weights)
    network, cameras = _split(state, seen, path)
    unet, more = _unet(network, algo.section("unet", {}), path)
    if weights == "auto" and chosen == "nets" and algo.section("ema", {}).flag("enabled", False):
        more = (*more, "its config asks for a running average of the weights (ema), and the file holds none")
    horizon = algo.section("horizon")
    env_name = environment.get("env_name", "")
    try:
        policy = PolicyConfig(
            obs_dims=seen.vectors,
            action_dim=dims,
            action_repr=actions.repr,
            task=_TASKS.get(env_name, "") if isinstance(env_name, str) else "",
            horizon=horizon.integer("prediction_horizon"),
            n_obs_steps=horizon.integer("observation_horizon"),
            n_action_steps=horizon.integer("action_horizon"),
            unet=unet,
            image_shapes=seen.images,
            encoder=encoder,
            feature_order=seen.order,
            num_inference_steps=steps,
        )
        normalizer = LinearNormalizer({**_observations(top, seen), "action": actions.fields})
    except CheckpointError:
        raise
    except (ValueError, NormalizationError) as error:
        raise CheckpointError(f"{path} does not describe a policy: {error}") from error
    origin: dict[str, Any] = {"format": "robomimic", "class": "DiffusionPolicyUNet", "weights": chosen}
    if isinstance(env_name, str) and env_name:
        origin["environment"] = env_name[:100]
    env_args = _plain(top.get("env_metadata", None))
    if isinstance(env_args, dict) and env_args:
        origin["env_args"] = env_args
    return Parts(policy, load_tensors(network), load_tensors(cameras), normalizer, scheduler, origin,
                 (*notes, *told, *actions.notes, *more))  # fmt: skip


def _plain(value: Any) -> Any:
    """As JSON gives it back; None for what JSON cannot say."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return None


def _state(model: Fields, weights: str) -> tuple[str, dict[str, StoredTensor]]:
    """Which weights, and their tensors."""
    chosen = next((name for name in _WEIGHTS[weights] if name in model), None)
    if chosen is None:
        has = ", ".join(name for name in ("ema", "nets") if name in model) or "neither"
        raise CheckpointError(f"{model.where} lacks the weights asked for ('{weights}'); of ema and nets it has {has}")
    state = model.section(chosen)
    wrong = [name for name in state if not isinstance(state.values.get(name), StoredTensor)]
    if wrong:
        raise CheckpointError(f"{state.where}: '{wrong[0][:100]}' is not a tensor")
    return chosen, {name: state.values[name] for name in state}


def _split(
    state: Mapping[str, StoredTensor], seen: Observed, path: Path
) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """The U-Net's tensors, and the encoder's by the names of `ImageEncoder`."""
    network, encoder = {}, {}
    numbers = {camera: i for i, camera in enumerate(seen.images)}
    for name, value in state.items():
        if name.startswith(_UNET):
            network[name.removeprefix(_UNET)] = value
            continue
        camera, _, part = name.removeprefix(_NETS).partition(".") if name.startswith(_NETS) else ("", "", "")
        ours = from_visual_core(part) if camera in numbers else None
        if ours is None:
            raise CheckpointError(f"{path} has an unexpected tensor '{name[:100]}' {value.shape}")
        if ours:
            encoder[f"nets.{numbers[camera]}.{ours}"] = value
    return network, encoder


def _unet(network: Mapping[str, StoredTensor], settings: Fields, path: Path) -> tuple[UnetConfig, tuple[str, ...]]:
    """Sizes as the weights have them. robomimic itself always builds the default ones and ignores config.algo.unet."""
    levels: dict[int, tuple[int, ...]] = {}
    for name, value in network.items():
        match = re.fullmatch(r"down_modules\.(\d{1,2})\.0\.blocks\.0\.block\.0\.weight", name)
        if match and len(value.shape) == 3:
            levels[int(match[1])] = value.shape
    embed = network.get("diffusion_step_encoder.3.weight")
    if sorted(levels) != list(range(len(levels))) or not levels or embed is None or len(embed.shape) != 2:
        raise CheckpointError(f"{path} has no U-Net of the names that robomimic stores ({_UNET}...)")
    config = UnetConfig(
        down_dims=tuple(levels[i][0] for i in range(len(levels))),
        kernel_size=levels[0][2],
        diffusion_step_embed_dim=embed.shape[0],
    )
    if config == _DEFAULT_UNET or settings.integer("n_groups", 8) == 8:
        return config, ()
    # Groups leave no trace in the weights. Sizes other than robomimic's are those of a fork that reads its settings.
    config = UnetConfig(config.down_dims, config.kernel_size, settings.integer("n_groups"), embed.shape[0])
    return config, ("the U-Net has other sizes than robomimic builds: n_groups is taken from config.algo.unet",)


def _observations(top: Fields, seen: Observed) -> dict[str, NormalizerFields]:
    """obs_normalization_stats, or none: then observations are taken as they are, images in [0, 1]."""
    dims = {key: seen.vectors.get(key) or seen.images[key][0] for key in seen.order}
    if "obs_normalization_stats" not in top:
        return {key: {"scale": torch.ones(dim), "offset": torch.zeros(dim)} for key, dim in dims.items()}
    section = top.section("obs_normalization_stats")
    if seen.images:
        raise CheckpointError(f"{section.where}: statistics for each pixel of {', '.join(seen.images)} are unsupported")
    fields: dict[str, dict[str, Tensor]] = {key: inverse_affine(section.section(key), key) for key in seen.vectors}
    return fields
