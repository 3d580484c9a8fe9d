"""Fixtures of diffusion_policy's image policies: robomimic's encoder (hybrid) and its own MultiImageObsEncoder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from fixture import Fixture, allow_torchvision
from observations import images, vectors
from torch import Tensor
from weights import settle

allow_torchvision()

from diffusion_policy.common.normalize_util import (  # noqa: E402
    array_to_stats,
    get_identity_normalizer_from_stat,
    get_image_range_normalizer,
    get_range_normalizer_from_stat,
    robomimic_abs_action_only_normalizer_from_stat,
)
from diffusion_policy.model.common.normalizer import LinearNormalizer  # noqa: E402
from dp_common import Workspace, chunk, compose, facts  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

UNET = ("policy.down_dims=[16,32]", "policy.diffusion_step_embed_dim=32")
HYBRID = ("train_diffusion_unet_hybrid_workspace", "task=lift_image_abs", *UNET)
IMAGE = ("train_diffusion_unet_image_workspace", *UNET)
ONE_CAMERA = "~task.shape_meta.obs.robot0_eye_in_hand_image"


def sizes(size: int, *cameras: str) -> tuple[str, ...]:
    """Overrides: square images of this size."""
    return tuple(f"task.shape_meta.obs.{camera}.shape=[3,{size},{size}]" for camera in cameras)


BOTH = ("agentview_image", "robot0_eye_in_hand_image")
# name -> config and overrides
CASES: dict[str, tuple[str, ...]] = {
    "dp_unet_hybrid_image": (
        *HYBRID, ONE_CAMERA, "policy.crop_shape=[76,76]", "policy.obs_encoder_group_norm=True",
        "policy.eval_fixed_crop=True",
    ),
    "dp_unet_hybrid_inpainting": (
        *HYBRID, ONE_CAMERA, *sizes(48, BOTH[0]), "policy.crop_shape=null", "policy.obs_encoder_group_norm=False",
        "obs_as_global_cond=False", "horizon=8", "n_action_steps=4",
    ),
    "dp_transformer_hybrid_image": (
        "train_diffusion_transformer_hybrid_workspace", "task=lift_image_abs", *sizes(48, *BOTH),
        "policy.crop_shape=[40,40]", "policy.n_emb=32", "policy.n_head=2", "policy.n_layer=2",
    ),
    "dp_unet_image": (
        *IMAGE, "task=pusht_image", *sizes(48, "image"), "policy.obs_encoder.crop_shape=[40,40]",
    ),
    "dp_unet_image_shared": (
        *IMAGE, "task=lift_image_abs", *sizes(48, *BOTH), "policy.obs_encoder.resize_shape=[40,36]",
        "policy.obs_encoder.crop_shape=[30,30]", "policy.obs_encoder.random_crop=False",
        "policy.obs_encoder.share_rgb_model=True", "horizon=8", "n_action_steps=4",
    ),
}  # fmt: skip
# Sizes of the published runs, for compare.py.
PUBLISHED: dict[str, tuple[str, ...]] = {
    "published_unet_hybrid": ("train_diffusion_unet_hybrid_workspace", "task=lift_image_abs"),
}
RESOLVED = ("dp_unet_image_shared",)


def observations(cfg: DictConfig, batch: int, steps: int, seed: int) -> dict[str, Tensor]:
    """(batch, steps, ...) of every key of shape_meta; images uint8."""
    out = {}
    for i, (key, what) in enumerate(cfg.shape_meta.obs.items()):
        shape = tuple(what.shape)
        image = what.get("type", "low_dim") == "rgb"
        out[key] = images(shape, batch, steps, seed + i) if image else vectors(shape[0], batch, steps, seed + i)
    return out


def fit(cfg: DictConfig) -> LinearNormalizer:
    """Statistics of random data, as upstream's data sets for robomimic and Push-T make them."""
    data = {k: v.flatten(0, 1).numpy() for k, v in observations(cfg, 40, 2, seed=3).items() if v.dtype != torch.uint8}
    action = vectors(cfg.shape_meta.action.shape[0], 40, 2, seed=4, low=-0.9, high=1.1).flatten(0, 1).numpy()
    normalizer = LinearNormalizer()
    if "pusht" in cfg.task_name:
        normalizer.fit(data={"action": action, **data}, last_n_dims=1, mode="limits")
    else:
        normalizer["action"] = robomimic_abs_action_only_normalizer_from_stat(array_to_stats(action))
        for key, values in data.items():
            make_field = get_identity_normalizer_from_stat if key.endswith("quat") else get_range_normalizer_from_stat
            normalizer[key] = make_field(array_to_stats(values))
    for key, what in cfg.shape_meta.obs.items():
        if what.get("type", "low_dim") == "rgb":
            normalizer[key] = get_image_range_normalizer()
    return normalizer


def make(name: str, folder: Path) -> None:
    """Build, save and run one policy."""
    cfg = compose(*(CASES | PUBLISHED)[name], resolved=name in RESOLVED)
    workspace = Workspace(cfg)
    policy = workspace.finish(fit(cfg))

    def flat(nobs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.flatten(0, 1) for k, v in nobs.items()}

    def floats(obs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.float() / 255 if v.dtype == torch.uint8 else v for k, v in obs.items()}

    seen = policy.normalizer.normalize(floats(observations(cfg, 4, 2, seed=300)))
    settle(policy.obs_encoder, flat(seen))
    fixture = Fixture(folder, facts(cfg, policy, name in RESOLVED))
    fixture.meta["images"] = "float32 in [0, 1], (B, To, C, H, W)"
    workspace.save_checkpoint(folder / "checkpoint.ckpt", use_thread=False)
    obs = observations(cfg, 2, policy.n_obs_steps, seed=5)

    def encode(nobs: dict[str, Tensor]) -> Tensor:
        return policy.obs_encoder(flat(nobs)).reshape(2, policy.n_obs_steps, -1)

    chunk(fixture, policy, floats(obs), encode)
    fixture.add("obs", obs)
    fixture.write()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in CASES | PUBLISHED:
        if name in sys.argv[2:]:
            make(name, Path(sys.argv[1]) / name)
