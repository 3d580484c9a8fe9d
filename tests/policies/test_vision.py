"""The image encoder: published names and sizes, keypoints, crops, shapes, what is refused."""

import math

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from diffpolicy_spec.policies.config import EncoderConfig
from diffpolicy_spec.policies.images import center_crop, imagenet_normalize, random_crop, resize
from diffpolicy_spec.policies.resnet import ResNet
from diffpolicy_spec.policies.vision import ImageEncoder, SpatialSoftmax

SMALL = {"keypoints": 8, "features": 16}


def count(module):
    return sum(p.numel() for p in module.parameters())


def two_cameras(size=(3, 40, 40), **config):
    torch.manual_seed(0)
    return ImageEncoder(EncoderConfig(**SMALL | config), {"a": size, "b": size}).eval()


def images(encoder, B=3, To=2, seed=1):
    g = torch.Generator().manual_seed(seed)
    return {camera: torch.rand((B, To, *shape), generator=g) for camera, shape in encoder.image_shapes.items()}


# torchvision's counts: 11,689,512, 21,797,672 and 25,557,032 parameters, the classifier among them.
@pytest.mark.parametrize(
    ("name", "whole", "classifier", "tensors"),
    [
        ("resnet18", 11_689_512, 513_000, 60),
        ("resnet34", 21_797_672, 513_000, 108),
        ("resnet50", 25_557_032, 2_049_000, 159),
    ],
)
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_trunks_are_torchvisions(name, whole, classifier, tensors, norm):
    with torch.device("meta"):
        trunk = ResNet(name, norm)
    assert count(trunk) == whole - classifier
    shapes = {name: tuple(value.shape) for name, value in trunk.state_dict().items()}
    convolutions = tensors // 3
    assert len(shapes) == (tensors if norm == "group" else tensors + 3 * convolutions)
    assert ("layer4.0.bn2.running_var" in shapes) == (norm == "batch")
    expected = {
        "resnet18": {"layer1.0.conv1.weight": (64, 64, 3, 3), "layer2.0.downsample.0.weight": (128, 64, 1, 1)},
        "resnet34": {"layer3.5.conv2.weight": (256, 256, 3, 3), "layer4.2.bn2.bias": (512,)},
        "resnet50": {
            "layer1.0.conv1.weight": (64, 64, 1, 1), "layer1.0.downsample.0.weight": (256, 64, 1, 1),
            "layer3.5.conv3.weight": (1024, 256, 1, 1), "layer4.2.bn3.weight": (2048,),
        },
    }[name]  # fmt: skip
    for key, shape in (expected | {"conv1.weight": (64, 3, 7, 7), "bn1.bias": (64,)}).items():
        assert shapes[key] == shape
    assert ("layer1.0.downsample.0.weight" in shapes) == (name == "resnet50")


def test_groups_of_sixteen_channels():
    trunk = ResNet()
    assert (trunk.bn1.num_groups, trunk.layer4[1].bn2.num_groups) == (4, 32)


def test_the_stride_of_a_bottleneck_is_at_its_three_by_three():
    block = ResNet("resnet50").layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))


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
    encoder = ImageEncoder(EncoderConfig(), {"front": (3, height, width)}).eval()
    x = torch.randn(2, 3, height, width)
    with torch.no_grad():
        assert encoder.nets[0].backbone(x).shape == (2, 512, math.ceil(height / 32), math.ceil(width / 32))
        assert encoder.nets[0](x).shape == (2, 64)


def test_features_of_cameras_and_steps():
    encoder = two_cameras()
    x = images(encoder)
    with torch.no_grad():
        together = encoder(dict(reversed(x.items())))
        assert {camera: tuple(f.shape) for camera, f in together.items()} == {"a": (3, 2, 16), "b": (3, 2, 16)}
        alone = encoder.nets[1](x["b"][1, :1])
        torch.testing.assert_close(together["b"][1, 0], alone[0], rtol=1e-4, atol=1e-5)
        assert all((f >= 0).all() and (f > 0).any() for f in together.values())  # after the ReLU
        x["a"][2] = float("nan")  # images do not see each other
        torch.testing.assert_close(encoder(x)["a"][:2], together["a"][:2], rtol=1e-4, atol=1e-5)


