"""Does LeRobot itself load a folder that this package wrote, and act as the policy it was written from?

    PYTHONPATH=. $UPSTREAM/venv/bin/python tools/upstream/check_lerobot_folder.py               policies made here
    PYTHONPATH=. $UPSTREAM/venv/bin/python tools/upstream/check_lerobot_folder.py FOLDER POLICY   one that was written

Prints the largest differences of normalised observations' features, of the chain's last state and of the actions, for
one batch of random observations and the same noise; 1 as the exit status where one is above 1e-5.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import draws
import torch
from fixture import allow_torchvision
from torch import Tensor

from diffpolicy_spec.checkpoints import load_policy
from diffpolicy_spec.checkpoints.lerobot import write_lerobot
from diffpolicy_spec.checkpoints.lerobot.write_config import lerobot_features
from diffpolicy_spec.noise import Noise
from diffpolicy_spec.policies.build import build_encoder, build_network
from diffpolicy_spec.policies.config import EncoderConfig, PolicyConfig, UnetConfig
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.policies.normalizer import LinearNormalizer
from diffpolicy_spec.samplers import SamplerConfig

allow_torchvision()

from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy as Theirs  # noqa: E402
from lerobot.policies.factory import make_pre_post_processors  # noqa: E402

TOLERANCE = 1e-5
BATCH = 3


def observations(policy: DiffusionPolicy) -> dict[str, Tensor]:
    """Random ones, (BATCH, To, ...), that the normaliser maps to about [-1, 1]."""
    config, g = policy.config, torch.Generator().manual_seed(5)
    obs = {}
    for key, dim in config.obs_dims.items():
        y = torch.rand(BATCH, config.n_obs_steps, dim, generator=g) * 2 - 1
        obs[key] = policy.normalizer.unnormalize(key, y)
    for key, shape in config.image_shapes.items():
        obs[key] = torch.rand(BATCH, config.n_obs_steps, *shape, generator=g)
    return obs


@torch.no_grad()
def check(folder: Path, policy: DiffusionPolicy) -> dict[str, float]:
    """What -> the largest difference between LeRobot with `folder` and `policy`."""
    policy.scheduler_config.pop("_diffusers_version", None)  # LeRobot's own release rounds the chain
    theirs = Theirs.from_pretrained(folder, strict=True)
    before, after = make_pre_post_processors(theirs.config, pretrained_path=str(folder))
    obs, config, features = observations(policy), policy.config, lerobot_features(policy.config)
    steps = []
    for s in range(config.n_obs_steps):
        given = {name: torch.cat([obs[key][:, s] for key in keys], dim=-1) for name, keys in features.items()}
        steps.append(before(given))
    batch = {key: torch.stack([step[key] for step in steps], dim=1) for key in theirs.config.input_features}
    if theirs.config.image_features:
        batch["observation.images"] = torch.stack([batch[key] for key in theirs.config.image_features], dim=-4)
    with draws.RecordedDraws(seed=1) as recorded:
        condition = theirs.diffusion._prepare_global_conditioning(batch)
        plan = theirs.diffusion.conditional_sample(BATCH, global_cond=condition)
    first = config.n_obs_steps - 1
    action = after(plan)[:, first : first + theirs.config.n_action_steps]
    chain = theirs.diffusion.num_inference_steps
    deterministic = theirs.config.noise_scheduler_type == "DDIM"
    start, innovations = recorded.noise(chain, deterministic)
    sampler = policy.bind(SamplerConfig("ddim" if deterministic else "ddpm"))
    noise = Noise(start, innovations, torch.zeros(innovations.shape[:2]))
    ours = policy.predict_action(obs, sampler=sampler, noise=noise)
    scale = max(1.0, float(ours.action.abs().max()))
    return {
        "features": float((in_their_order(policy, obs) - condition.view(BATCH, config.n_obs_steps, -1)).abs().max()),
        "plan": float((ours.plan - plan).abs().max()),
        "action": float((ours.action - action).abs().max()) / scale,
    }


def in_their_order(policy: DiffusionPolicy, obs: dict[str, Tensor]) -> Tensor:
    """The policy's features, one step's as LeRobot joins them."""
    config = policy.config
    feature = 0 if config.encoder is None else config.encoder.feature_dim
    widths = {**config.obs_dims, **dict.fromkeys(config.image_shapes, feature)}
    split = policy.features(obs).split([widths[key] for key in config.feature_order], dim=-1)
    parts = dict(zip(config.feature_order, split, strict=True))
    return torch.cat([parts[key] for keys in lerobot_features(config).values() for key in keys], dim=-1)


def made() -> Iterator[tuple[str, DiffusionPolicy]]:
    """Policies of every kind that can be written."""
    yield "shipped: lift", load_policy("lift")
    small = UnetConfig(down_dims=(16, 32), kernel_size=3, diffusion_step_embed_dim=16)
    vectors = PolicyConfig({"state": 5}, 2, "raw", unet=small)
    cameras = {"front": (3, 48, 44), "wrist": (3, 48, 44)}
    images = PolicyConfig(
        {"arm": 3, "hand": 2}, 4, "raw", unet=replace(small, cond_predict_scale=False), image_shapes=cameras,
        encoder=EncoderConfig(keypoints=4, features=8, crop=(40, 37)),
        feature_order=("wrist", "hand", "front", "arm"), n_obs_steps=3, n_action_steps=6,
    )  # fmt: skip
    yield "one vector", make(vectors)
    yield "images in another order", make(images)
    assert images.encoder is not None
    resized = replace(images.encoder, resize=(40, 36), crop=(36, 32), shared=True, imagenet_norm=True, norm="batch")
    yield "resized, shared, ImageNet, batch norm", make(replace(images, encoder=resized))
    deeper = replace(images, encoder=replace(images.encoder, backbone="resnet34"), num_inference_steps=10)
    yield "ResNet-34, DDIM", make(deeper, _class_name="DDIMScheduler")
    bottleneck = replace(images, encoder=replace(images.encoder, backbone="resnet50", resize=(40, 40), crop=None))
    yield "ResNet-50, sample", make(bottleneck, prediction_type="sample", clip_sample_range=2.0)


def make(config: PolicyConfig, **scheduler: object) -> DiffusionPolicy:
    """A policy with random weights, statistics and temperature."""
    torch.manual_seed(0)
    network, encoder = build_network(config), build_encoder(config)
    with torch.no_grad():  # a freshly initialised network enlarges rounding over a chain more than a trained one
        network.final_conv[1].weight *= 0.2
    if encoder is not None:
        for name, buffer in encoder.named_buffers():
            if name.endswith(("temperature", "running_mean", "running_var")):
                buffer += 0.5 * torch.rand_like(buffer)
    channels = {key: shape[0] for key, shape in config.image_shapes.items()}
    dims = {**config.obs_dims, **channels, "action": config.action_dim}
    params = {key: {"scale": 0.5 + torch.rand(dim), "offset": torch.randn(dim)} for key, dim in dims.items()}
    chain = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", **scheduler}
    return DiffusionPolicy(config, network, LinearNormalizer(params), chain, encoder=encoder)


def report(name: str, folder: Path, policy: DiffusionPolicy) -> bool:
    errors = check(folder, policy)
    print(f"{name:40s}" + "  ".join(f"{what} {error:.1e}" for what, error in errors.items()), flush=True)
    return max(errors.values()) <= TOLERANCE


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 3:
        sys.exit(not report(sys.argv[1], Path(sys.argv[1]), load_policy(sys.argv[2])))
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, policy) in enumerate(made()):
            write_lerobot(policy, Path(folder) / str(i))
            good &= report(name, Path(folder) / str(i), policy)
    sys.exit(not good)
