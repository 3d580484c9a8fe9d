"""dps-calibrate: a checkpoint's gains, and the exact sampler and runtime that are quickest, stored beside it.

    dps-calibrate checkpoint=outputs/train/lift/policy dataset=data/lift.hdf5
    dps-calibrate checkpoint=... gains=false device=cuda        # the choice alone, once per device
    dps-calibrate checkpoint=... 'obs_map={observation.state: [robot0_eef_pos, robot0_gripper_qpos]}'   # other names

Settings and their defaults: configs/calibrate.yaml. Both change what sampling costs, never what it draws (unless dtypes
other than the loaded one are listed: then it is what the rounded network draws).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec.calibration import calibrate
from diffpolicy_spec.checkpoints import CheckpointError, load_policy
from diffpolicy_spec.checkpoints.formats import detect
from diffpolicy_spec.checkpoints.native import save_speculation
from diffpolicy_spec.checkpoints.shipped import resolve
from diffpolicy_spec.choice.choose import choose
from diffpolicy_spec.choice.record import Choice, with_choice, write_choices
from diffpolicy_spec.choice.report import sentence, table
from diffpolicy_spec.choice.runtimes import runtimes
from diffpolicy_spec.command import command
from diffpolicy_spec.data import cut_sequences
from diffpolicy_spec.device import parse_device
from diffpolicy_spec.gains import Gains
from diffpolicy_spec.optional import require
from diffpolicy_spec.policies import DiffusionPolicy
from diffpolicy_spec.runtime import RuntimeConfig
from diffpolicy_spec.samplers import SamplerConfig
from diffpolicy_spec.training.moments import draw_moments, observe
from diffpolicy_spec.training.observations import Names, episodes_for

__all__ = ["draw_conditions", "main", "run", "storable"]

_SHOWN = 10  # rows of the printed table
_AT_ONCE = 256  # moments that are read at a time


def draw_conditions(
    policy: DiffusionPolicy, dataset: Path, count: int, filter_key: str | None, seed: int, names: Names | None = None
) -> Tensor:
    """(count, C) conditions of moments drawn from demonstrations, each at most once while there are enough.

    `names`: what the demonstrations call what the policy observes.

    Raises:
        DataError: the dataset does not have what the policy observes.
        ConditioningError: the policy is conditioned by inpainting.
    """
    config = policy.config
    episodes = episodes_for(policy, dataset, filter_key, names)
    sequences = cut_sequences(
        episodes, list(config.obs_dims), horizon=config.horizon, n_obs_steps=config.n_obs_steps,
        n_action_steps=config.n_action_steps,
    )  # fmt: skip
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed))
    newest = sequences.frames[order[torch.arange(count) % len(order)], -1]
    ends = torch.tensor([len(episode) for episode in episodes]).cumsum(0)
    episode = torch.searchsorted(ends, newest, right=True)
    inside = newest - torch.cat([ends.new_zeros(1), ends])[episode]
    where = list(zip(episode.tolist(), inside.tolist(), strict=True))
    pieces = [observe(policy, episodes, where[i : i + _AT_ONCE]) for i in range(0, count, _AT_ONCE)]
    return torch.cat([policy.encode(piece) for piece in pieces])


def storable(checkpoint: str) -> Path:
    """The folder of a checkpoint, beside which something can be stored.

    Raises:
        CheckpointError: there is none, or it is another project's.
    """
    folder = resolve(checkpoint)
    kind = detect(folder)
    if kind != "native":
        raise CheckpointError(
            f"{folder} is {kind}'s checkpoint, and what is found for a policy is stored beside one of this package's: "
            f"dps-convert {folder} outputs/{folder.stem}, and give outputs/{folder.stem} here"
        )
    return folder


def run(cfg: dict[str, Any]) -> Path:
    """Calibrate as configs/calibrate.yaml says (resolved, as plain data); returns the checkpoint folder.

    Raises:
        ValueError: settings that do not fit (CheckpointError, DataError and ScheduleError are ValueErrors).
        FileNotFoundError: no such dataset.
    """
    if cfg["checkpoint"] is None:
        raise ValueError("give checkpoint=PATH, the folder of a trained policy")
    if not (cfg["gains"] or cfg["choice"]):
        raise ValueError("gains=false and choice=false leave nothing to do")
    folder, dataset = storable(cfg["checkpoint"]), Path(cfg["dataset"] or cfg["task"]["dataset"])
    device = parse_device(cfg["device"])
    tried = runtimes(device, cfg["runtimes"], threads=cfg["threads"], dtypes=cfg["dtypes"])
    torch.set_num_threads(int(cfg["num_threads"]))
    policy = load_policy(folder, device)
    if cfg["gains"]:
        gains = _fit_gains(policy, dataset, cfg)
        # What else is stored for speculation stays.
        others = {name: value for name, value in (policy.speculation or {}).items() if not name.startswith("gains.")}
        save_speculation(others | gains.state_dict(), folder)
        print(f"{gains}: {folder}")
        policy = load_policy(folder, policy.device)
    if cfg["choice"]:
        choice = _choose(policy, dataset, tried, cfg)
        write_choices(with_choice(policy.choices, choice), folder)
        print(f"\n{table(choice, _SHOWN)}\n{sentence(choice)}: {folder}")
    return folder


def _fit_gains(policy: DiffusionPolicy, dataset: Path, cfg: dict[str, Any]) -> Gains:
    tqdm = require("tqdm", extra="train", needed_by="dps-calibrate").tqdm
    conditions = draw_conditions(policy, dataset, int(cfg["chains"]), cfg["filter"], int(cfg["seed"]), Names.of(cfg))
    return calibrate(
        policy.denoiser(conditions),
        policy.bind(SamplerConfig("ddpm")).schedule,
        (len(conditions), policy.config.horizon, policy.config.action_dim),
        generator=torch.Generator().manual_seed(int(cfg["seed"])),
        perturbations=int(cfg["perturbations"]),
        scale=float(cfg["scale"]),
        ridge=float(cfg["ridge"]),
        structure=cfg["structure"],
        max_bytes=int(cfg["max_bytes"]),
        device=policy.device,
        progress=lambda steps: tqdm(steps, desc="calibrate", unit="step", dynamic_ncols=True),
    )


def _choose(policy: DiffusionPolicy, dataset: Path, tried: Sequence[RuntimeConfig], cfg: dict[str, Any]) -> Choice:
    tqdm = require("tqdm", extra="train", needed_by="dps-calibrate").tqdm
    moments = draw_moments(policy, dataset, int(cfg["moments"]), cfg["filter"], int(cfg["seed"]), Names.of(cfg))
    return choose(
        policy,
        moments,
        tried=tried,
        num_inference_steps=cfg["num_inference_steps"],
        eta=cfg["eta"],
        finalists=int(cfg["finalists"]),
        timed=int(cfg["timed"]),
        probes=int(cfg["probes"]),
        contenders=int(cfg["contenders"]),
        seed=int(cfg["seed"]),
        progress=lambda tried: tqdm(tried, desc="choose", unit="sampler", dynamic_ncols=True),
    )


def main() -> None:
    """Entry point of dps-calibrate."""
    command("dps-calibrate", "calibrate", "train", run)


if __name__ == "__main__":
    main()