def test_names():
    names = set(two_cameras().state_dict())
    for name in (
        "nets.0.backbone.conv1.weight", "nets.1.backbone.layer4.1.bn2.bias", "nets.0.pool.nets.weight",
        "nets.1.pool.temperature", "nets.0.pool.pos_x", "nets.1.linear.bias",
    ):  # fmt: skip
        assert name in names
    averaged = set(two_cameras(pool="average").state_dict())
    assert {name.split(".")[2] for name in averaged} == {"backbone"}
    assert {name.split(".")[1] for name in two_cameras(shared=True).state_dict()} == {"0"}


def test_a_shared_network_sees_all_cameras():
    encoder = two_cameras(shared=True)
    x = images(encoder)
    with torch.no_grad():
        features = encoder(x)
        swapped = encoder({"a": x["b"], "b": x["a"]})
    torch.testing.assert_close(features["a"], swapped["b"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features["a"], features["b"], rtol=1e-3)


@pytest.mark.parametrize(("backbone", "dim"), [("resnet18", 512), ("resnet50", 2048)])
def test_the_average_of_the_map(backbone, dim):
    encoder = two_cameras(pool="average", backbone=backbone, norm="batch")
    x = images(encoder, B=1)
    with torch.no_grad():
        found = encoder(x)["a"]
        expected = adaptive_avg_pool2d(encoder.nets[0].backbone(x["a"][0]), 1).flatten(1)
    assert found.shape == (1, 2, dim)
    assert encoder.config.feature_dim == dim
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)


