"""Camera images to features, as the published image policies have it: a ResNet, then keypoints or the map's average.

Keypoints after Finn et al., "Deep Spatial Autoencoders", 2016, as robomimic's VisualCore and LeRobot. The trunk's
attribute names are torchvision's, the keypoints' are robomimic's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffpolicy_spec.noise import Generator
from diffpolicy_spec.policies.config import EncoderConfig
from diffpolicy_spec.policies.images import center_crop, imagenet_normalize, input_size, random_crop, resize
from diffpolicy_spec.policies.resnet import STRIDE, ResNet

__all__ = ["CameraNet", "ImageEncoder", "SpatialSoftmax"]


class SpatialSoftmax(nn.Module):
    """Where on a map each keypoint is: the mean position under the softmax of its channel, in [-1, 1].

    (N, C, H, W) -> (N, keypoints, 2), x then y.
    """

    pos_x: Tensor
    pos_y: Tensor

    def __init__(self, channels: int, height: int, width: int, keypoints: int = 32) -> None:
        super().__init__()
        self.nets = nn.Conv2d(channels, keypoints, 1)
        self.register_buffer("temperature", torch.ones(1))
        for name, position in zip(("pos_x", "pos_y"), _positions(height, width, self.nets.weight.device), strict=True):
            self.register_buffer(name, position)

    def forward(self, x: Tensor) -> Tensor:
        share = torch.softmax(self.nets(x).flatten(2) / self.temperature, dim=-1)
        return share @ torch.cat([self.pos_x, self.pos_y]).T


def _positions(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y of the cells of a map, row by row: (1, height * width) each, in [-1, 1]."""
    if device.type == "meta":  # computing with meta tensors imports half of torch's compiler
        return torch.empty((1, height * width), device=device), torch.empty((1, height * width), device=device)
    rows, columns = (torch.linspace(-1, 1, n, device=device) for n in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return x.reshape(1, -1).clone(), y.reshape(1, -1).clone()


class CameraNet(nn.Module):
    """What the network is given of one camera, (N, channels, height, width), to (N, `config.feature_dim`)."""

    def __init__(self, config: EncoderConfig, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.backbone = ResNet(config.backbone, config.norm, channels)
        if config.pool == "spatial_softmax":
            cells = -(-height // STRIDE), -(-width // STRIDE)
            self.pool = SpatialSoftmax(self.backbone.out_channels, *cells, config.keypoints)
            self.linear = nn.Linear(2 * config.keypoints, config.features)
        self.keypoints = config.pool == "spatial_softmax"

    def forward(self, images: Tensor) -> Tensor:
        maps = self.backbone(images)
        if not self.keypoints:
            return maps.mean(dim=(2, 3))
        return torch.relu(self.linear(self.pool(maps).flatten(1)))


class ImageEncoder(nn.Module):
    """Each camera through a network of its own, or all through one.

    Once a chunk: what it returns, with the low-dimensional observations beside it, is the denoiser's condition. In
    training mode crops are taken at random, otherwise from the middle (or as `config.random_crop_in_use` says).

    Args:
        config: how images become features.
        image_shapes: camera -> (C, H, W) of its images; `nets` are in this order.

    Raises:
        ValueError: no camera; a crop larger than the images; ImageNet's normalisation of other than 3 channels; one
            network for images that it is given in different sizes.
    """

    def __init__(self, config: EncoderConfig, image_shapes: Mapping[str, tuple[int, int, int]]) -> None:
        super().__init__()
        if not image_shapes:
            raise ValueError("an image encoder needs at least one camera")
        self.config, self.image_shapes = config, dict(image_shapes)
        given = [(C, *input_size(config, H, W)) for C, H, W in image_shapes.values()]
        if config.imagenet_norm and any(channels != 3 for channels, _, _ in given):
            raise ValueError(f"imagenet_norm needs 3 channels, got {self.image_shapes}")
        if config.shared and len(set(given)) > 1:
            raise ValueError(f"a shared network needs images of one size, it would be given {given}")
        nets = given[:1] if config.shared else given
        self.nets = nn.ModuleList(CameraNet(config, *shape) for shape in nets)

    def forward(self, images: Mapping[str, Tensor], generator: Generator = None) -> dict[str, Tensor]:
        """camera -> (B, To, C, H, W), normalised, for all cameras; to camera -> (B, To, features).

        Args:
            generator: where random crops are drawn from: one, or one per row of B. None: torch's default generator.

        Raises:
            ValueError: cameras are missing or unknown, or images of the wrong shape.
        """
        if set(images) != set(self.image_shapes):
            raise ValueError(f"images of {', '.join(self.image_shapes)} are needed, got {', '.join(images) or 'none'}")
        B, To = images[next(iter(self.image_shapes))].shape[:2]
        given = []
        for camera, shape in self.image_shapes.items():
            if tuple(images[camera].shape) != (B, To, *shape):
                expected = ", ".join(map(str, ("B", "To", *shape)))
                raise ValueError(f"images of '{camera}' must be ({expected}), got {tuple(images[camera].shape)}")
            given.append(self._prepare(images[camera].flatten(0, 1), generator))
        if self.config.shared:
            features = list(self.nets[0](torch.cat(given)).chunk(len(given)))
        else:
            features = [net(x) for net, x in zip(self.nets, given, strict=True)]
        return {camera: x.view(B, To, -1) for camera, x in zip(self.image_shapes, features, strict=True)}

    def _prepare(self, images: Tensor, generator: Generator) -> Tensor:
        config = self.config
        if config.resize is not None:
            images = resize(images, config.resize)
        if config.crop is not None:
            at_random = self.training or config.random_crop_in_use
            if at_random:
                images = random_crop(images, config.crop, generator)
            else:
                images = center_crop(images, config.crop, config.crop_rounding)
        return imagenet_normalize(images) if config.imagenet_norm else images
