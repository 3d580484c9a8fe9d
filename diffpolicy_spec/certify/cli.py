"""dps-certify: is a sampler's law the sequential one, on this policy and these observations?

    dps-certify checkpoint=lift dataset=data/lift.hdf5 sampler=speculative
    dps-certify checkpoint=outputs/train/lift/policy observations=seen.npz sampler=paradigms sampler.options.tolerance=1

Settings and their defaults: configs/certify.yaml. Exit status: 0 no difference found, 1 difference found, 2 no verdict.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from diffpolicy_spec.atomic import write_atomically
from diffpolicy_spec.checkpoints import load_policy
from diffpolicy_spec.checkpoints.shipped import resolve
from diffpolicy_spec.command import command
from diffpolicy_spec.device import parse_device
from diffpolicy_spec.eval.results import environment, write_json
from diffpolicy_spec.optional import require
from diffpolicy_spec.samplers import SamplerConfig
from diffpolicy_spec.training.observations import Names

from .observations import conditions_from_dataset, conditions_from_file
from .run import certify, describe_checkpoint
from .verdict import Verdict

__all__ = ["main", "run"]


def run(cfg: dict[str, Any]) -> Verdict:
    """Certify as configs/certify.yaml says (resolved, as plain data); writes <output>.json and <output>.md.

    Raises:
        ValueError: settings that do not fit (CheckpointError, DataError and ObservationError are ValueErrors).
        OSError: no such dataset or observations.
    """
    if cfg["checkpoint"] is None:
        raise ValueError("give checkpoint=PATH, the folder of a trained policy, or checkpoint=lift")
    for key, lowest in (("num_observations", 1), ("num_threads", 1), ("seed", 0)):
        if not isinstance(cfg[key], int) or cfg[key] < lowest:
            raise ValueError(f"{key} must be an integer of at least {lowest}, got {cfg[key]!r}")
    if cfg["observations"] is not None and cfg["obs_map"] is not None:
        raise ValueError("obs_map is for dataset=...: a file of observations has the policy's own names")
    json_file, page = _output(cfg)
    torch.set_num_threads(cfg["num_threads"])
    folder = resolve(cfg["checkpoint"])
    policy = load_policy(folder, parse_device(cfg["device"]))
    if cfg["observations"] is not None:
        path = Path(cfg["observations"])
        conditions = conditions_from_file(policy, path, cfg["num_observations"], cfg["seed"])
    else:
        path = Path(cfg["dataset"] or cfg["task"]["dataset"])
        conditions = conditions_from_dataset(
            policy, path, cfg["num_observations"], cfg["filter"], cfg["seed"], Names.of(cfg)
        )
    verdict = certify(
        policy,
        _sampler(cfg["sampler"]),
        conditions,
        chunks=cfg["chunks"],
        alpha=float(cfg["alpha"]),
        reference=None if cfg["reference"] is None else _sampler(cfg["reference"]),
        splits=cfg["splits"],
        seed=cfg["seed"],
        batch=cfg["batch"],
        checkpoint=describe_checkpoint(folder),
        source=path.name,
        environment=environment(policy.device, cfg["num_threads"]),
        progress=_bars(),
    )
    write_json(json_file, verdict.to_dict())
    write_atomically(page, lambda temporary: temporary.write_text(verdict.to_markdown()))
    return verdict


def _output(cfg: dict[str, Any]) -> tuple[Path, Path]:
    """Both files of the result; refused before anything is drawn where they hold an earlier one."""
    stem = Path(cfg["output"] or f"outputs/certify/{cfg['sampler'].get('name', cfg['sampler']['method'])}").expanduser()
    files = stem.parent / f"{stem.name}.json", stem.parent / f"{stem.name}.md"
    there = [str(file) for file in files if file.exists()]
    if there and not cfg["overwrite"]:
        raise ValueError(f"{there[0]} holds an earlier verdict: give another output=... or overwrite=true")
    return files


def _sampler(cfg: dict[str, Any]) -> SamplerConfig:
    """An option that is null is the sampler's own choice."""
    options = {key: value for key, value in (cfg.get("options") or {}).items() if value is not None}
    return SamplerConfig(cfg["method"], cfg.get("num_inference_steps"), cfg.get("eta"), options)


def _bars() -> Callable[[str], Callable[[Iterable[Any]], Iterable[Any]]]:
    tqdm = require("tqdm", extra="certify", needed_by="dps-certify").tqdm
    return lambda what: lambda steps: tqdm(steps, desc=what, dynamic_ncols=True)


def main() -> None:
    """Entry point of dps-certify."""
    found: list[Verdict] = []

    def body(cfg: dict[str, Any]) -> None:
        found.append(run(cfg))

    try:
        command("dps-certify", "certify", "certify", body)
    except SystemExit as stop:
        # Whatever ends a command early, a usage error or a fault, must not read as "difference found".
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        sys.exit(2 if stop.code else 0)
    if found:
        print(found[0].to_markdown())
        sys.exit(1 if found[0].different else 0)


if __name__ == "__main__":
    main()
