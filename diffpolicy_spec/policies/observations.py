"""Observations: checked, normalised, joined to the network's condition."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.errors import ObservationError
from diffpolicy_spec.policies.normalizer import LinearNormalizer

__all__ = ["ObservationEncoder"]


class ObservationEncoder:
    """key -> (B, To, d) in own units to (B, To * Do), normalised, oldest step first, keys in the config's order."""

    def __init__(self, config: PolicyConfig, normalizer: LinearNormalizer) -> None:
        self.config = config
        # All keys at once: one multiplication instead of one per key.
        self._scale = torch.cat([normalizer.fields(key)["scale"] for key in config.obs_dims])
        self._offset = torch.cat([normalizer.fields(key)["offset"] for key in config.obs_dims])

    def __call__(self, obs: Mapping[str, Tensor | np.ndarray]) -> Tensor:
        """Raises ObservationError: missing or unknown keys, wrong shapes, not real numbers, NaN or infinity."""
        x = torch.cat(self._checked(obs), dim=-1) * self._scale + self._offset
        if not torch.isfinite(x).all():
            raise ObservationError(self._not_finite(obs))
        return x.flatten(1)

    def _checked(self, obs: Mapping[str, Tensor | np.ndarray]) -> list[Tensor]:
        dims, steps = self.config.obs_dims, self.config.n_obs_steps
        if not isinstance(obs, Mapping):
            raise ObservationError(f"observations must be a mapping of {list(dims)}, got {type(obs).__name__}")
        missing, unknown = [k for k in dims if k not in obs], [str(k) for k in obs if k not in dims]
        if missing or unknown:
            what = (("lack", missing), ("have unknown", unknown))
            told = " and ".join(f"{verb} {', '.join(keys)}" for verb, keys in what if keys)
            raise ObservationError(f"observations {told}; expected keys: {', '.join(dims)}")
        parts: list[Tensor] = []
        for key, dim in dims.items():
            value = self._as_float(key, obs[key])
            batch = parts[0].shape[0] if parts else "B"
            shape = tuple(value.shape)
            if len(shape) != 3 or shape[1:] != (steps, dim) or shape[0] == 0 or (parts and shape[0] != batch):
                raise ObservationError(f"observation '{key}' must be ({batch}, {steps}, {dim}), got {shape}")
            parts.append(value)
        return parts

    def _as_float(self, key: str, value: Tensor | np.ndarray) -> Tensor:
        try:
            # Flipped or strided views are fine for numpy but not for torch.
            tensor = torch.as_tensor(np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ObservationError(f"observation '{key}' is not an array of numbers: {error}") from error
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise ObservationError(f"observation '{key}' must hold real numbers, got {tensor.dtype}")
        return tensor.to(device=self._scale.device, dtype=torch.float32)

    def _not_finite(self, obs: Mapping[str, Tensor | np.ndarray]) -> str:
        """The message for the first key whose values (as float32) or normalised values are not finite."""
        start = 0
        for key, dim in self.config.obs_dims.items():
            x = self._as_float(key, obs[key])
            span = slice(start, start + dim)
            bad = ~torch.isfinite(x * self._scale[span] + self._offset[span])
            if bad.any():
                batch, step, column = (int(i) for i in bad.nonzero()[0])
                return (
                    f"observation '{key}' holds NaN or infinity (as float32), "
                    f"first at [{batch}, {step}, {column}] of (B, To, d)"
                )
            start += dim
        return "observations are not finite"
