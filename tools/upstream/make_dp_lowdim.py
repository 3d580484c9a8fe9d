"""Fixtures of diffusion_policy's low-dimensional policies."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusion_policy.common.normalize_util import (
    array_to_stats,
    get_range_normalizer_from_stat,
)
from diffusion_policy.common.normalize_util import robomimic_abs_action_only_dual_arm_normalizer_from_stat as two_arms
from diffusion_policy.common.normalize_util import robomimic_abs_action_only_normalizer_from_stat as one_arm
from diffusion_policy.model.common.normalizer import LinearNormalizer
from dp_common import Workspace, chunk, compose, facts
from fixture import Fixture
from observations import vectors

UNET = ("train_diffusion_unet_lowdim_workspace", "policy.model.diffusion_step_embed_dim=32")
TRANSFORMER = (
    "train_diffusion_transformer_lowdim_workspace",
    "policy.model.n_emb=32", "policy.model.n_head=2", "policy.model.n_layer=2",
    "task=lift_lowdim_abs", "horizon=10", "n_obs_steps=2", "n_action_steps=8",
)  # fmt: skip
SMALL, THREE = "policy.model.down_dims=[16,32]", "policy.model.down_dims=[16,32,48]"

# name -> statistics, config and overrides
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "dp_unet_lowdim_global": ("robomimic", (*UNET, "task=lift_lowdim_abs", SMALL)),
    "dp_unet_lowdim_local": (
        "gaussian",
        (*UNET, "task=pusht_lowdim", SMALL, "obs_as_local_cond=True", "obs_as_global_cond=False",
         "policy.noise_scheduler.prediction_type=sample"),
    ),
    "dp_unet_lowdim_inpainting": (
        "limits",
        (*UNET, "task=lift_lowdim", SMALL, "obs_as_global_cond=False", "policy.model.kernel_size=3"),
    ),
    "dp_unet_lowdim_steps_only": (
        "limits",
        (*UNET, "task=can_lowdim", THREE, "pred_action_steps_only=True", "policy.model.cond_predict_scale=False"),
    ),
    "dp_unet_no_ema": (
        "limits",
        (*UNET, "task=pusht_lowdim", THREE, "training.use_ema=False", "policy.oa_step_convention=False"),
    ),
    "dp_unet_lowdim_ddim": (
        "limits",
        ("train_diffusion_unet_ddim_lowdim_workspace", "policy.model.diffusion_step_embed_dim=32", SMALL,
         "task=square_lowdim_abs", "obs_as_global_cond=True"),
    ),
    "dp_unet_lowdim_two_arms": ("robomimic", (*UNET, "task=transport_lowdim_abs", SMALL)),
    "dp_transformer_lowdim": ("robomimic", TRANSFORMER),
    "dp_transformer_inpaint": (
        "limits",
        (*TRANSFORMER, "obs_as_cond=False", "policy.model.causal_attn=False", "task=lift_lowdim"),
    ),
    "dp_transformer_cond_layers": ("robomimic", (*TRANSFORMER, "policy.model.n_cond_layers=2", "n_obs_steps=3")),
}  # fmt: skip
# Sizes of the published runs, for compare.py.
PUBLISHED: dict[str, tuple[str, tuple[str, ...]]] = {
    "published_unet_lowdim": ("robomimic", ("train_diffusion_unet_lowdim_workspace", "task=lift_lowdim_abs")),
    "published_transformer_lowdim": (
        "robomimic",
        ("train_diffusion_transformer_lowdim_workspace", "task=lift_lowdim_abs", "horizon=10", "n_obs_steps=2",
         "n_action_steps=8"),
    ),
}  # fmt: skip
RESOLVED = ("dp_unet_lowdim_steps_only",)


def fit(kind: str, obs_dim: int, action_dim: int) -> LinearNormalizer:
    """Statistics of random data, by the functions that upstream's datasets use."""
    obs = vectors(obs_dim, 40, 5, seed=3, low=-1.4, high=2.0).flatten(0, 1).numpy()
    action = vectors(action_dim, 40, 5, seed=4, low=-0.9, high=1.1).flatten(0, 1).numpy()
    obs[:, -1] = 0.25  # a constant coordinate: its scale is 1
    normalizer = LinearNormalizer()
    if kind == "robomimic":
        of_arms = one_arm if action_dim == 10 else two_arms
        normalizer["action"] = of_arms(array_to_stats(action))
        normalizer["obs"] = get_range_normalizer_from_stat(array_to_stats(obs))
    else:
        normalizer.fit(data={"obs": obs, "action": action}, last_n_dims=1, mode=kind)
    return normalizer


def make(name: str, folder: Path) -> None:
    """Build, save and run one policy."""
    kind, overrides = (CASES | PUBLISHED)[name]
    cfg = compose(*overrides, resolved=name in RESOLVED)
    workspace = Workspace(cfg)
    policy = workspace.finish(fit(kind, cfg.policy.obs_dim, cfg.policy.action_dim))
    fixture = Fixture(folder, facts(cfg, policy, name in RESOLVED))
    workspace.save_checkpoint(folder / "checkpoint.ckpt", use_thread=False)
    obs = {"obs": vectors(policy.obs_dim, 2, policy.n_obs_steps, seed=5)}
    fixture.add("obs", obs)
    chunk(fixture, policy, obs, lambda nobs: nobs["obs"])
    fixture.write()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in CASES | PUBLISHED:
        if name in sys.argv[2:]:
            make(name, Path(sys.argv[1]) / name)
