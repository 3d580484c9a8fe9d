"""A policy whose checkpoint may be replaced while it is in use."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from diffpolicy_spec.checkpoints import CheckpointError, load_policy
from diffpolicy_spec.checkpoints.shipped import resolve
from diffpolicy_spec.control.protocols import PolicyInfo
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.policies.info import policy_info
from diffpolicy_spec.samplers import BoundSampler, SamplerConfig

__all__ = ["Refused", "Swapped", "WatchedPolicy", "differences"]

_MUST_FIT = (
    "obs_dims", "image_shapes", "n_obs_steps", "n_action_steps", "horizon", "action_dim", "first", "action_repr",
)  # fmt: skip

_AT_EXIT_S = 5.0
"""A program that ends waits so long for a policy that is being loaded: torch aborts a process that ends under it."""

Marks = tuple[tuple[str, int, int, int], ...]  # name, mtime_ns, bytes, inode of each file


@dataclass(frozen=True)
class Swapped:
    """Another policy has taken the place of the one before.

    Attributes:
        before, info: of the two.
    """

    before: PolicyInfo
    info: PolicyInfo

    @property
    def message(self) -> str:
        """What happened, a sentence."""
        told = f"the checkpoint was replaced: {self.before.policy} -> {self.info.policy}"
        if self.before.sampler != self.info.sampler:
            told += f", drawn by {self.info.sampler} instead of {self.before.sampler}"
        return told


@dataclass(frozen=True)
class Refused:
    """A checkpoint that cannot take the policy's place; the policy stays.

    Attributes:
        reason: why.
    """

    reason: str

    @property
    def message(self) -> str:
        """What happened, a sentence."""
        return f"the checkpoint was replaced by one that is not used, the policy stays as it is: {self.reason}"


@dataclass(frozen=True)
class _Loaded:
    marks: Marks
    policy: DiffusionPolicy
    sampler: BoundSampler
    info: PolicyInfo


class WatchedPolicy:
    """A checkpoint, loaded, and loaded anew when its files change.

    A change is noticed by the files' times, sizes and inodes, and acted upon when they have not changed for `settle`
    s: a file that is still being copied is not read. The new policy is loaded, compared and prepared in a thread of its
    own, and takes over in `poll`: between two chunks, if that is where `poll` is called. One that cannot be read, that
    has other observations or actions, or that fails in `prepare` is refused and the old one stays; the next change is
    looked at again.

    Args:
        path: of any format that `load_policy` reads, or a shipped policy's name.
        device, weights: as in `load_policy`.
        sampler: how chunks are drawn; None: each policy's default.
        name: for messages; "": the path's.
        prepare: called with each policy and its sampler before it is used, such as `warm_up`; a policy that it raises
            for is refused.
        in_thread: whether new policies are prepared in the loading thread; False: in `poll`, where the policy is used
            from, as capturing CUDA graphs needs it.
        settle: s without changes before a file is read.
        look_every: s between two looks at the files.
        clock: s.

    Attributes:
        policy, sampler, info: those in use.

    Raises:
        CheckpointError: the checkpoint cannot be read at all: there is no policy to stay with.
        ScheduleError, ValueError: the sampler does not fit it.
    """

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str = "cpu",
        *,
        weights: str = "auto",
        sampler: SamplerConfig | None = None,
        name: str = "",
        prepare: Callable[[DiffusionPolicy, BoundSampler], None] | None = None,
        in_thread: bool = True,
        settle: float = 0.3,
        look_every: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._device, self._weights, self._sampler = resolve(path), device, weights, sampler
        self._name = name or self._path.stem
        self._prepare, self._in_thread = prepare, in_thread
        self._settle, self._look_every, self._clock = settle, look_every, clock
        self._use(self._load(None, prepare=True))
        self._seen = self._tried = self._marks
        self._since = self._looked = clock()
        self._loading: threading.Thread | None = None
        self._result: _Loaded | Refused | None = None

    def _use(self, loaded: _Loaded) -> None:
        self.policy, self.sampler, self.info, self._marks = loaded.policy, loaded.sampler, loaded.info, loaded.marks

    @property
    def loading(self) -> bool:
        """Whether a new policy is being loaded."""
        return self._loading is not None

    def poll(self) -> Swapped | Refused | None:
        """Look at the files, and take over a policy that has been loaded. Quick: loading is done elsewhere."""
        if self._loading is not None:
            if self._loading.is_alive():
                return None
            self._loading.join()
            atexit.unregister(self._loading.join)
            self._loading = None
            return self._take()
        now = self._clock()
        if now - self._looked < self._look_every:
            return None
        self._looked, marks = now, _marks(self._path)
        if marks != self._seen:
            self._seen, self._since = marks, now
        elif marks not in (self._tried, self._marks) and now - self._since >= self._settle:
            self._tried = marks
            self._loading = threading.Thread(target=self._load_new, name="dps-load-policy", daemon=True)
            self._loading.start()
            atexit.register(self._loading.join, _AT_EXIT_S)
        return None

    def _load_new(self) -> None:
        try:
            self._result = self._load(self.info, prepare=self._in_thread)
        except Exception as error:  # whatever is wrong with a file must not stop the robot
            self._result = Refused(str(error) or type(error).__name__)

    def _load(self, instead_of: PolicyInfo | None, prepare: bool) -> _Loaded:
        marks = _marks(self._path)
        if not marks:
            raise CheckpointError(f"there is nothing at {self._path} any more")
        policy = load_policy(self._path, self._device, weights=self._weights)
        sampler = policy.bind(self._sampler)
        loaded = _Loaded(marks, policy, sampler, policy_info(policy, sampler, name=self._name))
        other = [] if instead_of is None else differences(instead_of, loaded.info)
        if other:
            raise ValueError(f"it has another {'; another '.join(other)}")
        if self._prepare is not None and prepare:
            self._prepare(policy, sampler)
        return loaded

    def _take(self) -> Swapped | Refused | None:
        loaded, self._result = self._result, None
        if _marks(self._path) != self._tried:
            return None  # it has changed while it was read: it will be looked at again
        if isinstance(loaded, _Loaded):
            if self._prepare is not None and not self._in_thread:
                try:
                    self._prepare(loaded.policy, loaded.sampler)
                except Exception as error:
                    return Refused(str(error) or type(error).__name__)
            before = self.info
            self._use(loaded)
            return Swapped(before, loaded.info)
        return loaded


def differences(info: PolicyInfo, other: PolicyInfo) -> list[str]:
    """What a robot's loop would notice if one policy took the other's place, in words; nothing: it may."""
    found = []
    for name in _MUST_FIT:
        ours, theirs = getattr(info, name), getattr(other, name)
        if ours != theirs:
            found.append(f"{name}: {theirs} instead of {ours}")
    return found


def _marks(path: Path) -> Marks:
    """Of a checkpoint's files; () where there is none."""
    found = []
    try:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            stat = file.stat()
            if file.is_file():
                found.append((str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino))
    except OSError:  # being replaced just now
        return ()
    return tuple(found)
