"""Every network in configs/model can be chosen, and describes a policy."""

from pathlib import Path

import pytest
import torch

from diffpolicy_spec.configs import __file__ as configs_file
from diffpolicy_spec.policies import PolicyConfig
from diffpolicy_spec.policies.diffusion import build_network
from diffpolicy_spec.schedule import Schedule

CONFIGS = Path(configs_file).parent
SIZES = {"unet_small": (1.5e6, 2.5e6), "unet_published": (65e6, 66e6)}


@pytest.mark.parametrize("model", sorted(p.stem for p in (CONFIGS / "model").glob("*.yaml")))
def test_model(model):
    hydra, omegaconf = pytest.importorskip("hydra"), pytest.importorskip("omegaconf")
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = omegaconf.OmegaConf.to_container(hydra.compose("train", [f"model={model}"]), resolve=True)
    task = cfg["task"]
    config = PolicyConfig.from_dict(
        {"obs_dims": task["obs"], "action_dim": task["action_dim"], "action_repr": task["action_repr"], **cfg["model"]}
    )
    assert (config.horizon, config.n_obs_steps, config.n_action_steps) == (16, 2, 8)
    with torch.device("meta"):
        size = sum(p.numel() for p in build_network(config).parameters())
    low, high = SIZES[model]
    assert low < size < high
    assert Schedule.from_diffusers(cfg["scheduler"]).num_steps == 100
