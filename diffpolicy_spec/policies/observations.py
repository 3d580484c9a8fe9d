"""Observations: checked, normalised, images encoded, joined to features."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from diffpolicy_spec.noise import Generator
from diffpolicy_spec.policies.config import PolicyConfig
from diffpolicy_spec.policies.errors import ObservationError
from diffpolicy_spec.policies.normalizer import LinearNormalizer
from diffpolicy_spec.policies.vision import ImageEncoder

__all__ = ["ObservationEncoder"]

# Images outside of this by a pixel are taken for a mistake; resampling can leave [0, 1] by less.
_LOWEST, _HIGHEST = -0.5, 1.5
# Observations whose images are encoded at once: enough to keep a GPU busy, and no memory for those of a whole data set.
_AT_ONCE = 32


class ObservationEncoder:
    """key -> (B, To, d), camera -> (B, To, C, H, W), to features (B, To, Do), in the order of `config.feature_order`.

    Args:
        encoder: of the images; None without cameras. It runs once a call (of up to 32 observations).
    """

    def __init__(self, config: PolicyConfig, normalizer: LinearNormalizer, encoder: ImageEncoder | None = None) -> None:
        self.config, self._encoder = config, encoder
        self._device = normalizer.fields("action")["scale"].device
        self._dims = {key: config.obs_dims[key] for key in config.feature_order if key in config.obs_dims}
        # All keys at once: one multiplication instead of one per key.
        none = [torch.zeros(0, device=self._device)]
        self._scale = torch.cat([normalizer.fields(key)["scale"] for key in self._dims] or none)
        self._offset = torch.cat([normalizer.fields(key)["offset"] for key in self._dims] or none)
        self._of_image = {
            camera: tuple(normalizer.fields(camera)[name][:, None, None] for name in ("scale", "offset"))
            for camera in config.image_shapes
        }

    def __call__(self, obs: Mapping[str, Tensor | np.ndarray], generator: Generator = None) -> Tensor:
        """Features (B, To, Do) float32, oldest step first.

        Args:
            obs: low-dimensional ones in their own units, images float in [0, 1] or uint8 in 0 ... 255.
            generator: where crops are drawn from, for policies that crop at random in use.

        Raises:
            ObservationError: missing or unknown keys, wrong shapes, not real numbers, NaN or infinity, images that are
                not in [0, 1].
        """
        return self.encode(self._checked(obs), generator)

    def check(self, obs: Mapping[str, Tensor | np.ndarray]) -> dict[str, Tensor]:
        """Observations as tensors, float32 (images may be uint8), on the device; raises as the call does."""
        values = self._checked(obs)
        if self._dims:
            self._low_dimensional(values)
        return values

    def encode(self, values: Mapping[str, Tensor], generator: Generator = None) -> Tensor:
        """Features (B, To, Do) of what `check` returned."""
        if not self._of_image:
            return self._low_dimensional(values)
        features: dict[str, Tensor] = {}
        if self._dims:
            joined = self._low_dimensional(values)
            features = dict(zip(self._dims, joined.split(list(self._dims.values()), dim=-1), strict=True))
        assert self._encoder is not None  # the policy has looked
        pieces = [self._encoded(self._encoder, values, generator, row) for row in range(0, _batch(values), _AT_ONCE)]
        features |= {camera: torch.cat([piece[camera] for piece in pieces]) for camera in self._of_image}
        return torch.cat([features[key] for key in self.config.feature_order], dim=-1)

    @torch.no_grad()
    def _encoded(
        self, encoder: ImageEncoder, values: Mapping[str, Tensor], generator: Generator, first: int
    ) -> dict[str, Tensor]:
        """Features of the cameras, of the observations from `first` on that are encoded at once."""
        rows = slice(first, first + _AT_ONCE)
        images = {}
        for camera, (scale, offset) in self._of_image.items():
            pixels = values[camera][rows]
            images[camera] = (pixels / 255 if pixels.dtype == torch.uint8 else pixels) * scale + offset
        own = generator if generator is None or isinstance(generator, torch.Generator) else generator[rows]
        return encoder(images, own)

    def _low_dimensional(self, values: Mapping[str, Tensor]) -> Tensor:
        x = torch.cat([values[key] for key in self._dims], dim=-1) * self._scale + self._offset
        if not torch.isfinite(x).all():
            raise ObservationError(self._not_finite(values))
        return x

    def _checked(self, obs: Mapping[str, Tensor | np.ndarray]) -> dict[str, Tensor]:
        """float32, on the device, of the shapes they should have; images in [0, 1], or uint8."""
        keys, steps = self.config.obs_keys, self.config.n_obs_steps
        if not isinstance(obs, Mapping):
            raise ObservationError(f"observations must be a mapping of {list(keys)}, got {type(obs).__name__}")
        missing, unknown = [k for k in keys if k not in obs], [str(k) for k in obs if k not in keys]
        if missing or unknown:
            what = (("lack", missing), ("have unknown", unknown))
            told = " and ".join(f"{verb} {', '.join(names)}" for verb, names in what if names)
            raise ObservationError(f"observations {told}; expected keys: {', '.join(keys)}")
        values: dict[str, Tensor] = {}
        batch: int | str = "B"
        for key in keys:
            tensor = _as_tensor(key, obs[key])
            shape = tuple(tensor.shape)
            wanted = (steps, *self.config.image_shapes.get(key, (self._dims.get(key),)))
            if len(shape) != len(wanted) + 1 or shape[1:] != wanted or shape[0] == 0 or batch not in ("B", shape[0]):
                told = ", ".join(map(str, (batch, *wanted)))
                hint = " (channels come before height and width)" if _channels_last(shape, wanted) else ""
                raise ObservationError(f"observation '{key}' must be ({told}), got {shape}{hint}")
            batch = shape[0]
            tensor = tensor.to(self._device)
            values[key] = _image(key, tensor) if key in self._of_image else tensor.to(torch.float32)
        return values

    def _not_finite(self, values: Mapping[str, Tensor]) -> str:
        """The message for the first key whose values (as float32) or normalised values are not finite."""
        start = 0
        for key, dim in self._dims.items():
            span = slice(start, start + dim)
            bad = ~torch.isfinite(values[key] * self._scale[span] + self._offset[span])
            if bad.any():
                batch, step, column = (int(i) for i in bad.nonzero()[0])
                return (
                    f"observation '{key}' holds NaN or infinity (as float32), "
                    f"first at [{batch}, {step}, {column}] of (B, To, d)"
                )
            start += dim
        return "observations are not finite"


def _batch(values: Mapping[str, Tensor]) -> int:
    return len(next(iter(values.values())))


def _as_tensor(key: str, value: Tensor | np.ndarray) -> Tensor:
    try:
        # Flipped or strided views are fine for numpy but not for torch.
        tensor = torch.as_tensor(np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ObservationError(f"observation '{key}' is not an array of numbers: {error}") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ObservationError(f"observation '{key}' must hold real numbers, got {tensor.dtype}")
    return tensor


def _image(key: str, tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.uint8:
        return tensor
    if not tensor.is_floating_point():
        raise ObservationError(f"images '{key}' must be uint8 (0 ... 255) or float in [0, 1], got {tensor.dtype}")
    tensor = tensor.to(torch.float32)
    low, high = torch.stack(torch.aminmax(tensor)).tolist()
    if not (low > float("-inf") and high < float("inf")):  # NaN compares as neither
        raise ObservationError(f"images '{key}' hold NaN or infinity")
    if low < _LOWEST or high > _HIGHEST:
        raise ObservationError(
            f"images '{key}' must be float in [0, 1], or uint8: they hold values from {low:.4g} to {high:.4g}"
        )
    return tensor


def _channels_last(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(wanted) == 4 and len(shape) == 5 and (shape[4], shape[2], shape[3]) == wanted[1:]
