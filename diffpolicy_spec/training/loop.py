"""Fitting a diffusion policy to demonstrations."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec.checkpoints.lerobot import write_lerobot
from diffpolicy_spec.checkpoints.native import STORAGE_DTYPES, load_native, save_policy
from diffpolicy_spec.data.episodes import Episode
from diffpolicy_spec.optional import require
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.training.config import TrainConfig
from diffpolicy_spec.training.curves import append_record, plot_curves, read_records, truncate_records
from diffpolicy_spec.training.images import ImageLoading
from diffpolicy_spec.training.processes import join_processes
from diffpolicy_spec.training.run import TrainingRun, prepare_run
from diffpolicy_spec.training.state import TrainingError, load_state, save_state

__all__ = ["CURVE", "LEROBOT", "PLOT", "POLICY", "SNAPSHOTS", "STATE", "train"]

STATE, POLICY, CURVE, PLOT, SNAPSHOTS = "state.pt", "policy", "loss.jsonl", "loss.png", "snapshots"
"""What a run leaves in its output folder."""

LEROBOT = "lerobot"
"""And where it asks for it, the policy for LeRobot."""


def train(
    episodes: Sequence[Episode],
    validation: Sequence[Episode],
    policy_config: PolicyConfig,
    scheduler_config: Mapping[str, Any],
    train_config: TrainConfig,
    output: Path,
    *,
    overwrite: bool = False,
    device: torch.device | str = "cpu",
    storage_dtype: str = "float32",
    provenance: Mapping[str, Any] | None = None,
    progress: bool = True,
    images: ImageLoading | None = None,
    export_lerobot: bool = False,
) -> DiffusionPolicy:
    """Fit a policy; go on where an earlier run in `output` with the same settings and data was interrupted.

    Leaves in `output`: `policy/` (native checkpoint of the EMA weights), `snapshots/step_*/` (the same, on the way),
    `loss.jsonl` and `loss.png`, and `state.pt`, from which a killed run continues. Started in several processes
    (`accelerate launch`, torchrun), each takes its part of every batch, and the first one writes.

    Args:
        episodes: to fit; statistics for the normaliser come from these.
        validation: for the validation loss; may be empty.
        scheduler_config: of a diffusers DDPMScheduler.
        overwrite: remove an earlier run in `output` instead of going on with it, once everything else is checked.
        storage_dtype: of the weights in `policy/` and `snapshots/`.
        provenance: more to be written into the checkpoint's "training" section.
        progress: show bars.
        images: how images are read; None: the defaults.
        export_lerobot: write the policy as a folder for LeRobot, too: `lerobot/`.

    Raises:
        DataError: no sequences, actions of another size than the config's, or images that cannot be read.
        CheckpointError: export_lerobot, and LeRobot has no such policy; known before the first step.
        ScheduleError: the scheduler config is not supported.
        TrainingError: `output` is a file, holds a run with other settings or data, or (to be overwritten) something
            that is no run; storage_dtype is unknown; or the loss is not finite.
        ImportError: tqdm or matplotlib is not installed.
    """
    # Whatever would fail at the first checkpoint fails now.
    if storage_dtype not in STORAGE_DTYPES:
        raise TrainingError(f"storage_dtype must be {' or '.join(STORAGE_DTYPES)}, got '{storage_dtype}'")
    require("matplotlib.figure", extra="train", needed_by="plotting loss curves")
    tqdm = require("tqdm", extra="train", needed_by="training").tqdm
    if output.exists() and not output.is_dir():
        raise TrainingError(f"output={output} is a file; give a folder")
    processes = join_processes(torch.device(device), unused=policy_config.conditioning == "local")
    shown = partial(
        tqdm,
        disable=not (progress and processes.writes),
        # In a log file a line a minute is enough.
        mininterval=0.5 if sys.stderr.isatty() else 60.0,
        dynamic_ncols=True,
    )
    loading = ImageLoading() if images is None else images
    run = prepare_run(
        episodes, validation, policy_config, scheduler_config, train_config, processes, loading,
        progress=partial(shown, desc="images into memory", unit="piece"),
    )  # fmt: skip
    if processes.writes:
        if export_lerobot:  # refused now, not after the training
            with tempfile.TemporaryDirectory() as trial:
                write_lerobot(run.policy(), Path(trial) / LEROBOT)
        if overwrite:
            _remove_run(output)
        output.mkdir(parents=True, exist_ok=True)
    processes.wait()
    saved = load_state(output / STATE, run.identity, processes.device)
    if saved is not None:
        run.restore(saved)
    processes.wait()  # nobody writes before all have read
    if processes.writes:
        truncate_records(output / CURVE, run.step)
    # Policy and scheduler have their own sections in a checkpoint.
    where_from = {"settings": run.identity["settings"], "data": run.identity["data"], **(provenance or {})}
    title = f"train {policy_config.task}".strip()
    with shown(total=train_config.max_steps, initial=run.step, desc=title, unit="step") as bar:
        _loop(run, output, bar, storage_dtype, where_from)
    if processes.writes:
        save_policy(run.policy(), output / POLICY, storage_dtype=storage_dtype, training=_done(where_from, run))
        plot_curves(read_records(output / CURVE), output / PLOT)
        if export_lerobot:
            for sentence in write_lerobot(run.policy(), output / LEROBOT):
                print(f"{output / LEROBOT}: {sentence}")
    processes.wait()
    # Read back: the policy is what the stored weights say.
    policy = load_native(output / POLICY, processes.device)
    processes.leave()
    return policy


def _loop(run: TrainingRun, output: Path, bar: Any, storage_dtype: str, provenance: dict[str, Any]) -> None:
    config, writes = run.train_config, run.processes.writes
    losses: list[Tensor] = []
    while run.step < config.max_steps:
        lr = run.lr
        losses.append(run.advance())
        bar.update()
        last = run.step == config.max_steps
        checkpoint = run.step % config.checkpoint_every == 0 or last
        # A point at every checkpoint: no loss that is not finite gets saved, and no point of the curve spans a resume.
        if run.step % config.log_every == 0 or checkpoint:
            loss = float(run.processes.mean(torch.stack(losses).mean()))
            losses = []
            if not loss < float("inf"):
                raise TrainingError(f"the loss is not finite at step {run.step}: try a smaller lr or a grad_clip")
            if writes:
                _record(run, output, bar, {"step": run.step, "train_loss": loss, "lr": lr}, last)
        if run.step % config.snapshot_every == 0 and not last and writes:
            folder = output / SNAPSHOTS / f"step_{run.step:06d}"
            save_policy(run.policy(), folder, storage_dtype=storage_dtype, training=_done(provenance, run))
        if checkpoint and writes:
            save_state(run.state(), output / STATE)
            plot_curves(read_records(output / CURVE), output / PLOT)


def _record(run: TrainingRun, output: Path, bar: Any, record: dict[str, Any], last: bool) -> None:
    """A point of the curve, with a validation where one is due."""
    if run.step % run.train_config.val_every == 0 or last:
        record["val_loss"] = run.validate()
    record["wall_s"] = round(run.seconds, 1)
    append_record(output / CURVE, record)
    shown = {k: record[k] for k in ("train_loss", "val_loss", "lr") if record.get(k) is not None}
    bar.set_postfix({k: f"{v:.2e}" for k, v in shown.items()}, refresh=False)


def _remove_run(output: Path) -> None:
    """Remove an earlier run, and refuse to remove anything that is not one."""
    if output.exists() and any(output.iterdir()):
        if not (output / STATE).exists() and not (output / POLICY).exists():
            raise TrainingError(f"overwrite=true: {output} is not empty and holds no training run; not removed")
        shutil.rmtree(output)


def _done(provenance: dict[str, Any], run: TrainingRun) -> dict[str, Any]:
    return {**provenance, "steps_done": run.step}