def test_what_the_network_is_given():
    """Resized, then the centre cut out, then ImageNet's normalisation."""
    encoder = two_cameras(size=(3, 60, 50), resize=(44, 44), crop=(40, 36), imagenet_norm=True)
    x = images(encoder)
    seen = []
    encoder.nets[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        encoder(x)
    resized = torch.nn.functional.interpolate(
        x["a"].flatten(0, 1), (44, 44), mode="bilinear", align_corners=False, antialias=True
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (resized[:, :, 2:42, 4:40] - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(seen[0], expected)
    assert encoder.nets[0].pool.pos_x.shape == (1, 4)  # ceil(40 / 32) * ceil(36 / 32)


@pytest.mark.parametrize(("size", "crop", "top"), [(84, 76, 4), (10, 7, 2), (10, 5, 2), (9, 8, 0), (5, 5, 0)])
def test_the_centre(size, crop, top):
    """torchvision's CenterCrop: round((H - h) / 2), halves to even."""
    rows = torch.arange(float(size)).view(1, 1, size, 1).expand(1, 1, size, size)
    assert center_crop(rows, (crop, crop))[0, 0, 0, 0] == top


def test_the_centre_as_robomimic_has_it():
    """int((H - h) / 2), whichever half is nearer."""
    rows = torch.arange(84.0).view(1, 1, 84, 1).expand(1, 1, 84, 84)
    tops = [center_crop(rows, (crop, crop), "down")[0, 0, 0, 0] for crop in (76, 77, 79)]
    assert tops == [4, 3, 2]
    assert center_crop(rows, (77, 77))[0, 0, 0, 0] == 4


def test_random_crops():
    x = torch.arange(8.0 * 9).view(1, 1, 8, 9).expand(4000, 2, 8, 9)
    crops = random_crop(x, (5, 7), torch.Generator().manual_seed(0))
    assert crops.shape == (4000, 2, 5, 7)
    top, left = (crops[:, 0, 0, 0] // 9).long(), (crops[:, 0, 0, 0] % 9).long()
    for i in (0, 1, 2):
        window = x[i, :, top[i] : top[i] + 5, left[i] : left[i] + 7]
        torch.testing.assert_close(crops[i], window)
    # floor(u * 3) and floor(u * 2): 4000 draws, five standard deviations of the rarer count
    assert torch.bincount(top, minlength=4).tolist()[3] == 0
    for places, number in ((top, 3), (left, 2)):
        expected = 4000 / number
        assert (torch.bincount(places) - expected).abs().max() < 5 * math.sqrt(expected * (1 - 1 / number))
    assert len(torch.unique(top * 10 + left)) == 6


def test_generators_of_chains_make_crops_their_own():
    x = torch.rand(6, 1, 20, 20)

    def crops(seeds):
        return random_crop(x, (8, 8), [torch.Generator().manual_seed(s) for s in seeds])

    together, other = crops([0, 1, 2]), crops([0, 7, 2])
    torch.testing.assert_close(together[[0, 1, 4, 5]], other[[0, 1, 4, 5]], rtol=0, atol=0)
    assert not torch.equal(together[2:4], other[2:4])
    torch.testing.assert_close(together[:2], random_crop(x[:2], (8, 8), torch.Generator().manual_seed(0)))


def test_when_crops_are_random():
    def differ(encoder):
        x = images(encoder, B=8, To=1)
        with torch.no_grad():
            first, second = (encoder(x, torch.Generator().manual_seed(s))["a"] for s in (0, 1))
        return not torch.equal(first, second)

    assert not differ(two_cameras(crop=(36, 36)))
    assert differ(two_cameras(crop=(36, 36)).train())
    assert differ(two_cameras(crop=(36, 36), random_crop_in_use=True))
    assert not differ(two_cameras().train())


def test_resizing_to_the_same_size_changes_nothing():
    x = torch.rand(2, 3, 7, 9)
    assert resize(x, (7, 9)) is x
    assert imagenet_normalize(torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)).abs().max() < 1e-6


def test_batch_normalisation_uses_its_running_statistics():
    encoder = two_cameras(norm="batch")
    x = images(encoder)
    with torch.no_grad():
        before = encoder(x)["a"]
        torch.testing.assert_close(encoder({k: v[:1] for k, v in x.items()})["a"], before[:1], rtol=1e-4, atol=1e-5)
        encoder.nets[0].backbone.bn1.running_mean.fill_(0.5)
        assert not torch.allclose(encoder(x)["a"], before, rtol=1e-3)


@pytest.mark.parametrize(
    ("shapes", "message"),
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
def test_wrong_images(shapes, message):
    with pytest.raises(ValueError, match=message):
        two_cameras()({camera: torch.zeros(shape) for camera, shape in shapes.items()})


@pytest.mark.parametrize(
    ("config", "shapes", "message"),
    [
        ({}, {}, "at least one camera"),
        ({"crop": (41, 40)}, {"a": (3, 40, 40)}, r"crop \(41, 40\) does not fit into images of \(40, 40\)"),
        ({"resize": (20, 20), "crop": (32, 8)}, {"a": (3, 40, 40)}, r"does not fit into images of \(20, 20\)"),
        ({"imagenet_norm": True}, {"a": (1, 40, 40)}, "needs 3 channels"),
        ({"shared": True}, {"a": (3, 40, 40), "b": (3, 40, 44)}, "images of one size"),
    ],
)
def test_wrong_sizes(config, shapes, message):
    with pytest.raises(ValueError, match=message):
        ImageEncoder(EncoderConfig(**config), shapes)
    if config.get("shared"):  # what it is given counts, not what it is cut from
        assert len(ImageEncoder(EncoderConfig(**config, crop=(36, 36)), shapes).nets) == 1


def test_unknown_trunk():
    with pytest.raises(ValueError, match="unknown ResNet 'resnet101'"):
        ResNet("resnet101")
