"""A client's observations as the policy takes them: renamed, images with channels first, To steps of each."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control.protocols import PolicyInfo

__all__ = ["History", "ObsNames", "RequestError", "read_observations"]

_PART = re.compile(r"(?P<key>.+?)(?:\[(?P<first>\d+):(?P<last>\d+)\])?")
_SHOWN = 20  # of the keys, in messages


class RequestError(ValueError):
    """A request that gets no chunk. kind: one of `errors.KINDS`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ObsNames:
    """Which of a client's keys are the policy's observations.

    Args:
        given: the policy's observation -> the client's key, or several that are joined; KEY[a:b] is its numbers a to
            b - 1. Observations that are not named have the same name there.

    Raises:
        ValueError: an observation the policy does not have, or something that is no key.
    """

    def __init__(self, info: PolicyInfo, given: Mapping[str, str | Sequence[str]]) -> None:
        own = [*info.obs_dims, *info.image_shapes]
        strangers = [name for name in given if name not in own]
        if strangers:
            raise ValueError(
                f"obs_map names {', '.join(map(str, strangers))}, which the policy does not observe; it observes "
                f"{', '.join(own)}"
            )
        self._parts: dict[str, list[tuple[str, slice | None]]] = {}
        for name in own:
            keys = given.get(name, name)
            keys = [keys] if isinstance(keys, str) else keys
            if not isinstance(keys, Sequence) or not keys or not all(isinstance(key, str) and key for key in keys):
                raise ValueError(f"obs_map: '{name}' must be a key or a list of keys, got {keys!r}")
            # A key that has the policy's own name is taken as it is, whatever brackets it has.
            self._parts[name] = [(name, None)] if name not in given else [_part(key) for key in keys]
            if name in info.image_shapes and (len(keys) > 1 or self._parts[name][0][1] is not None):
                raise ValueError(f"obs_map: '{name}' is one image, got {keys}")

    def wanted(self) -> set[str]:
        """All the client's keys that count."""
        return {key for parts in self._parts.values() for key, _ in parts}

    def pick(self, obs: Mapping[Any, Any]) -> dict[str, NDArray[Any]]:
        """The policy's observations out of a client's.

        Raises:
            RequestError: keys that are not there, or what is no array of numbers.
        """
        missing = sorted({key for key in self.wanted() if key not in obs})
        if missing:
            there = ", ".join(str(key)[:60] for key in list(obs)[:_SHOWN]) or "nothing"
            raise RequestError("bad_observation", f"observations lack {', '.join(missing)}; there is {there}")
        return {name: self._joined([_numbers(*part, obs) for part in parts]) for name, parts in self._parts.items()}

    @staticmethod
    def _joined(pieces: list[NDArray[Any]]) -> NDArray[Any]:
        if len(pieces) == 1:
            return pieces[0]
        try:
            return np.concatenate([np.atleast_1d(piece) for piece in pieces], axis=-1)
        except ValueError as error:
            raise RequestError("bad_observation", f"observations that are joined do not fit: {error}") from error


def _part(key: str) -> tuple[str, slice | None]:
    match = _PART.fullmatch(key)
    assert match is not None  # any text is a key
    if match["first"] is None:
        return key, None
    return match["key"], slice(int(match["first"]), int(match["last"]))


