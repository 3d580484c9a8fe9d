"""A training run: data, network, optimiser and averaged weights, one step at a time."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffpolicy_spec.data.episodes import Episode, fingerprint
from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.policies.images import input_size
from diffpolicy_spec.policies.normalizer import LinearNormalizer
from diffpolicy_spec.policies.resnet import STRIDE
from diffpolicy_spec.schedule import Schedule
from diffpolicy_spec.scheduler_settings import training_abar
from diffpolicy_spec.seeds import hashed_generator
from diffpolicy_spec.training.batches import Batch, Batches, cut_for, fit_normalizer, prepare
from diffpolicy_spec.training.config import TrainConfig
from diffpolicy_spec.training.images import ImageLoading, ImageReader, image_tables
from diffpolicy_spec.training.model import DenoisingModel, draws_in_training, parameter_groups
from diffpolicy_spec.training.objective import denoising_loss, mean_loss
from diffpolicy_spec.training.optim import Ema, cosine_lr
from diffpolicy_spec.training.order import Share
from diffpolicy_spec.training.processes import Processes
from diffpolicy_spec.training.state import TrainingError, TrainingState

__all__ = ["TrainingRun", "prepare_run"]


@dataclass
class TrainingRun:
    """A run in progress.

    `called` is `model` as it is called in training: in several processes, their gradients are joined.
    """

    train_config: TrainConfig
    policy_config: PolicyConfig
    scheduler_config: dict[str, Any]
    normalizer: LinearNormalizer
    processes: Processes
    batches: Batches
    reader: ImageReader | None
    validation: list[Batch]
    validation_reader: ImageReader | None
    abar: Tensor
    model: DenoisingModel
    called: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema
    identity: dict[str, Any]
    step: int = 0
    wall_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def advance(self) -> Tensor:
        """One optimiser step; returns its loss, a scalar still on the device.

        Raises:
            DataError: images that cannot be read.
        """
        config = self.train_config
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        batch = self.batches.at(self.step)
        if self.reader is not None:
            batch = self.reader.fill(batch, self.step)
        with self._precision(), self._dropout():
            loss = denoising_loss(self.called, batch, self.abar, self.scheduler_config["prediction_type"])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.step()
        self.ema.update(self.model.parameters(), self.step)
        self.step += 1
        return loss.detach()

    def _precision(self) -> AbstractContextManager[Any]:
        half = self.train_config.precision == "bf16"
        return torch.autocast(self.processes.device.type, torch.bfloat16) if half else nullcontext()

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        """What is dropped is a function of (seed, step, process), too; torch's own generators stay as they were."""
        if not draws_in_training(self.model):
            yield
            return
        device = self.processes.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            numbers = (self.train_config.seed, 3, self.step, self.processes.share.rank)
            torch.manual_seed(hashed_generator(*numbers).initial_seed())
            yield

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        config = self.train_config
        return cosine_lr(self.step, peak=config.lr, warmup_steps=config.warmup_steps, max_steps=config.max_steps)

    def averaged(self) -> DenoisingModel:
        """Network and encoder with EMA weights."""
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for parameter, average in zip(model.parameters(), self.ema.average, strict=True):
                parameter.copy_(average)
        return model.eval().requires_grad_(False)

    def policy(self) -> DiffusionPolicy:
        """The policy so far."""
        model = self.averaged()
        return DiffusionPolicy(
            self.policy_config, model.network, self.normalizer, self.scheduler_config, encoder=model.encoder
        )

    def validate(self) -> float | None:
        """Loss of the EMA weights on the validation sequences; None without any."""
        if not self.validation:
            return None
        with self._precision():
            return mean_loss(self.averaged(), self._held_out(), self.abar, self.scheduler_config["prediction_type"])

    def _held_out(self) -> Iterator[Batch]:
        for batch in self.validation:
            yield batch if self.validation_reader is None else self.validation_reader.fill(batch)

    @property
    def seconds(self) -> float:
        """Training time over all parts of the run."""
        return self.wall_s + time.monotonic() - self.started

    def state(self) -> TrainingState:
        """To be saved."""
        encoder = self.model.encoder
        return TrainingState(
            identity=self.identity,
            step=self.step,
            network=self.model.network.state_dict(),
            encoder={} if encoder is None else encoder.state_dict(),
            ema=self.ema.average,
            optimizer=self.optimizer.state_dict(),
            wall_s=self.seconds,
        )

    def restore(self, state: TrainingState) -> None:
        """Go on from a saved state."""
        self.model.network.load_state_dict(state.network)
        if self.model.encoder is not None:
            self.model.encoder.load_state_dict(state.encoder)
        self.optimizer.load_state_dict(state.optimizer)
        for average, saved in zip(self.ema.average, state.ema, strict=True):
            average.copy_(saved)
        self.step, self.wall_s, self.started = state.step, state.wall_s, time.monotonic()


