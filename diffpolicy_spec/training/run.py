"""A training run: data, network, optimiser and averaged weights, one step at a time."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffpolicy_spec.data.episodes import Episode, fingerprint
from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.data.sequences import Sequences, cut_sequences
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.diffusion import DiffusionPolicy, build_network
from diffpolicy_spec.policies.normalizer import LinearNormalizer
from diffpolicy_spec.schedule import Schedule, training_abar
from diffpolicy_spec.training.batches import Batch, Batches, fit_normalizer, normalize_sequences
from diffpolicy_spec.training.config import TrainConfig
from diffpolicy_spec.training.objective import denoising_loss, mean_loss
from diffpolicy_spec.training.optim import Ema, cosine_lr
from diffpolicy_spec.training.state import TrainingState

__all__ = ["TrainingRun", "prepare_run"]


@dataclass
class TrainingRun:
    """A run in progress."""

    train_config: TrainConfig
    policy_config: PolicyConfig
    scheduler_config: dict[str, Any]
    normalizer: LinearNormalizer
    batches: Batches
    validation: list[Batch]
    abar: Tensor
    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema
    identity: dict[str, Any]
    step: int = 0
    wall_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def advance(self) -> Tensor:
        """One optimiser step; returns its loss, a scalar still on the device."""
        config = self.train_config
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        batch = self.batches.at(self.step)
        loss = denoising_loss(self.network, batch, self.abar, self.scheduler_config["prediction_type"])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.grad_clip)
        self.optimizer.step()
        self.ema.update(self.network.parameters(), self.step)
        self.step += 1
        return loss.detach()

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        config = self.train_config
        return cosine_lr(self.step, peak=config.lr, warmup_steps=config.warmup_steps, max_steps=config.max_steps)

    def averaged(self) -> nn.Module:
        """The network with EMA weights."""
        network = copy.deepcopy(self.network)
        with torch.no_grad():
            for parameter, average in zip(network.parameters(), self.ema.average, strict=True):
                parameter.copy_(average)
        return network.eval().requires_grad_(False)

    def policy(self) -> DiffusionPolicy:
        """The policy so far."""
        return DiffusionPolicy(self.policy_config, self.averaged(), self.normalizer, self.scheduler_config)

    def validate(self) -> float | None:
        """Loss of the EMA weights on the validation sequences; None without any."""
        if not self.validation:
            return None
        return mean_loss(self.averaged(), self.validation, self.abar, self.scheduler_config["prediction_type"])

    @property
    def seconds(self) -> float:
        """Training time over all parts of the run."""
        return self.wall_s + time.monotonic() - self.started

    def state(self) -> TrainingState:
        """To be saved."""
        return TrainingState(
            identity=self.identity,
            step=self.step,
            network=self.network.state_dict(),
            ema=self.ema.average,
            optimizer=self.optimizer.state_dict(),
            wall_s=self.seconds,
        )

    def restore(self, state: TrainingState) -> None:
        """Go on from a saved state."""
        self.network.load_state_dict(state.network)
        self.optimizer.load_state_dict(state.optimizer)
        for average, saved in zip(self.ema.average, state.ema, strict=True):
            average.copy_(saved)
        self.step, self.wall_s, self.started = state.step, state.wall_s, time.monotonic()


def prepare_run(
    episodes: Sequence[Episode],
    validation: Sequence[Episode],
    policy_config: PolicyConfig,
    scheduler_config: Mapping[str, Any],
    train_config: TrainConfig,
    device: torch.device | str,
) -> TrainingRun:
    """Data on the device, a fresh network and optimiser; raises as `train` does."""
    if episodes and episodes[0].actions.shape[1] != policy_config.action_dim:
        raise DataError(
            f"actions have {episodes[0].actions.shape[1]} dimensions, the policy config says {policy_config.action_dim}"
        )
    scheduler = {**scheduler_config, "prediction_type": scheduler_config.get("prediction_type", "epsilon")}
    Schedule.from_diffusers(scheduler)  # refuses what could not be sampled, before hours of training
    lengths = {
        "horizon": policy_config.horizon,
        "n_obs_steps": policy_config.n_obs_steps,
        "n_action_steps": policy_config.n_action_steps,
    }
    sequences = cut_sequences(episodes, policy_config.obs_keys, **lengths)
    normalizer = fit_normalizer(episodes, policy_config)
    abar = torch.from_numpy(training_abar(scheduler)).to(device=device, dtype=torch.float32)

    def batches(data: Sequences) -> Batches:
        condition, x0 = normalize_sequences(data, policy_config.obs_dims, normalizer)
        return Batches(
            condition.to(device),
            x0.to(device),
            batch_size=train_config.batch_size,
            num_timesteps=len(abar),
            seed=train_config.seed,
        )

    held_out: list[Batch] = []
    if validation:
        held_out = batches(cut_sequences(validation, policy_config.obs_keys, **lengths)).evenly(
            train_config.val_sequences, train_config.batch_size
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(train_config.seed)
        network = build_network(policy_config).to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=train_config.lr,
        betas=train_config.betas,
        weight_decay=train_config.weight_decay,
        eps=train_config.eps,
        fused=True,
    )
    return TrainingRun(
        train_config=train_config,
        policy_config=policy_config,
        scheduler_config=scheduler,
        normalizer=normalizer,
        batches=batches(sequences),
        validation=held_out,
        abar=abar,
        network=network,
        optimizer=optimizer,
        ema=Ema(network.parameters(), power=train_config.ema_power, max_decay=train_config.ema_max),
        identity={
            "settings": train_config.to_dict(),
            "policy": policy_config.to_dict(),
            "scheduler": scheduler,
            "data": {"sha256": fingerprint(episodes), "episodes": len(episodes), "sequences": len(sequences)},
        },
    )