def _numbers(key: str, part: slice | None, obs: Mapping[Any, Any]) -> NDArray[Any]:
    value = obs[key]
    if isinstance(value, list):  # of a client that has no numpy
        try:
            value = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise RequestError("bad_observation", f"'{key}' is not an array of numbers: {error}") from error
    elif isinstance(value, bool | int | float | np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise RequestError("bad_observation", f"'{key}' must be an array of numbers, got {type(value).__name__}")
    if value.dtype.kind == "b":
        value = value.astype(np.float64)
    if part is None:
        return value
    if value.ndim == 0 or value.shape[-1] < part.stop or part.start >= part.stop:
        raise RequestError("bad_observation", f"'{key}' has no numbers {part.start}:{part.stop}, it is {value.shape}")
    return value[..., part]


class History:
    """Of a connection: what one-step observations become where the policy looks at To of them.

    Args:
        how: "repeat" or "consecutive", see `ServerConfig`.
        gap: s; an observation that comes later than that after the one before begins anew.
    """

    def __init__(
        self, how: str, steps: int, gap: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._how, self._steps, self._gap, self._clock = how, steps, gap, clock
        self._seen: deque[Mapping[str, NDArray[Any]]] = deque(maxlen=steps)
        self._last = float("-inf")

    def stacked(self, step: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """To steps, oldest first; the first one there is stands for those before it."""
        now = self._clock()
        if self._how == "repeat" or now - self._last > self._gap:
            self._seen.clear()
        self._last = now
        self._seen.append(step)
        steps = [self._seen[0]] * (self._steps - len(self._seen)) + list(self._seen)
        return {key: np.stack([one[key] for one in steps]) for key in step}

    def reset(self) -> None:
        """A new episode."""
        self._seen.clear()


def read_observations(
    obs: Any, names: ObsNames, info: PolicyInfo, history: History
) -> dict[str, NDArray[Any]]:
    """key -> (To, d), camera -> (To, C, H, W), of what a client sent: all of one step, or all of To.

    A step of a low-dimensional observation is (d,), or a number where d = 1; of a camera (C, H, W) or (H, W, C).

    Raises:
        RequestError: anything else; says what was expected.
    """
    if not isinstance(obs, Mapping):
        raise RequestError("bad_observation", f"observations must be a map, got {type(obs).__name__}")
    picked = names.pick(obs)
    for key, value in picked.items():  # before they are remembered: steps that follow are read together with this one
        with np.errstate(over="ignore"):
            finite = value.dtype.kind != "f" or bool(np.isfinite(value.astype(np.float32, copy=False)).all())
        if not finite:
            raise RequestError("bad_observation", f"'{key}' holds NaN or infinity (as float32)")
    single: dict[str, bool] = {}
    found: dict[str, NDArray[Any]] = {}
    for key, value in picked.items():
        shape = info.image_shapes.get(key)
        if shape is None:
            found[key], single[key] = _vector(key, value, info.obs_dims[key], info.n_obs_steps)
        else:
            found[key], single[key] = _image(key, value, shape, info.n_obs_steps)
    if len(set(single.values())) > 1:
        ones = ", ".join(key for key, one in single.items() if one)
        raise RequestError(
            "bad_observation", f"{ones} are of one step, the others of {info.n_obs_steps}: give all alike"
        )
    if all(single.values()):
        return history.stacked(found)
    # Copies: what comes over the wire are read-only views of a message.
    return {key: np.array(value) for key, value in found.items()}


def _vector(key: str, value: NDArray[Any], dim: int, steps: int) -> tuple[NDArray[Any], bool]:
    if value.ndim == 0 and dim == 1:
        value = value.reshape(1)
    if value.shape == (dim,):
        return value, True
    if value.shape == (steps, dim):
        return value, False
    raise RequestError("bad_observation", f"'{key}' must be ({dim},) or ({steps}, {dim}), got {value.shape}")


def _image(key: str, value: NDArray[Any], shape: tuple[int, int, int], steps: int) -> tuple[NDArray[Any], bool]:
    channels, height, width = shape
    last = (height, width, channels)
    if value.ndim not in (3, 4) or (value.ndim == 4 and value.shape[0] != steps) or (
        value.shape[-3:] not in (shape, last)
    ):
        either = f"{shape} or {last}, or {steps} of them"
        raise RequestError("bad_observation", f"image '{key}' must be {either}, got {value.shape}")
    if shape == last:
        raise RequestError(
            "bad_observation", f"image '{key}' is {shape}: channels first and last cannot be told apart"
        )
    if value.shape[-3:] == last:
        value = np.moveaxis(value, -1, -3)
    return value, value.ndim == 3
