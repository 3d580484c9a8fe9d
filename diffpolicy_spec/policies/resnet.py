"""ResNets up to their last map, with torchvision's attribute names (He et al., "Deep Residual Learning", 2016).

Group normalisation stands in place of batch normalisation where running averages of the weights are used, which do not
go with running statistics (Chi et al. 2023, section III-B).
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["STRIDE", "ResNet"]

STRIDE = 32
"""Pixels of the image per cell of the last map."""

_CHANNELS_A_GROUP = 16
_LAYERS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
_WIDTHS = (64, 128, 256, 512)


def _conv(dim_in: int, dim_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(dim_in, dim_out, size, stride, padding=size // 2, bias=False)


def _norm(dim: int, kind: str) -> nn.Module:
    return nn.GroupNorm(dim // _CHANNELS_A_GROUP, dim) if kind == "group" else nn.BatchNorm2d(dim)


class _Block(nn.Module):
    """A residual path around the convolutions that a subclass has."""

    def __init__(self, dim_in: int, dim_out: int, stride: int, norm: str) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or dim_in != dim_out:
            self.downsample = nn.Sequential(_conv(dim_in, dim_out, 1, stride), _norm(dim_out, norm))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self._residual(x) + (x if self.downsample is None else self.downsample(x)))

    def _residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class _BasicBlock(_Block):
    """Two 3 x 3 convolutions."""

    expansion = 1

    def __init__(self, dim_in: int, width: int, stride: int, norm: str) -> None:
        super().__init__(dim_in, width, stride, norm)
        self.conv1, self.bn1 = _conv(dim_in, width, 3, stride), _norm(width, norm)
        self.conv2, self.bn2 = _conv(width, width, 3), _norm(width, norm)

    def _residual(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class _Bottleneck(_Block):
    """1 x 1, 3 x 3 (with the stride, as torchvision has it), 1 x 1 convolutions."""

    expansion = 4

    def __init__(self, dim_in: int, width: int, stride: int, norm: str) -> None:
        super().__init__(dim_in, 4 * width, stride, norm)
        self.conv1, self.bn1 = _conv(dim_in, width, 1), _norm(width, norm)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), _norm(width, norm)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), _norm(4 * width, norm)

    def _residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class ResNet(nn.Module):
    """(N, channels, H, W) -> (N, `out_channels`, ceil(H / 32), ceil(W / 32)).

    Args:
        name: "resnet18", "resnet34" or "resnet50".
        norm: "group" (16 channels a group) or "batch".
        channels: of the images.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(self, name: str = "resnet18", norm: str = "group", channels: int = 3) -> None:
        super().__init__()
        if name not in _LAYERS or norm not in ("group", "batch"):
            raise ValueError(f"unknown ResNet '{name}' with {norm} normalisation: {', '.join(_LAYERS)}; group, batch")
        block = _Bottleneck if name == "resnet50" else _BasicBlock
        self.out_channels = _WIDTHS[-1] * block.expansion
        self.conv1, self.bn1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False), _norm(64, norm)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
        dim = 64
        for i, (width, count) in enumerate(zip(_WIDTHS, _LAYERS[name], strict=True)):
            blocks: list[nn.Module] = []
            for j in range(count):
                blocks.append(block(dim, width, 2 if i and not j else 1, norm))
                dim = width * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            # Drawing into a meta tensor imports torch's compiler: seconds, for nothing.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(len(_WIDTHS)):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return x