def _check_encoder(config: PolicyConfig) -> None:
    """Raise TrainingError for an image encoder that would get no gradient."""
    if config.encoder is None:
        return
    if config.conditioning == "inpainting":
        raise TrainingError(
            "conditioning=inpainting gives an image encoder no gradient: train it with conditioning=global"
        )
    for camera, (_, height, width) in config.image_shapes.items():
        given = input_size(config.encoder, height, width)
        if config.encoder.pool == "spatial_softmax" and max(given) <= STRIDE:
            raise TrainingError(
                f"'{camera}' is given to its network as {given} pixels, one cell of the last map, where all keypoints "
                f"are the same: use images or a crop above {STRIDE} pixels, or encoder.pool=average"
            )


def prepare_run(
    episodes: Sequence[Episode],
    validation: Sequence[Episode],
    policy_config: PolicyConfig,
    scheduler_config: Mapping[str, Any],
    train_config: TrainConfig,
    processes: Processes,
    loading: ImageLoading,
    *,
    progress: Any = iter,
) -> TrainingRun:
    """Data on the device, a fresh network and optimiser; raises as `train` does.

    Args:
        progress: wraps the iteration over images that are brought into memory, such as `tqdm`.
    """
    if episodes and episodes[0].actions.shape[1] != policy_config.action_dim:
        raise DataError(
            f"actions have {episodes[0].actions.shape[1]} dimensions, the policy config says {policy_config.action_dim}"
        )
    _check_encoder(policy_config)
    scheduler = {**scheduler_config, "prediction_type": scheduler_config.get("prediction_type", "epsilon")}
    Schedule.from_diffusers(scheduler)  # refuses what could not be sampled, before hours of training
    device = processes.device
    sequences = cut_for(policy_config, episodes)
    normalizer = fit_normalizer(episodes, policy_config)
    abar = torch.from_numpy(training_abar(scheduler)).to(device=device, dtype=torch.float32)
    budget = loading.budget(processes.share.size)

    def batches(chosen: Sequence[Episode], share: Share) -> tuple[Batches, ImageReader | None]:
        nonlocal budget
        data = prepare(sequences if chosen is episodes else cut_for(policy_config, chosen), policy_config, normalizer)
        drawn = Batches(
            data.to(device), batch_size=train_config.batch_size, num_timesteps=len(abar), seed=train_config.seed,
            share=share,
        )  # fmt: skip
        if data.frames is None:
            return drawn, None
        tables, taken = image_tables(chosen, policy_config.image_shapes, loading, budget=budget, progress=progress)
        budget -= taken
        return drawn, ImageReader(tables, data.frames, drawn.order, share, loading, train_config.max_steps, device)

    trained, reader = batches(episodes, processes.share)
    if trained.order.batch_size % processes.share.size:
        raise TrainingError(
            f"{processes.share.size} processes cannot share batches of {trained.order.batch_size} sequences equally: "
            "choose another batch_size"
        )
    held_out: list[Batch] = []
    held_out_reader = None
    if validation and processes.writes:
        drawn, held_out_reader = batches(validation, Share())
        held_out = drawn.evenly(train_config.val_sequences, train_config.batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(train_config.seed)
        model = DenoisingModel(policy_config, normalizer).to(device)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, train_config.weight_decay, train_config.encoder_weight_decay),
        lr=train_config.lr,
        betas=train_config.betas,
        eps=train_config.eps,
        fused=True,
    )
    return TrainingRun(
        train_config=train_config,
        policy_config=policy_config,
        scheduler_config=scheduler,
        normalizer=normalizer,
        processes=processes,
        batches=trained,
        reader=reader,
        validation=held_out,
        validation_reader=held_out_reader,
        abar=abar,
        model=model,
        called=processes.wrap(model),
        optimizer=optimizer,
        ema=Ema(model.parameters(), power=train_config.ema_power, max_decay=train_config.ema_max),
        identity={
            "settings": train_config.to_dict(),
            "policy": policy_config.to_dict(),
            "scheduler": scheduler,
            "data": {"sha256": fingerprint(episodes), "episodes": len(episodes), "sequences": len(sequences)},
        },
    )
