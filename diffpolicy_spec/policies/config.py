"""What a policy is, as plain data: it stands in a checkpoint's config.json and in configs/model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from diffpolicy_spec.rotations import ACTION_REPRS

__all__ = ["PolicyConfig", "UnetConfig"]



@dataclass(frozen=True)
class UnetConfig:
    """Sizes of the ConditionalUnet1D; see there."""

    down_dims: tuple[int, ...] = (256, 512, 1024)
    kernel_size: int = 5
    n_groups: int = 8
    diffusion_step_embed_dim: int = 256
    cond_predict_scale: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "down_dims", tuple(int(d) for d in self.down_dims))


@dataclass(frozen=True)
class PolicyConfig:
    """Shapes and conventions of a low-dimensional diffusion policy.

    Attributes:
        task: name of the task it was trained on, for `make_env(task)`; may be empty.
        obs_dims: observation key -> dimensions, in the order in which the network takes them.
        action_dim: Da, dimensions of the policy's action (10 for pos + rot6d + gripper).
        action_repr: what the action means: one of ACTION_REPRS.
        horizon: T, actions a plan holds.
        n_obs_steps: To, observations it looks at; action To - 1 of the plan belongs to the newest one.
        n_action_steps: Ta, actions executed before the next plan.
        unet: sizes of the network.

    Raises:
        ValueError: shapes that do not fit together, naming the field.
    """

    obs_dims: dict[str, int]
    action_dim: int
    action_repr: str
    task: str = ""
    horizon: int = 16
    n_obs_steps: int = 2
    n_action_steps: int = 8
    unet: UnetConfig = field(default_factory=UnetConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "obs_dims", {str(k): int(v) for k, v in self.obs_dims.items()})
        if not self.obs_dims or any(d < 1 for d in self.obs_dims.values()):
            raise ValueError(f"obs_dims must name at least one key, each with a positive size; got {self.obs_dims}")
        for name in ("action_dim", "horizon", "n_obs_steps", "n_action_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.action_repr not in ACTION_REPRS:
            raise ValueError(f"action_repr must be one of {', '.join(ACTION_REPRS)}; got '{self.action_repr}'")
        if self.action_repr == "absolute_rot6d" and self.action_dim % 10:
            raise ValueError(f"absolute_rot6d needs 10 dimensions an arm, got action_dim={self.action_dim}")
        if self.n_obs_steps - 1 + self.n_action_steps > self.horizon:
            raise ValueError(
                f"n_obs_steps - 1 + n_action_steps = {self.n_obs_steps - 1 + self.n_action_steps} "
                f"passes the horizon {self.horizon}"
            )
        factor = 2 ** (len(self.unet.down_dims) - 1)
        if self.horizon % factor:
            raise ValueError(f"horizon must be divisible by {factor} for {len(self.unet.down_dims)} levels")

    @property
    def obs_keys(self) -> tuple[str, ...]:
        """Observation keys in the network's order."""
        return tuple(self.obs_dims)

    @property
    def obs_dim(self) -> int:
        """Do, dimensions of one observation."""
        return sum(self.obs_dims.values())

    @property
    def condition_dim(self) -> int:
        """To * Do, dimensions of the network's condition."""
        return self.n_obs_steps * self.obs_dim

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the order of obs_dims matters and is kept."""
        data = asdict(self)
        data["unet"]["down_dims"] = list(self.unet.down_dims)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PolicyConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: unknown or missing names, or values that do not fit.
        """
        values = dict(data)
        unet = values.pop("unet", {})
        if not isinstance(unet, Mapping):
            raise ValueError(f"policy config: 'unet' must be a mapping, got {type(unet).__name__}")
        _check_names("policy config", cls, values)
        _check_names("policy config: unet", UnetConfig, unet)
        missing = [n for n in ("obs_dims", "action_dim", "action_repr") if n not in values]
        if missing:
            raise ValueError(f"policy config lacks {', '.join(missing)}")
        if not isinstance(values["obs_dims"], Mapping):
            raise ValueError("policy config: 'obs_dims' must map observation keys to their dimensions")
        return cls(**values, unet=UnetConfig(**unet))


def _check_names(what: str, cls: type, values: Mapping[str, Any]) -> None:
    unknown = sorted(set(values) - {f.name for f in fields(cls)})
    if unknown:
        raise ValueError(f"{what}: unknown {', '.join(unknown)}")
