"""A cell of an evaluation: what is held fixed while seeds vary, and the name it is filed under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["Cell", "fingerprint_of"]


def fingerprint_of(policy: Any) -> str:
    """16 hex digits of the tensors that a policy's chunks depend on, see `choice.fingerprint`.

    Policies of this package without cameras are known by their network and what is stored for speculation alone: so
    stores have it. Of others the encoder and the statistics count as well.
    """
    from diffpolicy_spec.choice.fingerprint import fingerprint

    tensors = dict(policy.speculation or {})
    if policy.encoder is not None or policy.origin:
        tensors |= {f"normalizer.{name}": value for name, value in policy.normalizer.state_dict().items()}
    if policy.encoder is not None:
        tensors |= {f"encoder.{name}": value for name, value in policy.encoder.state_dict().items()}
    return fingerprint(policy.network, tensors)


@dataclass(frozen=True)
class Cell:
    """One policy with one sampler on one task.

    Attributes:
        task: name in the task table.
        policy: how the policy was named; a label only.
        policy_fingerprint: of its weights, see `fingerprint_of`.
        sampler: the sampler's name, the same for the same settings in one report.
        sampler_config: its `SamplerConfig` as plain data.
        runtime: the `RuntimeConfig` it runs in, as plain data.
        exact: whether it draws from the law of the policy's DDPM chain: of all training timesteps, or of its own fewer.
        verifies: whether it tests its drafts.
        reference: whether it is that chain, sampled step by step.
        reference_steps: steps of that chain.
        timesteps: (K,) training timestep of each denoising step.
        action_repr: what an action means.
        n_action_steps: Ta, actions executed of a chunk.
        control_freq: actions a second the task was made for, Hz.
        max_steps: steps after which an episode ends.
        mode: "lockstep", the world waits for the policy, or "realtime", it does not.
        control_hz: steps a second of the world that does not wait; None in lockstep.
        latency: "measured", or the milliseconds each chunk is said to take; None in lockstep.
        meanwhile: what the robot does while it waits: "continue" the old chunk or "hold"; None in lockstep.
        environment: what differs from the task's own, see `EnvConfig.changes`; None: nothing.
    """

    task: str
    policy: str
    policy_fingerprint: str
    sampler: str
    sampler_config: dict[str, Any]
    runtime: dict[str, Any]
    exact: bool
    verifies: bool
    reference: bool
    reference_steps: int
    timesteps: tuple[int, ...]
    action_repr: str
    n_action_steps: int
    control_freq: float
    max_steps: int
    mode: str = "lockstep"
    control_hz: float | None = None
    latency: str | float | None = None
    meanwhile: str | None = None
    environment: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "timesteps", tuple(int(t) for t in self.timesteps))

    @property
    def id(self) -> str:
        """16 hex digits of everything that an episode or its latency depends on by design.

        Not of the machine, the number of workers or the policy's name: an evaluation goes on elsewhere.
        """
        return hashlib.sha256(json.dumps({**self.to_dict(), "policy": None}, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """The sampler's name, with the rate and the latency where the world does not wait."""
        if self.mode == "lockstep":
            return self.sampler
        latency = "" if self.latency == "measured" else f", {self.latency:g} ms"
        holds = ", holds" if self.meanwhile == "hold" else ""
        return f"{self.sampler} at {self.control_hz:g} Hz{latency}{holds}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `environment` only where it says something, as stores before it had it."""
        data = {**asdict(self), "timesteps": list(self.timesteps)}
        if self.environment is None:
            del data["environment"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cell:
        """The inverse of `to_dict`.

        Raises:
            ValueError: names that are missing or unknown.
        """
        known = {f.name for f in fields(cls)}
        missing, unknown = sorted(known - set(data) - {"environment"}), sorted(set(data) - known)
        if missing or unknown:
            raise ValueError(f"not a cell: missing {missing}, unknown {unknown}")
        return cls(**data)
