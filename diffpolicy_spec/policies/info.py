"""What a control loop, a server's client or a log has to know of a policy."""

from __future__ import annotations

from diffpolicy_spec.choice.fingerprint import fingerprint
from diffpolicy_spec.control.protocols import PolicyInfo
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.samplers import BoundSampler, SamplerConfig

__all__ = ["policy_info", "policy_name", "sampler_name"]


def policy_info(
    policy: DiffusionPolicy, sampler: BoundSampler | SamplerConfig | None = None, *, name: str = ""
) -> PolicyInfo:
    """Shapes, conventions and identity of a policy, as plain data.

    Args:
        sampler: how its chunks are drawn; None: its default.
        name: of the policy, for messages; "": its task's.

    Raises:
        ScheduleError, ValueError: the policy cannot be sampled so, see `DiffusionPolicy.bind`.
    """
    config = policy.config
    return PolicyInfo(
        obs_dims=dict(config.obs_dims),
        image_shapes=dict(config.image_shapes),
        n_obs_steps=config.n_obs_steps,
        n_action_steps=config.n_action_steps,
        horizon=config.horizon,
        action_dim=config.action_dim,
        first=config.first,
        action_repr=config.action_repr,
        policy=policy_name(policy, name),
        sampler=sampler_name(sampler if isinstance(sampler, BoundSampler) else policy.bind(sampler)),
    )


def policy_name(policy: DiffusionPolicy, name: str = "") -> str:
    """Name and fingerprint of all that a policy's chunks depend on: network, encoder, statistics, speculation."""
    tensors = {f"normalizer.{key}": value for key, value in policy.normalizer.state_dict().items()}
    if policy.encoder is not None:
        tensors |= {f"encoder.{key}": value for key, value in policy.encoder.state_dict().items()}
    tensors |= {f"speculation.{key}": value for key, value in (policy.speculation or {}).items()}
    return f"{name or policy.config.task or 'policy'} {fingerprint(policy.network, tensors)}"


def sampler_name(sampler: BoundSampler) -> str:
    """A sampler in words: "speculative, 100 steps, window 32"."""
    config, schedule = sampler.config, sampler.schedule
    told = [config.method, f"{schedule.num_steps} steps"]
    if schedule.kind == "ddim":
        told.append(f"eta {schedule.eta:g}")
    told += [f"{key} {value}" for key, value in config.options.items()]
    return ", ".join(told)
