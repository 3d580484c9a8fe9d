"""diffusion_policy's side of a fixture: its configs, its workspace's checkpoint, its policies' chunks."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import draws
import hydra
import torch
from diffusion_policy.workspace.base_workspace import BaseWorkspace
from fixture import Fixture, versions
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from weights import doubled, fill, fit_readout

__all__ = ["Workspace", "chunk", "compose", "facts", "readout"]

OmegaConf.register_new_resolver("eval", eval, replace=True)  # as upstream's train.py does
CONFIGS = Path(os.environ["UPSTREAM"]) / "diffusion_policy" / "diffusion_policy" / "config"


def compose(name: str, *overrides: str, resolved: bool = False) -> DictConfig:
    """One of upstream's training configs.

    Args:
        resolved: as train.py at the pinned commit leaves it; the published checkpoints keep their interpolations.
    """
    with hydra.initialize_config_dir(str(CONFIGS), version_base=None):
        cfg = hydra.compose(name, list(overrides))
    if resolved:
        OmegaConf.resolve(cfg)
    return cfg


class Workspace(BaseWorkspace):
    """The attributes of upstream's training workspaces (which import simulators): `save_checkpoint` is upstream's."""

    include_keys = ("global_step", "epoch")

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg, output_dir="outputs/fixture")
        self.model = hydra.utils.instantiate(cfg.policy)
        self.ema_model = None
        self.global_step, self.epoch = 1200, 40

    def finish(self, normalizer: nn.Module) -> Any:
        """Weights, statistics, EMA and an optimizer that has made a step; returns the policy that is used."""
        policy = self.model
        modules = [policy.model] + [m for m in [getattr(policy, "obs_encoder", None)] if m is not None]
        for module in modules:
            fill(module, type(policy).__name__)
        policy.set_normalizer(normalizer)
        policy.eval()
        readout(policy)
        if self.cfg.training.use_ema:
            self.ema_model = copy.deepcopy(policy)
            for module in modules:  # what is not to be used is another network
                fill(module, "not the average")
        if hasattr(policy, "get_optimizer"):
            self.optimizer = policy.get_optimizer(**self.cfg.optimizer)
        else:
            self.optimizer = hydra.utils.instantiate(self.cfg.optimizer, params=policy.parameters())
        if sum(p.numel() for p in policy.parameters()) < 1e6:
            self._step()
        return self.ema_model if self.ema_model is not None else policy

    def _step(self) -> None:
        """One step of length 0: the optimizer's state is there, with few distinct values."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
            for p in group["params"]:
                p.grad = torch.full_like(p, 0.25)
        self.optimizer.step()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def readout(policy: Any) -> None:
    """Fit the network's last layer, for random observations of unit size."""
    network, scheduler = policy.model, policy.noise_scheduler
    last = network.final_conv[1] if hasattr(network, "final_conv") else network.head
    To, T = policy.n_obs_steps, policy.horizon
    if getattr(policy, "pred_action_steps_only", False):
        T = policy.n_action_steps
    D = last.weight.shape[0]
    features = getattr(policy, "obs_dim", None) or policy.obs_feature_dim

    def call(x: Tensor, t: Tensor) -> Tensor:
        cond = 0.5 * torch.randn((len(x), To, features), generator=torch.Generator().manual_seed(int(t.sum())))
        return network(x, t, **condition(policy, cond))

    prediction = scheduler.config.prediction_type
    spread = 0.3 if prediction == "epsilon" else 1.0
    fit_readout(call, last, scheduler.alphas_cumprod, (T, D), prediction, spread)


def condition(policy: Any, nobs: Tensor) -> dict[str, Tensor]:
    """What the network is given for normalised observations or features (B, To, F), by name."""
    if getattr(policy, "obs_as_cond", False):
        return {"cond": nobs}
    if getattr(policy, "obs_as_global_cond", False):
        return {"global_cond": nobs.flatten(1)}
    if getattr(policy, "obs_as_local_cond", False):
        local = torch.zeros((len(nobs), policy.horizon, nobs.shape[-1]))
        local[:, : nobs.shape[1]] = nobs
        return {"local_cond": local}
    return {}


@torch.no_grad()
def chunk(fixture: Fixture, policy: Any, obs: dict[str, Tensor], encode: Callable[[dict[str, Tensor]], Tensor]) -> None:
    """Run the policy: its network once, then a whole chunk, in float32 and, for the error of float32, in float64.

    Args:
        obs: as the policy takes them.
        encode: normalised observations -> features (B, To, F), as upstream's predict_action computes them.
    """
    nobs = policy.normalizer.normalize(obs)
    features = encode(nobs)
    fixture.add("normalized", nobs)
    fixture.add("features", features)
    plans: list[Tensor] = []
    sample = policy.conditional_sample

    def keep(*args: Any, **kwargs: Any) -> Tensor:
        plans.append(sample(*args, **kwargs))
        return plans[-1]

    policy.conditional_sample = keep
    deterministic = type(policy.noise_scheduler).__name__ == "DDIMScheduler"
    with draws.RecordedDraws(seed=11) as recorded:
        result = policy.predict_action(obs)
    del policy.conditional_sample
    start, steps = recorded.noise(policy.num_inference_steps, deterministic)
    fixture.add("noise", {"start": start, "steps": steps})
    fixture.add("expected", {"action": result["action"], "action_pred": result["action_pred"], "plan": plans[0]})

    x, t = start * 0.75, torch.tensor([61, 3, 40][: len(start)])
    cond = condition(policy, features)
    fixture.add("network", {"x": x, "t": t, **cond, "out": policy.model(x, t, **cond)})

    exact = doubled(policy)
    with draws.RecordedDraws(again=recorded.drawn):
        error = exact.predict_action({k: v.double() for k, v in obs.items()})["action_pred"] - result["action_pred"]
    fixture.meta["precision"] = {"float32_to_float64_max": float(f"{error.abs().max():.2g}")}


def facts(cfg: DictConfig, policy: Any, resolved: bool) -> dict[str, Any]:
    """meta.json of a policy of diffusion_policy."""
    return {
        "project": "diffusion_policy",
        "commit": "5ba07ac",
        "license": "MIT",
        "class": f"{type(policy).__module__}.{type(policy).__name__}",
        "versions": versions("diffusers", "dill", "omegaconf", "robomimic"),
        "checkpoint": "checkpoint.ckpt",
        "cfg_resolved": resolved,
        "weights": "ema_model" if cfg.training.use_ema else "model",
        "task": cfg.task_name,
        "settings": {
            "horizon": policy.horizon,
            "n_obs_steps": policy.n_obs_steps,
            "n_action_steps": policy.n_action_steps,
            "num_inference_steps": policy.num_inference_steps,
            "clip_sample_range": getattr(policy.noise_scheduler.config, "clip_sample_range", 1.0),
            "action_dim": policy.action_dim,
        },
    }
