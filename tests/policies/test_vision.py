"""The image encoder: published names and sizes, keypoints, shapes, what is refused."""

import math

import pytest
import torch

from diffpolicy_spec.policies.unet import ConditionalUnet1D
from diffpolicy_spec.policies.vision import ImageEncoder, ResNet18, SpatialSoftmax, VisualCore


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_trunk_is_resnet18():
    """torchvision's resnet18 has 11,689,512 parameters, 513,000 of them in its classifier."""
    with torch.device("meta"):
        trunk = ResNet18()
    assert count(trunk) == 11_689_512 - 513_000
    shapes = {name: tuple(value.shape) for name, value in trunk.state_dict().items()}
    assert len(shapes) == 60  # 20 convolutions, and weight and bias of a normalisation each
    for name, shape in {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.bias": (64,),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer1.1.bn2.weight": (64,),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.bias": (128,),
        "layer3.0.conv1.weight": (256, 128, 3, 3),
        "layer4.1.conv2.weight": (512, 512, 3, 3),
    }.items():
        assert shapes[name] == shape
    assert not [name for name in shapes if "layer1.0.downsample" in name or "running" in name]


def test_groups_of_sixteen_channels():
    trunk = ResNet18()
    assert (trunk.bn1.num_groups, trunk.layer4[1].bn2.num_groups) == (4, 32)


def test_keypoints_follow_a_peak():
    pool = SpatialSoftmax(4, 3, 5, keypoints=4)
    with torch.no_grad():
        pool.nets.weight.copy_(torch.eye(4)[:, :, None, None])
        pool.nets.bias.zero_()
    maps = torch.zeros(1, 4, 3, 5)
    for channel, (row, column) in enumerate([(0, 0), (2, 4), (1, 2), (0, 3)]):
        maps[0, channel, row, column] = 50.0
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [0.5, -1.0]])  # x, y
    torch.testing.assert_close(pool(maps)[0], expected)
    torch.testing.assert_close(pool(torch.zeros(1, 4, 3, 5))[0], torch.zeros(4, 2))  # no peak: the middle
    assert {name: tuple(value.shape) for name, value in pool.state_dict().items()} == {
        "temperature": (1,), "pos_x": (1, 15), "pos_y": (1, 15), "nets.weight": (4, 4, 1, 1), "nets.bias": (4,)
    }  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(76, 76), (84, 84), (64, 96), (33, 40)])
def test_map_sizes(height, width):
    core = VisualCore(height, width).eval()
    x = torch.randn(2, 3, height, width)
    with torch.no_grad():
        assert core.backbone(x).shape == (2, 512, math.ceil(height / 32), math.ceil(width / 32))
        assert core(x).shape == (2, 64)


def test_features_of_cameras_and_steps():
    encoder = ImageEncoder(["agentview", "wrist"], 40, 40, keypoints=8, features=16).eval()
    assert encoder.features == 32
    images = {camera: torch.randn(3, 2, 3, 40, 40) for camera in ("wrist", "agentview")}
    with torch.no_grad():
        together = encoder(images)
        assert together.shape == (3, 2, 32)
        alone = encoder.obs_nets["wrist"](images["wrist"][1, :1])
        torch.testing.assert_close(together[1, 0, 16:], alone[0], rtol=1e-4, atol=1e-5)
        images["agentview"][2] = float("nan")  # images do not see each other
        torch.testing.assert_close(encoder(images)[:2], together[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"a": (2, 1, 3, 40, 40)}, "images of a, b are needed, got a"),
        ({"a": (2, 1, 3, 40, 40), "b": (2, 1, 3, 40, 40), "c": (2, 1, 3, 40, 40)}, "got a, b, c"),
        (
            {"a": (2, 1, 3, 40, 40), "b": (2, 2, 3, 40, 40)},
            r"'b' must be \(B, To, 3, 40, 40\), got \(2, 2, 3, 40, 40\)",
        ),
        ({"a": (2, 1, 40, 40, 3), "b": (2, 1, 3, 40, 40)}, "'a' must be"),
    ],
)
def test_wrong_images(images, message):
    encoder = ImageEncoder(["a", "b"], 40, 40)
    with pytest.raises(ValueError, match=message):
        encoder({camera: torch.zeros(shape) for camera, shape in images.items()})


def test_no_camera():
    with pytest.raises(ValueError, match="at least one camera"):
        ImageEncoder([])


def test_published_image_policy_size():
    """Two cameras and 9 numbers of proprioception, two steps: 64 features a camera; the paper calls it 256M."""
    with torch.device("meta"):
        encoder = ImageEncoder(["agentview_image", "robot0_eye_in_hand_image"])
        unet = ConditionalUnet1D(10, 2 * (encoder.features + 9), 128, (512, 1024, 2048), 5, 8, True)
    assert 255e6 < count(unet) < 256e6  # 255.6M: the denoiser alone; its encoder has 22.4M beside
    assert count(encoder) == 2 * (11_176_512 + (512 * 32 + 32) + (64 * 64 + 64))
