"""LeRobot's normalisation, in either of its layouts, as this package's linear one.

    y = (x - mean) / (std + eps)                       MEAN_STD;  back: x = y std + mean
    y = 2 (x - min) / (max - min) - 1                  MIN_MAX;   a range of 0 counts as eps
    y = 2 (x - q01) / (q99 - q01) - 1                  QUANTILES; QUANTILE10 with q10 and q90

Newer folders keep the statistics beside `policy_preprocessor.json` and `policy_postprocessor.json`, older ones in
model.safetensors as `normalize_inputs.buffer_observation_state.min`, ..., with eps added to every range. What has no
statistics LeRobot passes on as it is, without a word; here that is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy_spec.checkpoints.errors import CheckpointError

__all__ = ["ADVICE", "BUFFERS", "Feature", "Statistics", "from_buffers", "normalization"]

BUFFERS = ("normalize_inputs.", "unnormalize_outputs.", "normalize_targets.")
"""How names of statistics inside model.safetensors begin."""

_EPS = 1e-8
_BOUNDS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
ADVICE = (  # what to do about missing statistics
    "save the policy together with its dataset's statistics, or, for a folder of an older LeRobot, run its "
    "`python -m lerobot.processor.migrate_policy_normalization --pretrained-path FOLDER`"
)


@dataclass(frozen=True)
class Feature:
    """An entry of input_features or output_features: `kind` is STATE, VISUAL, ENV or ACTION."""

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Statistics:
    """One normalising step.

    Attributes:
        where: the file, for errors.
        modes: kind of feature -> how it is normalised; kinds that are not there are not.
        tensors: feature -> statistic -> its values.
        eps: see the module.
        eps_everywhere: it is added to every range, as older releases do, not only in place of 0.
        only: features that are normalised; None: all.
    """

    where: str
    modes: Mapping[str, str]
    tensors: Mapping[str, Mapping[str, Tensor]]
    eps: float = _EPS
    eps_everywhere: bool = False
    only: frozenset[str] | None = None


def from_buffers(weights: Mapping[str, Tensor], prefix: str, features: Mapping[str, Feature], modes: Mapping[str, str],
                 where: str) -> Statistics:  # fmt: skip
    """The statistics of an older folder; `prefix` is one of BUFFERS."""
    tensors = {}
    for key in features:
        start = f"{prefix}buffer_{key.replace('.', '_')}."
        tensors[key] = {name[len(start) :]: value for name, value in weights.items() if name.startswith(start)}
    return Statistics(where, modes, tensors, eps_everywhere=True)


def normalization(
    inputs: Statistics, outputs: Statistics, features: Mapping[str, Feature]
) -> tuple[dict[str, dict[str, Tensor]], tuple[str, ...]]:
    """Feature -> scale, offset and statistics as `LinearNormalizer` takes them, and what a user should know of them.

    Raises:
        CheckpointError: statistics are missing, of the wrong shape or not finite, or their mode is unknown.
    """
    params, notes = {}, []
    for key, feature in features.items():
        action = feature.kind == "ACTION"
        step = outputs if action else inputs
        dims = feature.shape[0]  # of images the channels
        mode = step.modes.get(feature.kind, "IDENTITY")
        if not action and step.only is not None and key not in step.only:
            mode = "IDENTITY"
        if mode == "IDENTITY":
            centre, width = torch.zeros(dims, dtype=torch.float64), torch.ones(dims, dtype=torch.float64)
        elif mode == "MEAN_STD":
            centre, width = _moments(step, key, dims, action)
        elif mode in _BOUNDS:
            centre, width = _bounds(step, key, dims, mode, action)
        else:
            raise CheckpointError(f"{step.where}: unknown normalisation '{mode}' of '{key}'")
        fields, constant = _affine(centre, width, -1.0 if mode in _BOUNDS else 0.0, action)
        if constant:
            notes.append(
                f"'{key}' did not vary in the training data in dimensions {constant}: LeRobot divides what deviates by "
                f"{step.eps:g}, here it is passed on in its own unit"
            )
        known = step.tensors.get(key, {})
        for name in ("min", "max", "mean", "std"):
            if name in known and known[name].numel() == dims:
                fields[f"input_stats.{name}"] = known[name].flatten().float()
        params[key] = fields
    return params, tuple(notes)


def _moments(step: Statistics, key: str, dims: int, action: bool) -> tuple[Tensor, Tensor]:
    mean, std = (_statistic(step, key, name, dims) for name in ("mean", "std"))
    if (std < 0).any():
        raise CheckpointError(f"{step.where}: '{key}.std' is negative")
    # On the way back LeRobot multiplies by std alone.
    return mean, torch.where(std == 0, step.eps, std) if action else std + step.eps


def _bounds(step: Statistics, key: str, dims: int, mode: str, action: bool) -> tuple[Tensor, Tensor]:
    low, high = (_statistic(step, key, name, dims) for name in _BOUNDS[mode])
    if (high < low).any():
        raise CheckpointError(f"{step.where}: '{key}' has a {_BOUNDS[mode][1]} below its {_BOUNDS[mode][0]}")
    span = high - low
    span = span + step.eps if step.eps_everywhere and not action else torch.where(span == 0, step.eps, span)
    return low, span / 2


def _affine(centre: Tensor, width: Tensor, at_centre: float, action: bool) -> tuple[dict[str, Tensor], list[int]]:
    """y = (x - centre) / width + at_centre as x scale + offset, and the dimensions where that is not what it does.

    A width of about eps makes offset so large that float32 has no digits left for `at_centre`. What is observed gets
    width 1 there, which maps `centre` to `at_centre` as LeRobot does. (With centre 0 nothing is lost. Actions go the
    other way, where nothing is lost either.)
    """
    lost = (width < 2 * _EPS) & (centre.abs() > 0)
    lost = lost & torch.tensor(not action)
    scale = 1 / torch.where(lost, torch.ones_like(width), width)
    offset = at_centre - centre * scale
    return {"scale": scale.float(), "offset": offset.float()}, lost.nonzero().flatten().tolist()


def _statistic(step: Statistics, key: str, name: str, dims: int) -> Tensor:
    value = step.tensors.get(key, {}).get(name)
    if value is None:
        raise CheckpointError(f"{step.where} has no statistic '{key}.{name}' to normalise with: {ADVICE}")
    if value.numel() != dims or not value.is_floating_point():
        raise CheckpointError(f"{step.where}: '{key}.{name}' is {tuple(value.shape)}, expected {dims} real numbers")
    if torch.isinf(value).any():
        raise CheckpointError(f"{step.where}: '{key}.{name}' is infinite: it was never set from a dataset; {ADVICE}")
    if torch.isnan(value).any():
        raise CheckpointError(f"{step.where}: '{key}.{name}' holds NaN")
    return value.flatten().double()
