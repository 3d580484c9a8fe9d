"""Every network in configs/model can be chosen, and describes a policy; every recipe and image task belongs to one."""

from pathlib import Path

import pytest
import torch

from diffpolicy_spec.configs import __file__ as configs_file
from diffpolicy_spec.policies.build import build_encoder, build_network
from diffpolicy_spec.schedule import Schedule
from diffpolicy_spec.training import TrainConfig
from diffpolicy_spec.training.cli import policy_config

CONFIGS = Path(configs_file).parent
SIZES = {
    "image_unet_published": (250e6, 280e6),
    "image_unet_small": (13e6, 15e6),
    "transformer_published": (8.9e6, 9.1e6),
    "transformer_small": (1e6, 1.5e6),
    "unet_published": (65e6, 66e6),
    "unet_small": (1.5e6, 2.5e6),
}


def compose(*overrides):
    hydra, omegaconf = pytest.importorskip("hydra"), pytest.importorskip("omegaconf")
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return omegaconf.OmegaConf.to_container(hydra.compose("train", list(overrides)), resolve=True)


def names(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize("model", names("model"))
def test_model(model):
    cfg = compose(f"model={model}", *(["task=lift_image"] if "encoder" in compose(f"model={model}")["model"] else []))
    config = policy_config(cfg)
    assert (config.n_obs_steps, config.n_action_steps) == (2, 8)
    assert config.horizon == (10 if model == "transformer_published" else 16)
    with torch.device("meta"):
        parts = [build_network(config), build_encoder(config)]
    low, high = SIZES[model]
    assert low < sum(p.numel() for part in parts if part for p in part.parameters()) < high
    assert Schedule.from_diffusers(cfg["scheduler"]).num_steps == 100


@pytest.mark.parametrize("recipe", names("recipe"))
def test_recipes_are_those_of_models(recipe):
    """Chosen with the model; what is said on the command line goes before them."""
    assert recipe in names("model")
    chosen, default = compose(f"model={recipe}"), compose()
    changed = {key for key in default if chosen[key] != default[key]} - {"model"}
    assert changed
    assert changed <= set(TrainConfig.__dataclass_fields__)
    assert compose(f"model={recipe}", "lr=0.5")["lr"] == 0.5


def test_the_shipped_recipe_has_no_other():
    cfg = compose()
    assert (cfg["lr"], cfg["batch_size"], cfg["weight_decay"], cfg["warmup_steps"]) == (8e-4, 256, 1e-6, 500)
    assert cfg["output"] == "outputs/train/lift"


@pytest.mark.parametrize("task", [name for name in names("task") if name.endswith("_image")])
def test_image_tasks(task):
    cfg = compose(f"task={task}", "model=image_unet_small")
    config = policy_config(cfg)
    assert set(config.image_shapes) == set(cfg["task"]["images"])
    assert cfg["output"] == f"outputs/train/{task}"
    assert build_encoder(config) is not None


def test_cameras_and_encoders_go_together():
    with pytest.raises(ValueError, match=r"has cameras .agentview_image, .* no encoder: choose a model=image_"):
        policy_config(compose("task=lift_image"))
    with pytest.raises(ValueError, match="an image encoder and the task no cameras: choose a task="):
        policy_config(compose("model=image_unet_small"))
