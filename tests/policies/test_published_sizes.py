"""configs/model has diffusion_policy's published policies: their parameters, counted on the meta device."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from diffpolicy_spec.configs import __file__ as configs_file
from diffpolicy_spec.policies import PolicyConfig, build_encoder, build_network
from diffpolicy_spec.policies.inference import inference_network

LIFT = {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
PROPRIOCEPTION = {key: dim for key, dim in LIFT.items() if key != "object"}
CAMERAS = dict.fromkeys(("agentview_image", "robot0_eye_in_hand_image"), (3, 84, 84))


def published(name, **task):
    values = yaml.safe_load((Path(configs_file).parent / "model" / f"{name}.yaml").read_text())
    return PolicyConfig.from_dict({"action_dim": 10, "action_repr": "absolute_rot6d", **task, **values})


def count(config):
    with torch.device("meta"):
        parts = build_network(config), build_encoder(config)
    return [0 if part is None else sum(p.numel() for p in part.parameters()) for part in parts]


def test_unet():
    network, encoder = count(published("unet_published", obs_dims=LIFT))
    assert (round(network / 1e6, 1), encoder) == (65.8, 0)


def test_transformer():
    """The sum by hand: embeddings, the perceptron of the condition, eight decoder layers, the head."""
    config = published("transformer_published", obs_dims=LIFT)
    E, T, To, Do, Da = 256, 10, 2, 19, 10
    attention, norm, up = 4 * E * E + 4 * E, 2 * E, 2 * 4 * E * E + 5 * E
    expected = (Da * E + E) + T * E + (Do * E + E) + (1 + To) * E + up + 8 * (2 * attention + 3 * norm + up)
    assert count(config) == [expected + norm + (E * Da + Da), 0]
    assert 8.9e6 < expected < 9.1e6


def test_image_unet():
    config = published("image_unet_published", obs_dims=PROPRIOCEPTION, image_shapes=CAMERAS)
    network, encoder = count(config)
    assert config.condition_dim == 2 * (2 * 64 + 9)
    assert 255e6 < network < 256e6
    assert encoder == 2 * (11_176_512 + (512 * 32 + 32) + (64 * 64 + 64))


_BUILD = """
import sys, yaml, torch
from diffpolicy_spec.policies import PolicyConfig, build_encoder, build_network
config = PolicyConfig.from_dict(yaml.safe_load(sys.stdin))
with torch.device("meta"):
    network, encoder = build_network(config), build_encoder(config)
print(sorted(name for name in sys.modules if name in ("torch._dynamo", "torch._inductor")))
"""


@pytest.mark.parametrize("name", ["image_unet_published", "transformer_published"])
def test_building_without_weights_does_not_import_the_compiler(name):
    """Which takes seconds, and random numbers for meta tensors would do."""
    config = published(name, obs_dims=LIFT, **({"image_shapes": CAMERAS} if name.startswith("image") else {}))
    told = yaml.safe_dump(config.to_dict())
    command = [sys.executable, "-c", _BUILD]
    assert subprocess.run(command, input=told, check=True, capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "changes",
    [
        {"n_groups": 4, "down_dims": (16, 32)},
        {"cond_predict_scale": False, "down_dims": (8, 16, 24, 32)},
        {"kernel_size": 3, "n_groups": 2, "diffusion_step_embed_dim": 32},
    ],
    ids=str,
)
def test_layouts_serve_other_settings_of_policies(changes):
    torch.manual_seed(0)
    unet = {"down_dims": (16, 32, 48), "diffusion_step_embed_dim": 16} | changes
    config = PolicyConfig.from_dict({"obs_dims": LIFT, "action_dim": 7, "action_repr": "delta", "unet": unet})
    network = build_network(config).eval().requires_grad_(False)
    x, t, given = torch.randn(4, 16, 7), torch.tensor([0, 3, 99, 50]), torch.randn(4, config.condition_dim)
    laid_out = inference_network(network, 100)
    assert type(laid_out).__name__ == "InferenceUnet"
    torch.testing.assert_close(laid_out(x, t, laid_out.features(given)), network(x, t, given), atol=1e-4, rtol=1e-4)
