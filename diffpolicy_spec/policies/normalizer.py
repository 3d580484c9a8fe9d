"""Per-dimension linear normalisation, forward x * scale + offset, with diffusion_policy's state-dict names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from diffpolicy_spec.policies.errors import NormalizationError

__all__ = ["RANGE_EPS", "LinearNormalizer", "fit_limits", "identity_columns"]

RANGE_EPS = 1e-4
"""Dimensions that vary less than this in the data are taken for constant (diffusion_policy's value)."""

_STATISTICS = ("min", "max", "mean", "std")
_FIELDS = ("scale", "offset", *(f"input_stats.{name}" for name in _STATISTICS))

Fields = dict[str, Tensor]


def fit_limits(data: np.ndarray | Tensor) -> Fields:
    """Map each dimension's range in the data to [-1, 1].

    A constant dimension (range below RANGE_EPS) is shifted to 0 and keeps its unit: scaling it by 2/range would blow
    up whatever little it varies by at run time.

    Args:
        data: (..., D), real; statistics are taken over all leading axes.

    Returns:
        {"scale", "offset", "input_stats.min", ".max", ".mean", ".std"}, each (D,) float32.

    Raises:
        NormalizationError: no rows, or values that are not finite.
    """
    x = torch.as_tensor(data).to(torch.float32)
    x = x.reshape(-1, x.shape[-1])
    if x.shape[0] == 0:
        raise NormalizationError("normalisation statistics need at least one row of data, got none")
    if not torch.isfinite(x).all():
        raise NormalizationError("normalisation statistics need finite data, but it holds NaN or infinity")
    low, high = x.amin(dim=0), x.amax(dim=0)
    constant = (high - low) < RANGE_EPS
    scale = 2.0 / torch.where(constant, torch.full_like(low, 2.0), high - low)
    offset = torch.where(constant, -low, -1.0 - scale * low)
    std = x.std(dim=0) if x.shape[0] > 1 else torch.zeros_like(low)
    return {
        "scale": scale,
        "offset": offset,
        "input_stats.min": low,
        "input_stats.max": high,
        "input_stats.mean": x.mean(dim=0),
        "input_stats.std": std,
    }


def identity_columns(fields: Fields, columns: Iterable[int]) -> Fields:
    """The same normalisation with some dimensions left as they are (scale 1, offset 0)."""
    index = torch.tensor(list(columns), dtype=torch.long)
    scale, offset = fields["scale"].clone(), fields["offset"].clone()
    scale[index], offset[index] = 1.0, 0.0
    return {**fields, "scale": scale, "offset": offset}


class LinearNormalizer:
    """Normalisation of several keys.

    Args:
        params: key -> fields as `fit_limits` returns them; "scale" and "offset" are needed, "input_stats.*" optional.

    Raises:
        NormalizationError: scale or offset missing, of different shapes, not finite, or a scale of zero.
    """

    def __init__(self, params: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.params: dict[str, Fields] = {}
        for key, fields in params.items():
            missing = [name for name in ("scale", "offset") if name not in fields]
            if missing:
                raise NormalizationError(f"normalisation of '{key}' lacks {' and '.join(missing)}")
            scale, offset = fields["scale"], fields["offset"]
            if scale.ndim != 1 or scale.shape != offset.shape:
                raise NormalizationError(
                    f"normalisation of '{key}': scale {tuple(scale.shape)}, offset {tuple(offset.shape)}; must be (D,)"
                )
            if not (torch.isfinite(scale).all() and torch.isfinite(offset).all() and (scale != 0).all()):
                raise NormalizationError(f"normalisation of '{key}': scale must be finite and not zero, offset finite")
            self.params[key] = {name: value.detach().to(torch.float32) for name, value in fields.items()}

    def fields(self, key: str) -> Fields:
        """scale, offset and statistics of one key; NormalizationError where there are none."""
        try:
            return self.params[key]
        except KeyError:
            known = ", ".join(sorted(self.params)) or "none"
            raise NormalizationError(f"no normalisation statistics for '{key}' (there are: {known})") from None

    def check(self, dims: Mapping[str, int]) -> None:
        """Raise NormalizationError unless every key is there with its number of dimensions."""
        for key, dim in dims.items():
            found = self.fields(key)["scale"].shape[0]
            if found != dim:
                raise NormalizationError(f"normalisation of '{key}' has {found} dimensions, expected {dim}")

    def normalize(self, key: str, x: Tensor) -> Tensor:
        """x: (..., D) in its own units -> (..., D), about [-1, 1]."""
        fields = self.fields(key)
        return x * fields["scale"] + fields["offset"]

    def unnormalize(self, key: str, x: Tensor) -> Tensor:
        """x: (..., D) normalised -> (..., D) in its own units."""
        fields = self.fields(key)
        return (x - fields["offset"]) / fields["scale"]

    def to(self, device: torch.device | str) -> LinearNormalizer:
        """The same on another device."""
        return LinearNormalizer({k: {n: v.to(device) for n, v in f.items()} for k, f in self.params.items()})

    def state_dict(self) -> dict[str, Tensor]:
        """`params_dict.<key>.scale`, `.offset`, `.input_stats.{min,max,mean,std}`."""
        return {f"params_dict.{key}.{name}": v for key, fields in self.params.items() for name, v in fields.items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> LinearNormalizer:
        """The inverse of `state_dict`.

        Raises:
            NormalizationError: a name that does not belong, or scale or offset missing.
        """
        params: dict[str, Fields] = {}
        for name, value in state.items():
            field = next((f for f in _FIELDS if name.endswith("." + f)), None)
            if not name.startswith("params_dict.") or field is None:
                raise NormalizationError(f"'{name}' is not a normaliser's name: params_dict.<key>.<scale|offset|...>")
            params.setdefault(name[len("params_dict.") : -len(field) - 1], {})[field] = value
        return cls(params)
