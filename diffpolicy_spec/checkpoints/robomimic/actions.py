"""robomimic's actions: several keys joined in the order of train.action_keys, normalised the other way round.

    x = y scale + offset        so that y = x / scale - offset / scale
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.fields import Fields

__all__ = ["Actions", "inverse_affine", "read_actions"]

_SYNONYMS = {"scale": ("scale", "std"), "offset": ("offset", "mean")}


@dataclass(frozen=True)
class Actions:
    """The action vector.

    Attributes:
        repr: one of `rotations.ACTION_REPRS`.
        fields: its normalisation, as `LinearNormalizer` takes it.
        notes: what a user should know.
    """

    repr: str
    fields: dict[str, Tensor]
    notes: tuple[str, ...]


def read_actions(train: Fields, stats: Any, dims: int, env_kwargs: Any, where: str) -> Actions:
    """What the policy's `dims` numbers a step mean.

    Args:
        train: config.train.
        stats: action_normalization_stats, or None: then actions are not normalised.
        env_kwargs: env_metadata.env_kwargs, where the controller's settings say whether actions are differences.

    Raises:
        CheckpointError: statistics are missing or do not fit.
    """
    keys = train.names("action_keys", ["actions"])
    if not keys or len(set(keys)) < len(keys):
        raise CheckpointError(f"{train.where}: action_keys must name at least one action, each once; got {keys!r:.200}")
    if stats is None:
        ones, zeros = torch.ones(dims), torch.zeros(dims)
        notes = ("the file has no action_normalization_stats: actions are taken as they are",)
        known = {keys[0]: dims} if len(keys) == 1 else {}
        kind, more = _meaning(train, keys, known, dims, env_kwargs)
        return Actions(kind, {"scale": ones, "offset": zeros}, (*notes, *more))
    section = Fields(stats, f"{where}: action_normalization_stats")
    parts = [inverse_affine(section.section(key), key) for key in keys]
    fields = {name: torch.cat([part[name] for part in parts]) for name in ("scale", "offset")}
    if len(fields["scale"]) != dims:
        raise CheckpointError(f"{section.where} has {len(fields['scale'])} dimensions for {list(keys)}, the policy's "
                              f"action has {dims}")  # fmt: skip
    sizes = {key: len(part["scale"]) for key, part in zip(keys, parts, strict=True)}
    kind, more = _meaning(train, keys, sizes, dims, env_kwargs)
    return Actions(kind, fields, more)


def inverse_affine(stats: Fields, key: str) -> dict[str, Tensor]:
    """{"scale", "offset"} (or "std", "mean"), each (1, D) lists, as this package's x scale + offset.

    Raises:
        CheckpointError: missing, of two sizes, not finite, or a scale of zero.
    """
    found = {}
    for name, synonyms in _SYNONYMS.items():
        given = next((stats.get(n) for n in synonyms if n in stats), None)
        if given is None:
            raise CheckpointError(f"{stats.where} lacks '{name}' of '{key}'")
        try:
            found[name] = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{stats.where}: '{name}' of '{key}' is not an array of numbers") from error
    scale, offset = found["scale"], found["offset"]
    if scale.shape != offset.shape or scale.ndim != 2 or len(scale) != 1 or not scale.size:
        raise CheckpointError(f"{stats.where}: scale {scale.shape} and offset {offset.shape} of '{key}' must be (1, D)")
    if not (np.isfinite(scale).all() and np.isfinite(offset).all() and (scale != 0).all()):
        raise CheckpointError(f"{stats.where}: scale of '{key}' must be finite and not zero, offset finite")
    with np.errstate(over="ignore"):  # infinity is refused by LinearNormalizer
        as_tensor = {"scale": 1 / scale[0], "offset": -offset[0] / scale[0]}
    return {name: torch.from_numpy(value).float() for name, value in as_tensor.items()}


def _meaning(
    train: Fields, keys: tuple[str, ...], sizes: Mapping[str, int], dims: int, env_kwargs: Any
) -> tuple[str, tuple[str, ...]]:
    """The action's representation. robomimic turns rot_6d into what the environment takes after the policy."""
    config = train.section("action_config", {})
    formats, converted = [], []
    for key in keys:
        settings = config.section(key, {})
        formats.append(settings.get("format", None))
        converted.append(settings.get("convert_at_runtime", "rot_axis_angle"))
    absolute = _absolute(keys, env_kwargs)
    if "rot_6d" in formats:
        pieces = [(sizes.get(key), form) for key, form in zip(keys, formats, strict=True)]
        arm = [(3, None), (6, "rot_6d"), (1, None)]
        if absolute and pieces == arm * (len(pieces) // 3) and set(converted) == {"rot_axis_angle"}:
            return "absolute_rot6d", ()
        return "raw", (
            f"actions are {' + '.join(keys)}, and robomimic converts their rot_6d ({', '.join(set(converted))}) after "
            "the policy; that is not done here: actions are given as the policy predicts them",
        )
    if dims % 7 == 0 and absolute is not None and _arms(keys, sizes):
        return ("absolute" if absolute else "delta"), ()
    return "raw", ()


def _arms(keys: tuple[str, ...], sizes: Mapping[str, int]) -> bool:
    """One vector of whole arms, or position, axis-angle and gripper arm by arm."""
    pieces = [sizes.get(key) for key in keys]
    return len(keys) == 1 or pieces == [3, 3, 1] * (len(pieces) // 3)


def _absolute(keys: tuple[str, ...], env_kwargs: Any) -> bool | None:
    """Whether actions are poses or differences; None: not to be found out."""
    names = [key.rpartition("/")[2] for key in keys]
    if any(name.startswith("abs_") or name.endswith("_abs") for name in names):
        return True
    if any(name.startswith("rel_") for name in names):
        return False
    found: list[bool] = []

    def look(value: Any, depth: int = 0) -> None:
        if isinstance(value, Mapping) and depth < 8:
            if isinstance(value.get("right"), Mapping):  # parts that are not arms have controllers of their own
                value = value["right"]
            if isinstance(value.get("control_delta"), bool):
                found.append(not value["control_delta"])
            elif isinstance(value.get("input_type"), str):
                found.append(value["input_type"] == "absolute")
            for item in value.values():
                look(item, depth + 1)
        elif isinstance(value, (list, tuple)) and depth < 8:
            for item in value[:8]:
                look(item, depth + 1)

    look(env_kwargs.get("controller_configs") if isinstance(env_kwargs, Mapping) else None)
    return found[0] if found and len(set(found)) == 1 else None
