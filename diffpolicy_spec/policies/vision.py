"""Camera images to features, as the published image policies have it: ResNet-18, spatial softmax, linear.

He et al. 2016 with group normalisation in place of batch normalisation, which running averages of the weights do not go
with (Chi et al. 2023, section III-B); keypoints after Finn et al., "Deep Spatial Autoencoders", 2016, as robomimic's
VisualCore. The trunk's attribute names are torchvision's, the keypoints' are robomimic's. Published checkpoints number
the trunk's children (`nets.0.nets.{0,1,4,5,6,7}`) where they are named here (`backbone.{conv1,bn1,layer1,...,layer4}`),
and have the linear layer at `nets.3` (here `linear`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["ImageEncoder", "ResNet18", "SpatialSoftmax", "VisualCore"]

_CHANNELS_A_GROUP = 16
_STRIDE = 32  # pixels of the image per cell of the trunk's map


def _conv3(dim_in: int, dim_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(dim_in, dim_out, 3, stride, padding=1, bias=False)


def _norm(dim: int) -> nn.GroupNorm:
    return nn.GroupNorm(dim // _CHANNELS_A_GROUP, dim)


class _BasicBlock(nn.Module):
    """Two convolutions, and a residual path around them."""

    def __init__(self, dim_in: int, dim_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3(dim_in, dim_out, stride), _norm(dim_out)
        self.conv2, self.bn2 = _conv3(dim_out, dim_out), _norm(dim_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or dim_in != dim_out:
            self.downsample = nn.Sequential(nn.Conv2d(dim_in, dim_out, 1, stride, bias=False), _norm(dim_out))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(h + (x if self.downsample is None else self.downsample(x)))


def _level(dim_in: int, dim_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_BasicBlock(dim_in, dim_out, stride), _BasicBlock(dim_out, dim_out, 1))


class ResNet18(nn.Module):
    """ResNet-18 up to its last map, with group normalisation: (N, 3, H, W) -> (N, 512, ceil(H / 32), ceil(W / 32))."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), _norm(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, self.layer2 = _level(64, 64, 1), _level(64, 128, 2)
        self.layer3, self.layer4 = _level(128, 256, 2), _level(256, 512, 2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


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
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("pos_x", x.reshape(1, -1).clone())
        self.register_buffer("pos_y", y.reshape(1, -1).clone())

    def forward(self, x: Tensor) -> Tensor:
        share = torch.softmax(self.nets(x).flatten(2) / self.temperature, dim=-1)
        return share @ torch.cat([self.pos_x, self.pos_y]).T


class VisualCore(nn.Module):
    """One camera's images (N, 3, height, width), in [-1, 1], to (N, features)."""

    def __init__(self, height: int, width: int, keypoints: int = 32, features: int = 64) -> None:
        super().__init__()
        self.backbone = ResNet18()
        self.pool = SpatialSoftmax(512, -(-height // _STRIDE), -(-width // _STRIDE), keypoints)
        self.linear = nn.Linear(2 * keypoints, features)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.pool(self.backbone(images)).flatten(1))


class ImageEncoder(nn.Module):
    """Each camera through a network of its own, side by side in the order of `cameras`.

    Once a chunk: what it returns, with the low-dimensional observations beside it, is the denoiser's condition.

    Args:
        cameras: names.
        height, width: of the crops it is given, in pixels (published: 76 x 76, of 84 x 84 images).
        keypoints, features: of each camera.

    Raises:
        ValueError: no camera.
    """

    def __init__(
        self, cameras: Sequence[str], height: int = 76, width: int = 76, keypoints: int = 32, features: int = 64
    ) -> None:
        super().__init__()
        if not cameras:
            raise ValueError("an image encoder needs at least one camera")
        self.shape, self.features = (3, height, width), features * len(cameras)
        self.obs_nets = nn.ModuleDict({camera: VisualCore(height, width, keypoints, features) for camera in cameras})

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """camera -> (B, To, 3, H, W) crops in [-1, 1], for all cameras; to (B, To, features of all cameras).

        Raises:
            ValueError: cameras are missing or unknown, or images of the wrong shape.
        """
        cameras = list(self.obs_nets)
        if set(images) != set(cameras):
            raise ValueError(f"images of {', '.join(cameras)} are needed, got {', '.join(images) or 'none'}")
        B, To = images[cameras[0]].shape[:2]
        for camera in cameras:
            if images[camera].shape != (B, To, *self.shape):
                expected = ", ".join(map(str, ("B", "To", *self.shape)))
                raise ValueError(f"images of '{camera}' must be ({expected}), got {tuple(images[camera].shape)}")
        features = [self.obs_nets[camera](images[camera].flatten(0, 1)) for camera in cameras]
        return torch.cat(features, dim=1).view(B, To, -1)
