"""The native checkpoint folder.

    config.json              format name and version, policy, scheduler, storage dtype, where it came from
    model.safetensors        `model.*`, `encoder.*`: the network's and the image encoder's (EMA) weights;
                             `normalizer.params_dict.*`: float32 statistics
    speculation.safetensors  optional: what calibration found for this policy
    speculation.json         optional: the quickest exact sampler of this policy, by device (`choice.record`)

Nothing in it is ever unpickled. Weights may be stored as float16 to halve the file; the policy *is* what the stored
weights say, computed in float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec.atomic import atomic_folder, write_atomically
from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.fields import read_json
from diffpolicy_spec.checkpoints.parts import Parts, build_policy
from diffpolicy_spec.checkpoints.tensors import read_tensors
from diffpolicy_spec.checkpoints.weights import is_finite, some
from diffpolicy_spec.choice.record import ChoiceError, read_choices, write_choices
from diffpolicy_spec.gains import Gains
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.policies.errors import NormalizationError
from diffpolicy_spec.policies.normalizer import LinearNormalizer
from diffpolicy_spec.schedule import Schedule

__all__ = [
    "FORMAT",
    "STORAGE_DTYPES",
    "VERSION",
    "load_native",
    "read_config",
    "read_native",
    "save_policy",
    "save_speculation",
]

FORMAT = "diffpolicy_spec.policy"
VERSION = 1

CONFIG, MODEL, SPECULATION = "config.json", "model.safetensors", "speculation.safetensors"
_STORAGE = {"float32": torch.float32, "float16": torch.float16}
STORAGE_DTYPES = tuple(_STORAGE)
"""What the network's weights may be stored as."""


def save_policy(
    policy: DiffusionPolicy,
    path: str | Path,
    *,
    storage_dtype: str = "float32",
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder; it appears under its name only when complete, and replaces one that is there.

    Args:
        storage_dtype: "float32" or "float16" for the network's weights.
        training: where the policy comes from (settings, data, steps); plain data for config.json.

    Raises:
        ValueError: unknown storage_dtype, or weights that do not survive it.
        FileExistsError: `path` is something other than a checkpoint folder of this format.
    """
    if storage_dtype not in _STORAGE:
        raise ValueError(f"storage_dtype must be {' or '.join(_STORAGE)}, got '{storage_dtype}'")
    path = Path(path)
    if path.exists() and not (path / CONFIG).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not a checkpoint folder: not replaced")
    tensors = _stored(policy.network, "model.", storage_dtype)
    if policy.encoder is not None:
        tensors |= _stored(policy.encoder, "encoder.", storage_dtype)
    tensors |= {f"normalizer.{n}": v for n, v in policy.normalizer.state_dict().items()}
    config = {
        "format": FORMAT,
        "version": VERSION,
        "policy": policy.config.to_dict(),
        "scheduler": policy.scheduler_config,
        "storage_dtype": storage_dtype,
        "training": dict(training or {}),
        "origin": policy.origin,
        "notes": list(policy.notes),
    }
    with atomic_folder(path) as folder:
        _write_tensors(tensors, folder / MODEL)
        if policy.speculation is not None:
            save_speculation(policy.speculation, folder)
        if policy.choices:
            write_choices(policy.choices, folder)
        (folder / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n")


def save_speculation(speculation: Mapping[str, Tensor], path: str | Path) -> None:
    """Write speculation.safetensors into a checkpoint folder, in the dtypes the tensors have."""
    write_atomically(Path(path) / SPECULATION, lambda temporary: _write_tensors(speculation, temporary))


def load_native(path: str | Path, device: torch.device | str = "cpu") -> DiffusionPolicy:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: a file is missing, damaged or of another format, or names and shapes do not fit the config.
    """
    path = Path(path)
    parts = read_native(path)
    speculation = read_tensors(path / SPECULATION) if (path / SPECULATION).exists() else None
    try:
        Gains.from_state_dict(speculation or {})
    except ValueError as error:
        raise CheckpointError(f"{path / SPECULATION}: {error}") from error
    try:
        choices = read_choices(path)
    except ChoiceError as error:
        raise CheckpointError(str(error)) from error
    return build_policy(parts, path / MODEL, speculation=speculation, choices=choices).to(device)


def read_native(path: str | Path) -> Parts:
    """What a checkpoint folder holds, but for what is stored for speculation.

    Raises:
        CheckpointError: as `load_native`.
    """
    path = Path(path)
    config = read_config(path)
    try:
        policy_config = PolicyConfig.from_dict(config["policy"])
        Schedule.from_diffusers(config["scheduler"], policy_config.num_inference_steps)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{path / CONFIG} does not describe a policy: {error}") from error
    origin, notes = config.get("origin", {}), config.get("notes", [])
    if not isinstance(origin, dict) or not isinstance(notes, list) or not all(isinstance(n, str) for n in notes):
        raise CheckpointError(f"{path / CONFIG}: 'origin' must be a mapping and 'notes' a list of sentences")
    tensors = read_tensors(path / MODEL)
    strangers = sorted(n for n in tensors if not n.startswith(("model.", "encoder.", "normalizer.")))
    if strangers:
        raise CheckpointError(f"{path / MODEL} has unexpected tensors: {some(strangers)}")
    try:
        normalizer = LinearNormalizer.from_state_dict(_part(tensors, "normalizer."))
    except NormalizationError as error:
        raise CheckpointError(f"{path / MODEL}: {error}") from error
    return Parts(
        config=policy_config, network=_part(tensors, "model."), encoder=_part(tensors, "encoder."),
        normalizer=normalizer, scheduler=config["scheduler"], origin=origin, notes=tuple(notes),
    )  # fmt: skip


def read_config(path: str | Path) -> dict[str, Any]:
    """config.json of a checkpoint folder, checked to be of this format and version.

    Raises:
        CheckpointError: no such folder, or a file, or a folder of another format.
    """
    path = Path(path)
    if path.is_file():
        raise CheckpointError(f"{path} is a file; a checkpoint of this package is a folder with {CONFIG} and {MODEL}")
    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path} does not exist")
    file = path / CONFIG
    if not file.is_file():
        raise CheckpointError(f"{path} is not a checkpoint folder: it has no {CONFIG}")
    config = dict(read_json(file).values)
    if config.get("format") != FORMAT:
        kind = config.get("type")
        guess = f"; it looks like a LeRobot policy of type '{kind}'" if isinstance(kind, str) else ""
        raise CheckpointError(f"{file} is not of format '{FORMAT}'{guess}")
    if config.get("version") != VERSION:
        raise CheckpointError(f"{file} is version {config.get('version')!r}; this release reads version {VERSION}")
    for name in ("policy", "scheduler"):
        if not isinstance(config.get(name), dict):
            raise CheckpointError(f"{file} lacks the section '{name}'")
    return config


def _stored(network: torch.nn.Module, prefix: str, storage_dtype: str) -> dict[str, Tensor]:
    """Parameters in the storage dtype; buffers, which are few, as they are."""
    dtype = _STORAGE[storage_dtype]
    parameters = {f"{prefix}{name}": value.to(dtype) for name, value in network.named_parameters()}
    lost = [name for name, value in parameters.items() if not is_finite(value)]
    if lost:
        raise ValueError(f"weights that are not finite as {storage_dtype}: {some(lost)}")
    return {f"{prefix}{name}": parameters.get(f"{prefix}{name}", value) for name, value in network.state_dict().items()}


def _write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    import safetensors.torch

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    file.write_bytes(safetensors.torch.save(plain))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
