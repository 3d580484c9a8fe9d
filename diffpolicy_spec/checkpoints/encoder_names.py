"""Names of an image encoder's parts: this package's, and those that robomimic, diffusion_policy and LeRobot store.

They cut the last layers off a torchvision ResNet by putting its children into a torch.nn.Sequential: `conv1` is `0`
there, `layer1` is `4`. robomimic's VisualCore is a Sequential of (trunk, pool, flatten, linear) again, and has trunk
and pool a second time under their own names.
"""

from __future__ import annotations

__all__ = ["from_numbered", "from_visual_core", "to_numbered"]

_NAMES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_NUMBERS = {name: number for number, name in _NAMES.items()}


def from_numbered(name: str) -> str | None:
    """`4.0.conv1.weight` -> `layer1.0.conv1.weight`; None for what is no part of a ResNet with parameters."""
    return _first_replaced(name, _NAMES)


def to_numbered(name: str) -> str | None:
    """`layer1.0.conv1.weight` -> `4.0.conv1.weight`; None for what is no part of a ResNet with parameters."""
    return _first_replaced(name, _NUMBERS)


def _first_replaced(name: str, names: dict[str, str]) -> str | None:
    first, _, rest = name.partition(".")
    return f"{names[first]}.{rest}" if first in names and rest else None


def from_visual_core(name: str) -> str | None:
    """A parameter of robomimic's VisualCore: `nets.0.nets.4.0.conv1.weight` -> `backbone.layer1.0.conv1.weight`,
    `nets.1.temperature` -> `pool.temperature`, `nets.3.weight` -> `linear.weight`.

    Returns:
        "" for a trunk or pool stored a second time (`backbone.*`, `pool.*`); None for what is no part of a VisualCore.
    """
    if name.startswith(("backbone.nets.", "pool.")):
        return ""
    if name.startswith("nets.0.nets."):
        numbered = from_numbered(name.removeprefix("nets.0.nets."))
        return None if numbered is None else f"backbone.{numbered}"
    if name.startswith("nets.1."):
        return f"pool.{name.removeprefix('nets.1.')}"
    return f"linear.{name.removeprefix('nets.3.')}" if name.startswith("nets.3.") else None
