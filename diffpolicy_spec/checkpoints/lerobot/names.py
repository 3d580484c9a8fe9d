"""LeRobot's names of a policy's tensors, and this package's.

    diffusion.unet.*              the U-Net; conv1, conv2 where the others have blocks.0, blocks.1, and its down- and
                                  upsampling convolutions bare
    diffusion.rgb_encoder.*       one network for all cameras, or diffusion.rgb_encoder.<i>.*, in the cameras' order:
                                  backbone.<child>.*, pool.{nets.*, pos_grid}, out.*

A network that ran through torch.compile has `_orig_mod.` in front.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from diffpolicy_spec.checkpoints.encoder_names import from_numbered, to_numbered
from diffpolicy_spec.checkpoints.errors import CheckpointError

__all__ = [
    "ENCODER",
    "UNET",
    "encoder_from_lerobot",
    "encoder_to_lerobot",
    "unet_from_lerobot",
    "unet_name_to_lerobot",
]

UNET, ENCODER = "diffusion.unet.", "diffusion.rgb_encoder."

_SAMPLING = re.compile(r"^((?:down|up)_modules\.\d+\.2)\.(weight|bias)$")
_BLOCK = re.compile(r"\.conv([12])\.block\.")


def unet_from_lerobot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`diffusion.unet.*` without its prefix -> names of `ConditionalUnet1D`."""
    named = {}
    for name, value in tensors.items():
        name = _SAMPLING.sub(r"\1.conv.\2", name.removeprefix("_orig_mod."))
        named[_BLOCK.sub(lambda match: f".blocks.{int(match[1]) - 1}.block.", name)] = value
    return named


def unet_name_to_lerobot(name: str) -> str:
    """A name of `ConditionalUnet1D` -> LeRobot's, without its prefix: the inverse of `unet_from_lerobot`."""
    name = re.sub(r"^((?:down|up)_modules\.\d+\.2)\.conv\.", r"\1.", name)
    return re.sub(r"\.blocks\.([01])\.block\.", lambda match: f".conv{int(match[1]) + 1}.block.", name)


def encoder_from_lerobot(tensors: Mapping[str, Tensor], *, shared: bool, where: str) -> dict[str, Tensor]:
    """`diffusion.rgb_encoder.*` without its prefix -> names of `ImageEncoder`.

    Raises:
        CheckpointError: a name that does not belong to such an encoder.
    """
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        number, _, part = ("0", "", name) if shared else name.partition(".")
        part = part.removeprefix("_orig_mod.")
        numbered = from_numbered(part.removeprefix("backbone.")) if part.startswith("backbone.") else None
        net = f"nets.{number}"
        if numbered is not None:
            named[f"{net}.backbone.{numbered}"] = value
        elif part.startswith("out."):
            named[f"{net}.linear.{part.removeprefix('out.')}"] = value
        elif part == "pool.pos_grid" and value.ndim == 2 and value.shape[1] == 2:
            named[f"{net}.pool.pos_x"] = value[:, 0].reshape(1, -1).clone()
            named[f"{net}.pool.pos_y"] = value[:, 1].reshape(1, -1).clone()
            named[f"{net}.pool.temperature"] = torch.ones(1)  # LeRobot has none
        elif part.startswith("pool.nets."):
            named[f"{net}.{part}"] = value
        else:
            raise CheckpointError(f"{where} has an unexpected tensor '{ENCODER}{name}' {tuple(value.shape)}")
    return named


def encoder_to_lerobot(tensors: Mapping[str, Tensor], *, shared: bool) -> dict[str, Tensor]:
    """The inverse of `encoder_from_lerobot`, without LeRobot's prefix.

    LeRobot's softmax has no temperature: s(W x + b) = softmax((W x + b) / temperature) goes into W and b.
    """
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        _, number, part = name.split(".", 2)
        net = "" if shared else f"{number}."
        pool = f"nets.{number}.pool."
        if part.startswith("backbone."):
            named[f"{net}backbone.{to_numbered(part.removeprefix('backbone.'))}"] = value
        elif part.startswith("linear."):
            named[f"{net}out.{part.removeprefix('linear.')}"] = value
        elif part.startswith("pool.nets."):
            named[f"{net}{part}"] = value / tensors[f"{pool}temperature"].to(value)
        elif part == "pool.pos_x":
            named[f"{net}pool.pos_grid"] = torch.stack([value[0], tensors[f"{pool}pos_y"][0]], dim=1)
    return named
