"""LeRobot's side of a fixture, for both layouts: statistics, weights, a chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import draws
import numpy as np
import torch
from fixture import Fixture, allow_torchvision, versions
from observations import images, vectors
from torch import Tensor, nn
from weights import doubled, fill, fit_readout, settle

allow_torchvision()

from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature  # noqa: E402
from lerobot.datasets.compute_stats import get_feature_stats  # noqa: E402
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig  # noqa: E402
from lerobot.policies.utils import populate_queues  # noqa: E402

__all__ = ["chunk", "config", "facts", "finish", "observations", "statistics"]

Obs = dict[str, Tensor]
SMALL: dict[str, Any] = {
    "down_dims": (16, 32),
    "diffusion_step_embed_dim": 32,
    "spatial_softmax_num_keypoints": 8,
    "device": "cpu",
    "push_to_hub": False,
}


def config(inputs: dict[str, tuple[int, ...]], action_dim: int, **settings: Any) -> DiffusionConfig:
    """A small DiffusionConfig; settings "VISUAL", "STATE", "ACTION" name normalization modes."""
    modes = {k: NormalizationMode[settings.pop(k)] for k in ("VISUAL", "STATE", "ACTION") if k in settings}
    features = {}
    for key, shape in inputs.items():
        kind = FeatureType.VISUAL if len(shape) == 3 else FeatureType.STATE
        features[key] = PolicyFeature(FeatureType.ENV if key.endswith("environment_state") else kind, shape)
    made = DiffusionConfig(
        input_features=features,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (action_dim,))},
        **{**SMALL, **settings},
    )
    return replace(made, normalization_mapping={**made.normalization_mapping, **modes})


def observations(cfg: DiffusionConfig, batch: int, steps: int, seed: int) -> Obs:
    """(batch, steps, ...) of every input; images uint8."""
    out = {}
    for i, (key, feature) in enumerate(cfg.input_features.items()):
        if len(feature.shape) == 3:
            out[key] = images(feature.shape, batch, steps, seed + i)
        else:
            out[key] = vectors(feature.shape[0], batch, steps, seed + i)
    return out


def statistics(cfg: DiffusionConfig) -> dict[str, dict[str, Tensor]]:
    """Of random data, by LeRobot's own functions, as its datasets keep them: images in [0, 1], (3, 1, 1)."""
    data = {k: v.flatten(0, 1).double().numpy() for k, v in observations(cfg, 12, 8, seed=100).items()}
    actions = vectors(cfg.output_features["action"].shape[0], 12, 8, 90, low=-0.9, high=1.2)
    data["action"] = actions.flatten(0, 1).numpy()
    out: dict[str, dict[str, Tensor]] = {}
    for key, values in data.items():
        image = values.ndim == 4
        found = get_feature_stats(values, axis=(0, 2, 3) if image else 0, keepdims=image)
        if image:
            found = {k: v if k == "count" else np.squeeze(v / 255.0, axis=0) for k, v in found.items()}
        out[key] = {k: torch.as_tensor(v, dtype=torch.float32) for k, v in found.items()}
    return out


def finish(policy: Any) -> None:
    """Weights of a policy whose statistics are there."""
    diffusion, cfg = policy.diffusion, policy.config
    fill(diffusion, "lerobot")
    policy.eval()
    encoders = getattr(diffusion, "rgb_encoder", ())
    seen = observations(cfg, 4, 2, seed=300)
    for i, key in enumerate(cfg.image_features):
        if isinstance(encoders, nn.ModuleList):
            x = seen[key].flatten(0, 1).float()
            settle(encoders[i], (x - x.mean()) / x.std())
    size = diffusion.unet.down_modules[0][0].cond_encoder[1].in_features - cfg.diffusion_step_embed_dim

    def call(x: Tensor, t: Tensor) -> Tensor:
        cond = 0.5 * torch.randn((len(x), size), generator=torch.Generator().manual_seed(int(t.sum())))
        return diffusion.unet(x, t, global_cond=cond)

    shape = (cfg.horizon, cfg.output_features["action"].shape[0])
    fit_readout(call, diffusion.unet.final_conv[1], diffusion.noise_scheduler.alphas_cumprod, shape)


