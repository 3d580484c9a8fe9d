"""What happens to a camera's images before the network: resized, cropped, ImageNet's normalisation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diffpolicy_spec.noise import Generator
from diffpolicy_spec.policies.config import EncoderConfig

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "center_crop", "imagenet_normalize", "input_size", "random_crop", "resize"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1]."""


def input_size(config: EncoderConfig, height: int, width: int) -> tuple[int, int]:
    """(H, W) of what the network is given of images (height, width).

    Raises:
        ValueError: the crop is larger than the images.
    """
    size = config.resize or (height, width)
    if config.crop is not None and (config.crop[0] > size[0] or config.crop[1] > size[1]):
        raise ValueError(f"crop {config.crop} does not fit into images of {size}")
    return config.crop or size


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) -> (N, C, *size), bilinear with antialiasing, as torchvision's Resize; untouched if of that size."""
    if tuple(images.shape[-2:]) == size:
        return images
    return interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def center_crop(images: Tensor, size: tuple[int, int], rounding: str = "nearest") -> Tensor:
    """(N, C, H, W) -> (N, C, *size), the middle; of an odd border see `EncoderConfig.crop_rounding`."""
    borders = (n - m for n, m in zip(images.shape[-2:], size, strict=True))
    top, left = (border // 2 if rounding == "down" else round(border / 2) for border in borders)
    return images[..., top : top + size[0], left : left + size[1]]


def random_crop(images: Tensor, size: tuple[int, int], generator: Generator = None) -> Tensor:
    """(N, C, H, W) -> (N, C, *size), from a place of each image's own.

    The top row is floor(u (H - h)) with u uniform in [0, 1): robomimic's law, which never takes the last place.
    With several generators, N is divisible by their number: each draws for as many images, one after the other.
    """
    N, H, W = images.shape[0], images.shape[-2], images.shape[-1]
    places = _uniform(N, generator, images.device)
    top, left = (places[0] * (H - size[0])).long(), (places[1] * (W - size[1])).long()
    rows = top[:, None] + torch.arange(size[0], device=images.device)
    columns = left[:, None] + torch.arange(size[1], device=images.device)
    of = torch.arange(N, device=images.device)[:, None, None]
    return images[of, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def imagenet_normalize(images: Tensor) -> Tensor:
    """(x - mean) / std of ImageNet's channels; images: (N, 3, H, W)."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def _uniform(n: int, generator: Generator, device: torch.device) -> Tensor:
    """(2, n) uniform numbers."""
    if generator is None or isinstance(generator, torch.Generator):
        source = device if generator is None else generator.device
        return torch.rand((2, n), generator=generator, device=source).to(device)
    each = n // len(generator)
    return torch.cat([torch.rand((2, each), generator=g, device=g.device).to(device) for g in generator], dim=1)
