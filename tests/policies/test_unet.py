"""The network: names and size of the published checkpoints, rows that do not see each other."""

import re

import pytest
import torch

from diffpolicy_spec.policies.unet import ConditionalUnet1D, SinusoidalEmbedding


def small(**changes):
    torch.manual_seed(0)
    sizes = {"input_dim": 10, "global_cond_dim": 38, "diffusion_step_embed_dim": 16, "down_dims": (16, 32, 48)}
    return ConditionalUnet1D(**sizes | changes).eval()


@pytest.fixture(scope="module")
def published():
    """Published low-dimensional policies: Lift with absolute actions, 19-D observations, two of them."""
    with torch.device("meta"):
        return ConditionalUnet1D(10, 38, 256, (256, 512, 1024), 5, 8, True)


def test_published_size(published):
    count = sum(p.numel() for p in published.parameters())
    # Counted by hand from the architecture, block by block, not from this implementation.
    cond, kernel = 256 + 38, 5

    def block(i, o):
        convs = (i * o * kernel + o) + (o * o * kernel + o) + 2 * 2 * o
        return convs + (cond * 2 * o + 2 * o) + (i * o + o if i != o else 0)

    step = (256 * 1024 + 1024) + (1024 * 256 + 256)
    down = block(10, 256) + block(256, 256) + block(256, 512) + block(512, 512) + block(512, 1024) + block(1024, 1024)
    down += (256 * 256 * 3 + 256) + (512 * 512 * 3 + 512)
    middle = 2 * block(1024, 1024)
    up = block(2048, 512) + block(512, 512) + block(1024, 256) + block(256, 256)
    up += (512 * 512 * 4 + 512) + (256 * 256 * 4 + 256)
    final = (256 * 256 * kernel + 256) + 2 * 256 + (256 * 10 + 10)
    assert count == step + down + middle + up + final
    assert 65e6 < count < 66e6


def test_published_names(published):
    names = set(published.state_dict())
    for name in (
        "diffusion_step_encoder.1.weight",
        "diffusion_step_encoder.3.bias",
        "down_modules.0.0.blocks.0.block.0.weight",
        "down_modules.0.0.blocks.0.block.1.weight",
        "down_modules.0.0.cond_encoder.1.weight",
        "down_modules.0.0.residual_conv.weight",
        "down_modules.1.1.blocks.1.block.1.bias",
        "down_modules.1.2.conv.weight",
        "mid_modules.0.blocks.0.block.0.weight",
        "mid_modules.1.cond_encoder.1.bias",
        "up_modules.0.0.residual_conv.weight",
        "up_modules.1.1.blocks.1.block.0.bias",
        "up_modules.1.2.conv.weight",
        "final_conv.0.block.0.weight",
        "final_conv.0.block.1.bias",
        "final_conv.1.weight",
    ):
        assert name in names, name
    pattern = re.compile(
        r"diffusion_step_encoder\.[13]\.(weight|bias)|"
        r"((down|up)_modules\.\d+\.[01]|mid_modules\.[01])\."
        r"(blocks\.[01]\.block\.[01]|cond_encoder\.1|residual_conv)\.(weight|bias)|"
        r"(down|up)_modules\.\d+\.2\.conv\.(weight|bias)|"
        r"final_conv\.(0\.block\.[01]|1)\.(weight|bias)"
    )
    assert [name for name in names if not pattern.fullmatch(name)] == []
    # The lowest level has no downsampling, and blocks that keep their channels no residual convolution.
    assert not {"down_modules.2.2.conv.weight", "down_modules.0.1.residual_conv.weight"} & names
    shapes = {name: tuple(value.shape) for name, value in published.state_dict().items()}
    assert shapes["up_modules.0.0.blocks.0.block.0.weight"] == (512, 2048, 5)
    assert shapes["down_modules.0.0.cond_encoder.1.weight"] == (512, 294)
    assert shapes["up_modules.0.2.conv.weight"] == (512, 512, 4)


def test_step_embedding():
    t = torch.tensor([0, 7, 99])
    out = SinusoidalEmbedding(8)(t)
    frequencies = torch.tensor([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3), 1e-4])
    torch.testing.assert_close(out[:, :4], torch.sin(t[:, None] * frequencies))
    torch.testing.assert_close(out[:, 4:], torch.cos(t[:, None] * frequencies))


@pytest.mark.parametrize("scale", [True, False])
def test_rows_are_independent(scale):
    network = small(cond_predict_scale=scale)
    x, t, c = torch.randn(6, 16, 10), torch.tensor([0, 99, 3, 50, 50, 7]), torch.randn(6, 38)
    together = network(x, t, c)
    assert together.shape == (6, 16, 10)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], c[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    x[0] = float("nan")
    assert torch.isfinite(network(x, t, c)[1:]).all()


def test_timestep_may_be_a_number():
    network = small()
    x, c = torch.randn(3, 16, 10), torch.randn(3, 38)
    expected = network(x, torch.full((3,), 42), c)
    torch.testing.assert_close(network(x, 42, c), expected)
    torch.testing.assert_close(network(x, torch.tensor(42), c), expected)
    assert not torch.allclose(network(x, 41, c), expected)
    assert not torch.allclose(network(x, 42, c + 1), expected)


def test_without_a_condition():
    assert small(global_cond_dim=0)(torch.randn(2, 8, 10), 5).shape == (2, 8, 10)


@pytest.mark.parametrize(
    ("sample", "cond", "message"),
    [
        ((2, 15, 10), (2, 38), r"T divisible by 4, got \(2, 15, 10\)"),
        ((2, 16, 9), (2, 38), r"\(N, T, 10\)"),
        ((2, 16, 10), (2, 37), r"\(2, 38\), got \(2, 37\)"),
        ((2, 16, 10), (1, 38), r"\(2, 38\), got \(1, 38\)"),
        ((2, 16, 10), None, r"\(2, 38\), got \(2, 0\)"),
    ],
)
def test_wrong_shapes(sample, cond, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(sample), 0, None if cond is None else torch.zeros(cond))


def test_wrong_sizes():
    with pytest.raises(ValueError, match="odd"):
        small(kernel_size=4)
    with pytest.raises(ValueError, match="multiples of n_groups=8"):
        small(down_dims=(12, 24))
