"""dps-train: fit a policy to demonstrations.

    dps-train task=lift dataset=data/lift.hdf5 output=outputs/lift
    dps-train task=pusht_keypoints dataset=pusht.zarr        # a replay buffer of diffusion_policy
    dps-train task=lift_image model=image_unet_small dataset=data/lift_image.hdf5
    accelerate launch -m diffpolicy_spec.training.cli task=lift device=cuda      # a process for each GPU
    dps-train draft=outputs/lift/policy                      # a draft network, distilled from that policy, beside it

Settings and their defaults: configs/train.yaml. Run again with the same settings, it goes on where it was interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from diffpolicy_spec.command import command
from diffpolicy_spec.data import Episode, read_dataset
from diffpolicy_spec.device import parse_device
from diffpolicy_spec.policies import PolicyConfig
from diffpolicy_spec.training.config import TrainConfig
from diffpolicy_spec.training.draft import train_draft
from diffpolicy_spec.training.images import ImageLoading
from diffpolicy_spec.training.loop import POLICY, train
from diffpolicy_spec.training.processes import first_process

__all__ = ["main", "policy_config", "run"]


def run(cfg: dict[str, Any]) -> Path:
    """Train as configs/train.yaml says (resolved, as plain data); returns the folder of the (distilled) policy.

    Raises:
        ValueError: settings that do not fit (DataError, TrainingError, ScheduleError are ValueErrors).
        OSError: no such dataset, or an output that cannot be written.
    """
    if cfg["draft"] is not None:
        return train_draft(cfg)
    if cfg["obs_map"] is not None:
        raise ValueError("obs_map is for draft=...: a policy that is trained observes what its task's `obs` names")
    task = cfg["task"]
    train_config = TrainConfig.from_dict({f.name: cfg[f.name] for f in fields(TrainConfig)})
    dataset, output = Path(cfg["dataset"] or task["dataset"]), Path(cfg["output"])
    device = parse_device(cfg["device"])
    images = ImageLoading(cfg["cache_images"], cfg["image_cache_gb"], cfg["image_workers"])
    config = policy_config(cfg)
    torch.set_num_threads(int(cfg["num_threads"]))

    def read(filter_key: str | None) -> list[Episode]:
        return read_dataset(
            dataset,
            task["obs"],
            action_repr=task["action_repr"],
            filter_key=filter_key,
            action_key=cfg["action_key"],
            image_shapes=config.image_shapes,
        )

    episodes = read(cfg["train_filter"])
    validation = read(cfg["valid_filter"]) if cfg["valid_filter"] is not None else []
    policy = train(
        episodes,
        validation,
        config,
        cfg["scheduler"],
        train_config,
        output,
        overwrite=cfg["overwrite"],
        device=device,
        storage_dtype=cfg["storage_dtype"],
        provenance={"dataset": dataset.name, "train_filter": cfg["train_filter"], "torch": torch.__version__},
        images=images,
        export_lerobot=cfg["export_lerobot"],
    )
    parameters = sum(p.numel() for part in (policy.network, policy.encoder) if part for p in part.parameters())
    if first_process():
        print(f"trained policy ({parameters / 1e6:.2f} M parameters): {output / POLICY}")
    return output / POLICY


def policy_config(cfg: Mapping[str, Any]) -> PolicyConfig:
    """What `task` and `model` of configs/train.yaml make together.

    Raises:
        ValueError: a model without an encoder for a task with cameras, or the other way round; sizes that do not fit.
    """
    task, model = cfg["task"], cfg["model"]
    images = task.get("images") or {}
    if bool(images) != (model.get("encoder") is not None):
        raise ValueError(
            f"the task has cameras ({', '.join(images)}) and the model no encoder: choose a model=image_..."
            if images
            else "the model has an image encoder and the task no cameras: choose a task=..._image"
        )
    return PolicyConfig.from_dict(
        {
            "task": task["name"],
            "obs_dims": task["obs"],
            "image_shapes": images,
            "action_repr": task["action_repr"],
            "action_dim": task["action_dim"],
            **model,
        }
    )


def main() -> None:
    """Entry point of dps-train."""
    command("dps-train", "train", "train", run)


if __name__ == "__main__":
    main()
