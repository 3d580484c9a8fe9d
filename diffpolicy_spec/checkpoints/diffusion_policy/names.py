"""Names in the state dict of a diffusion_policy policy, and what they are called here.

model.<name>                            the network, by the same name
normalizer.params_dict.<key>.<field>    statistics
obs_encoder.obs_nets.<camera>.nets...   robomimic's encoder (hybrid policies): .0 ResNet, .1 keypoints, .3 linear
obs_encoder.key_model_map.<camera>...   MultiImageObsEncoder: a torchvision ResNet each, or one as <camera> "rgb"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffpolicy_spec.checkpoints.encoder_names import from_visual_core
from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.pickles import StoredTensor
from diffpolicy_spec.checkpoints.weights import some

__all__ = ["StateDict", "encoder_names", "split_state"]

_SHARED = "rgb"
_NETWORK, _ENCODER, _NORMALIZER = "model.", "obs_encoder.", "normalizer.params_dict."
_HYBRID, _MULTI = "obs_nets.", "key_model_map."


@dataclass(frozen=True)
class StateDict:
    """The parts of a policy's state dict, each by the names within it."""

    network: dict[str, StoredTensor]
    encoder: dict[str, StoredTensor]
    normalizer: dict[str, StoredTensor]


def split_state(state: Any, where: str) -> StateDict:
    """Sort a policy's state dict into its parts; what only carries a device or trains is left out.

    Raises:
        CheckpointError: not a mapping of names to tensors, or a name that belongs nowhere.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{where} is a {type(state).__name__}, not the state dict of a policy")
    parts: dict[str, dict[str, StoredTensor]] = {_NETWORK: {}, _ENCODER: {}, _NORMALIZER: {}}
    strangers = []
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            raise CheckpointError(f"{where}: {str(name)[:100]!r} is a {type(value).__name__}, not a tensor")
        if name.rpartition(".")[2] == "_dummy_variable" or name.startswith("mask_generator."):
            continue
        part = next((p for p in parts if name.startswith(p)), None)
        if part is None:
            strangers.append(name[:100])
        else:
            parts[part][name[len(part) :]] = value
    if strangers:
        raise CheckpointError(f"{where} has unexpected tensors: {some(sorted(strangers))}")
    if not parts[_NETWORK]:
        raise CheckpointError(f"{where} lacks the network's weights, 'model.*'")
    return StateDict(parts[_NETWORK], parts[_ENCODER], parts[_NORMALIZER])


def encoder_names(
    names: Sequence[str], cameras: Sequence[str], *, hybrid: bool, shared: bool, where: str
) -> dict[str, str]:
    """Name in the encoder's state dict -> name in `policies.ImageEncoder`; one that is stored twice is taken once.

    Args:
        cameras: in the order of the encoder's networks here.
        hybrid: robomimic's encoder; else MultiImageObsEncoder.
        shared: one network for all cameras.

    Raises:
        CheckpointError: a name that belongs nowhere.
    """
    kind, nets = (_HYBRID, list(cameras)) if hybrid else (_MULTI, [_SHARED] if shared else list(cameras))
    found, strangers = {}, []
    for name in names:
        # Of two cameras "top" and "top.left" the longer name is meant where both fit.
        fits = [net for net in nets if name.startswith(f"{kind}{net}.")]
        ours: str | None = None
        if fits:
            net = max(fits, key=len)
            rest = name[len(kind) + len(net) + 1 :]
            ours = from_visual_core(rest) if hybrid else f"backbone.{rest}"
        if ours is None:
            strangers.append(name[:100])
        elif ours:
            found[name] = f"nets.{nets.index(net)}.{ours}"
    if strangers:
        raise CheckpointError(f"{where} has an encoder of another kind, with unexpected {some(sorted(strangers))}")
    return found
