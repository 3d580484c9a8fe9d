"""The policy that is served: given, or a checkpoint that is watched; and the engine that draws its chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diffpolicy_spec.control.protocols import PolicyInfo
from diffpolicy_spec.policies import DiffusionPolicy
from diffpolicy_spec.policies.engine import Engine
from diffpolicy_spec.policies.info import policy_info
from diffpolicy_spec.policies.reload import Refused, Swapped, WatchedPolicy
from diffpolicy_spec.policies.warm_up import middle_observation, warm_up
from diffpolicy_spec.samplers import SamplerConfig
from diffpolicy_spec.server.config import ServerConfig

__all__ = ["Source"]

_LOOK_EVERY = 0.1  # s, where looking is asked for


class Source:
    """A policy, and what it is replaced by.

    Args:
        policy: itself, or a checkpoint's path or a shipped policy's name, which is then watched.
        sampler: how chunks are drawn; None: the policy's own way.
        device, weights: of a checkpoint, see `load_policy`.

    Raises:
        CheckpointError, ScheduleError, ValueError: it cannot be loaded, or not be sampled so.
    """

    def __init__(
        self,
        policy: DiffusionPolicy | str | Path,
        config: ServerConfig,
        sampler: SamplerConfig | None = None,
        *,
        device: str = "cpu",
        weights: str = "auto",
    ) -> None:
        self._config, self._sampler = config, sampler
        self._watched: WatchedPolicy | None = None
        self.policy: DiffusionPolicy
        self.info: PolicyInfo
        if isinstance(policy, DiffusionPolicy):
            self.policy, self.info = policy, policy_info(policy, sampler)
        else:
            # The engine warms the first one up.
            self._watched = WatchedPolicy(
                policy, device, weights=weights, sampler=sampler, look_every=config.watch_s or _LOOK_EVERY,
                prepare=lambda policy, sampler: warm_up(policy, sampler, 1) if self._watched else None,
            )  # fmt: skip
            self.policy, self.info = self._watched.policy, self._watched.info

    @property
    def watched(self) -> bool:
        """Whether there are files that may change."""
        return self._watched is not None

    @property
    def loading(self) -> bool:
        """Whether another checkpoint is being loaded."""
        return self._watched is not None and self._watched.loading

    def poll(self) -> Swapped | Refused | None:
        """Look at the files; what has become of a new checkpoint. Quick: loading is done elsewhere."""
        found = None if self._watched is None else self._watched.poll()
        if isinstance(found, Swapped) and self._watched is not None:
            self.policy, self.info = self._watched.policy, self._watched.info
        return found

    def engine(self, policy: DiffusionPolicy) -> Engine:
        """An engine for a policy."""
        config = self._config
        return Engine(
            policy, self._sampler, max_chains=config.max_chains, finish_steps=config.finish_steps,
            adaptive=config.adaptive,
        )  # fmt: skip

    def first_observations(self) -> Sequence[Mapping[str, NDArray[Any]]]:
        """What is drawn from before the first client."""
        middle = {key: value[0] for key, value in middle_observation(self.policy).items()}
        return [middle] * self._config.warm_up