@torch.no_grad()
def chunk(
    fixture: Fixture,
    policy: Any,
    obs: Obs,
    before: Callable[[Obs], Obs],
    after: Callable[[Tensor], Tensor],
    inside: bool,
) -> None:
    """Run the policy through its queues, as in an episode: the chunk is that after the last of the To steps.

    Args:
        obs: (B, To, ...), images uint8.
        before, after: LeRobot's processors of one step's observations (B, ...) and of actions (B, ..., Da).
        inside: select_action normalises and unnormalises itself.
    """
    diffusion, cfg = policy.diffusion, policy.config
    floats = {k: v.float() / 255 if v.dtype == torch.uint8 else v for k, v in obs.items()}
    To = cfg.n_obs_steps
    raw = [{k: v[:, s] for k, v in floats.items()} for s in range(To)]
    ready = [before(dict(step)) for step in raw]
    normalized = {k: torch.stack([step[k] for step in ready], dim=1) for k in obs}
    whole = {k: v for k, v in normalized.items() if not k.startswith("observation.image")}
    if cfg.image_features:
        whole["observation.images"] = torch.stack([normalized[k] for k in cfg.image_features], dim=-4)
    cond = diffusion._prepare_global_conditioning(whole)
    features = cond.reshape(len(cond), To, -1)
    fixture.add("obs", obs)
    fixture.add("normalized", normalized)
    fixture.add("features", features)

    policy.reset()
    for s in range(To - 1):
        policy._queues = populate_queues(policy._queues, {k: v[:, s] for k, v in whole.items()})
    plans: list[Tensor] = []
    sample = diffusion.conditional_sample

    def keep(*args: Any, **kwargs: Any) -> Tensor:
        plans.append(sample(*args, **kwargs))
        return plans[-1]

    diffusion.conditional_sample = keep
    with draws.RecordedDraws(seed=11) as recorded:
        step = raw[-1] if inside else ready[-1]
        actions = [policy.select_action(dict(step)) for _ in range(cfg.n_action_steps)]
    del diffusion.conditional_sample
    action = torch.stack([a if inside else after(a) for a in actions], dim=1)
    if len(plans) != 1:
        raise AssertionError(f"{len(plans)} chunks were sampled for {cfg.n_action_steps} actions")
    start, steps = recorded.noise(diffusion.num_inference_steps, cfg.noise_scheduler_type == "DDIM")
    fixture.add("noise", {"start": start, "steps": steps})
    fixture.add("expected", {"action": action, "action_pred": after(plans[0]), "plan": plans[0]})

    x, t = start * 0.75, torch.tensor([61, 3, 40][: len(start)])
    out = diffusion.unet(x, t, global_cond=cond)
    fixture.add("network", {"x": x, "t": t, "global_cond": cond, "out": out})

    exact = doubled(diffusion)
    with draws.RecordedDraws(again=recorded.drawn):
        wide = exact._prepare_global_conditioning({k: v.double() for k, v in whole.items()})
        error = exact.conditional_sample(len(cond), global_cond=wide) - plans[0]
    fixture.meta["precision"] = {"float32_to_float64_max": float(f"{error.abs().max():.2g}")}


def facts(policy: Any, layout: str) -> dict[str, Any]:
    """meta.json of a policy of LeRobot."""
    cfg = policy.config
    return {
        "project": "lerobot",
        "license": "Apache-2.0",
        "class": f"{type(policy).__module__}.{type(policy).__name__}",
        "versions": versions("lerobot", "diffusers", "safetensors"),
        "checkpoint": "checkpoint",
        "layout": layout,
        "weights": "model",
        "images": "float32 in [0, 1], (B, C, H, W) a step" if cfg.image_features else None,
        "settings": {
            "horizon": cfg.horizon,
            "n_obs_steps": cfg.n_obs_steps,
            "n_action_steps": cfg.n_action_steps,
            "num_inference_steps": policy.diffusion.num_inference_steps,
            "clip_sample_range": cfg.clip_sample_range,
            "action_dim": cfg.output_features["action"].shape[0],
        },
    }
