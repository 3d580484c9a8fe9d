"""docs/policies.md: its examples run, and its numbers are those of the configs."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from tiny_policy import CAMERAS, obs_for, tiny_policy

from diffpolicy_spec.configs import __file__ as configs_file
from diffpolicy_spec.policies import ConditionalUnet1D, EncoderConfig, ImageEncoder, PolicyConfig, build_network

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "policies.md").read_text()
OBS = {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}


def test_examples_run():
    policy = tiny_policy(**CAMERAS)
    names = {"policy": policy, "obs": obs_for(policy.config, 1)}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    with torch.device("meta"):
        exec(blocks[1], names)
    assert isinstance(names["network"], ConditionalUnet1D)
    assert isinstance(names["encoder"], ImageEncoder)
    exec(blocks[0], names)
    assert names["out"].action.shape == (1, 8, 10)


@pytest.mark.parametrize(("model", "told"), re.findall(r"^\| `(\w+)` \| ([\d.]+) M", PAGE, re.MULTILINE))
def test_sizes_are_those_of_the_configs(model, told):
    values = yaml.safe_load((Path(configs_file).parent / "model" / f"{model}.yaml").read_text())
    task = {"obs_dims": OBS, "action_dim": 10, "action_repr": "absolute_rot6d"}
    if "encoder" in values:
        task["image_shapes"] = dict.fromkeys(("front", "wrist"), (3, 84, 84))
    with torch.device("meta"):
        network = build_network(PolicyConfig.from_dict(task | values))
    digits = len(told.partition(".")[2])
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, digits or None) == float(told)


def test_every_setting_of_the_encoder_is_there():
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert {field for field in EncoderConfig.__dataclass_fields__ if field != "crop_rounding"} <= named
