"""Fitting a diffusion policy to demonstrations."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec.checkpoints.native import save_policy
from diffpolicy_spec.data.episodes import Episode, fingerprint, stack_actions, stack_obs
from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.data.sequences import cut_sequences
from diffpolicy_spec.optional import require
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.diffusion import DiffusionPolicy, build_network
from diffpolicy_spec.policies.normalizer import LinearNormalizer, fit_limits, identity_columns
from diffpolicy_spec.policies.unet import ConditionalUnet1D
from diffpolicy_spec.schedule import Schedule, training_abar
from diffpolicy_spec.training.batches import Batch, Batches, normalize_sequences
from diffpolicy_spec.training.config import TrainConfig
from diffpolicy_spec.training.curves import append_record, plot_curves, read_records, truncate_records
from diffpolicy_spec.training.objective import denoising_loss, mean_loss
from diffpolicy_spec.training.optim import Ema, cosine_lr
from diffpolicy_spec.training.state import TrainingError, TrainingState, load_state, save_state

__all__ = ["CURVE", "PLOT", "POLICY", "STATE", "fit_normalizer", "train"]

STATE, POLICY, CURVE, PLOT, SNAPSHOTS = "state.pt", "policy", "loss.jsonl", "loss.png", "snapshots"
"""What a run leaves in its output folder."""


def fit_normalizer(episodes: Sequence[Episode], config: PolicyConfig) -> LinearNormalizer:
    """Limits to [-1, 1] for every key; the rotation columns of absolute_rot6d actions stay as they are.

    Those are rows of rotation matrices: within [-1, 1] already, and scaling them one by one would skew them.
    """
    params = {key: fit_limits(stack_obs(episodes, key)) for key in config.obs_dims}
    action = fit_limits(stack_actions(episodes))
    if config.action_repr == "absolute_rot6d":
        action = identity_columns(action, [10 * arm + i for arm in range(config.action_dim // 10) for i in range(3, 9)])
    return LinearNormalizer({**params, "action": action})


@dataclass
class _Run:
    """A run in progress."""

    train_config: TrainConfig
    policy_config: PolicyConfig
    scheduler_config: dict[str, Any]
    normalizer: LinearNormalizer
    batches: Batches
    validation: list[Batch]
    abar: Tensor
    network: ConditionalUnet1D
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

    def averaged(self) -> ConditionalUnet1D:
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


def train(
    episodes: Sequence[Episode],
    validation: Sequence[Episode],
    policy_config: PolicyConfig,
    scheduler_config: Mapping[str, Any],
    train_config: TrainConfig,
    output: Path,
    *,
    device: torch.device | str = "cpu",
    storage_dtype: str = "float32",
    provenance: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> DiffusionPolicy:
    """Fit a policy; go on where an earlier run in `output` with the same settings and data was interrupted.

    Leaves in `output`: `policy/` (native checkpoint of the EMA weights), `snapshots/step_*/` (the same, on the way),
    `loss.jsonl` and `loss.png`, and `state.pt`, from which a killed run continues.

    Args:
        episodes: to fit; statistics for the normaliser come from these.
        validation: for the validation loss; may be empty.
        scheduler_config: of a diffusers DDPMScheduler.
        storage_dtype: of the weights in `policy/` and `snapshots/`.
        provenance: more to be written into the checkpoint's "training" section.

    Raises:
        DataError: no sequences, or actions of another size than the config's.
        ScheduleError: the scheduler config is not supported.
        TrainingError: `output` holds a run with other settings or data, or the loss is not finite.
    """
    run = _prepare(episodes, validation, policy_config, scheduler_config, train_config, device)
    output.mkdir(parents=True, exist_ok=True)
    saved = load_state(output / STATE, run.identity, device)
    if saved is not None:
        run.restore(saved)
    truncate_records(output / CURVE, run.step)
    where_from = {**run.identity, **(provenance or {})}
    bar = require("tqdm", extra="train", needed_by="training").tqdm(
        total=train_config.max_steps,
        initial=run.step,
        desc=f"train {policy_config.task}".strip(),
        unit="step",
        disable=not progress,
        # In a log file a line a minute is enough.
        mininterval=0.5 if sys.stderr.isatty() else 60.0,
        dynamic_ncols=True,
    )
    with bar:
        _loop(run, output, bar, storage_dtype, where_from)
    policy = run.policy()
    save_policy(policy, output / POLICY, storage_dtype=storage_dtype, training=_done(where_from, run))
    plot_curves(read_records(output / CURVE), output / PLOT)
    return policy


def _loop(run: _Run, output: Path, bar: Any, storage_dtype: str, provenance: dict[str, Any]) -> None:
    config = run.train_config
    losses: list[Tensor] = []
    while run.step < config.max_steps:
        lr = run.lr
        losses.append(run.advance())
        bar.update()
        last = run.step == config.max_steps
        if run.step % config.log_every == 0 or last:
            record: dict[str, Any] = {"step": run.step, "train_loss": float(torch.stack(losses).mean()), "lr": lr}
            losses = []
            if not record["train_loss"] < float("inf"):
                raise TrainingError(f"the loss is not finite at step {run.step}: try a smaller lr or a grad_clip")
            if run.step % config.val_every == 0 or last:
                record["val_loss"] = run.validate()
            record["wall_s"] = round(run.seconds, 1)
            append_record(output / CURVE, record)
            shown = {k: record[k] for k in ("train_loss", "val_loss", "lr") if record.get(k) is not None}
            bar.set_postfix({k: f"{v:.2e}" for k, v in shown.items()}, refresh=False)
        if run.step % config.snapshot_every == 0 and not last:
            folder = output / SNAPSHOTS / f"step_{run.step:06d}"
            save_policy(run.policy(), folder, storage_dtype=storage_dtype, training=_done(provenance, run))
        if run.step % config.checkpoint_every == 0 or last:
            save_state(run.state(), output / STATE)
            plot_curves(read_records(output / CURVE), output / PLOT)


def _done(provenance: dict[str, Any], run: _Run) -> dict[str, Any]:
    return {**provenance, "steps_done": run.step}


def _prepare(
    episodes: Sequence[Episode],
    validation: Sequence[Episode],
    policy_config: PolicyConfig,
    scheduler_config: Mapping[str, Any],
    train_config: TrainConfig,
    device: torch.device | str,
) -> _Run:
    """Data on the device, a fresh network and optimiser."""
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

    def batches(data: Any) -> Batches:
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
    return _Run(
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
