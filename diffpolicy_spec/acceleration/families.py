"""The live policies that are known: where their sampling loop is, and what stands in its place.

Each function has the arguments and the result of the loop it replaces. What is around it is upstream's own.

LeRobot 0.4.4: `DiffusionModel.conditional_sample`. diffusion_policy: `conditional_sample` of its five policy classes.
robomimic 0.4, 0.5: `DiffusionPolicyUNet._get_action_trajectory`, which encodes observations and cuts out actions, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffpolicy_spec.acceleration.errors import SUPPORTED, AccelerateError
from diffpolicy_spec.acceleration.sampling import Chunk, LiveChain, LiveSampler
from diffpolicy_spec.inpainting import Inpainting
from diffpolicy_spec.noise import Generator

__all__ = ["FAMILIES", "PLAIN", "Family", "find", "plain_class"]

PLAIN = "_diffpolicy_spec_class"
"""Where a class that was made for an accelerated object keeps the class that the object had."""


@dataclass(frozen=True)
class Family:
    """One kind of object with a sampling loop.

    Attributes:
        classes: names of its classes; a subclass counts as long as it has the loop from one of them.
        place: the package they are in.
        method: name of the loop.
        loop: what stands in its place: loop(sampler, owner, *arguments of the method).
        network: owner -> the network the loop calls now.
        chain: owner -> the chain it runs now.
    """

    classes: tuple[str, ...]
    place: str
    method: str
    loop: Callable[..., Tensor]
    network: Callable[[Any], nn.Module]
    chain: Callable[[Any], LiveChain]


def find(policy: Any) -> tuple[Any, Family]:
    """The object that has the sampling loop of a policy, the policy or what it is wrapped around, and its family.

    Raises:
        AccelerateError: an object that is not known, or one that has a loop of its own.
    """
    owner = policy
    if _is(policy, ("DiffusionPolicy",), "lerobot"):
        owner = policy.diffusion
    elif _is(policy, ("RolloutPolicy",), "robomimic"):
        owner = policy.policy
    for family in FAMILIES:
        if _is(owner, family.classes, family.place):
            _check_loop(owner, family)
            return owner, family
    within = "" if owner is policy else f" around {_name(owner)}"
    ours = type(policy).__module__.startswith("diffpolicy_spec.")
    why = "it samples with this package's samplers already: give predict_action a sampler" if ours else (
        "for a class of your own put dps.DenoisingLoop in the place of its loop: ten lines, see docs/accelerate.md"
    )  # fmt: skip
    raise AccelerateError(f"accelerate knows {SUPPORTED}. This is {_name(policy)}{within}: {why}")


def plain_class(thing: Any) -> type:
    """The class of an object, or the one it had before it was accelerated."""
    return type(thing).__dict__.get(PLAIN, type(thing))


def _is(thing: Any, classes: tuple[str, ...], place: str) -> bool:
    return any(c.__name__ in classes and c.__module__.split(".")[0] == place for c in plain_class(thing).__mro__)


def _check_loop(owner: Any, family: Family) -> None:
    home = next(c for c in plain_class(owner).__mro__ if family.method in c.__dict__)
    replaced = family.method in getattr(owner, "__dict__", {})
    if replaced or home.__name__ not in family.classes or home.__module__.split(".")[0] != family.place:
        where = "the object itself" if replaced else f"{home.__module__}.{home.__qualname__}"
        raise AccelerateError(
            f"{_name(owner)} has a {family.method} of its own ({where}), which accelerate would throw away. Put "
            "dps.DenoisingLoop in the place of the loop inside it: ten lines, see docs/accelerate.md"
        )


def _name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _lerobot_loop(
    sampler: LiveSampler,
    model: Any,
    batch_size: int,
    global_cond: Tensor | None = None,
    generator: Generator = None,
    noise: Tensor | None = None,
) -> Tensor:
    """DiffusionModel.conditional_sample -> (B, horizon, Da). noise: (B, horizon, Da), the chain's start."""
    parameter = next(model.parameters())
    shape = (batch_size, model.config.horizon, model.config.action_feature.shape[0])
    if noise is not None and tuple(noise.shape) != shape:
        raise ValueError(f"noise must be (B, horizon, action dimensions) = {shape}, got {tuple(noise.shape)}")
    device, dtype = (parameter.device, parameter.dtype) if noise is None else (noise.device, noise.dtype)
    chunk = Chunk(shape, device, dtype, _given(global_cond=global_cond), start=noise, generator=generator)
    return sampler.sample(model.unet, _with_global, _lerobot_chain(model), chunk)


def _lerobot_chain(model: Any) -> LiveChain:
    return LiveChain(model.noise_scheduler, int(model.num_inference_steps))


def _dp_loop(
    sampler: LiveSampler,
    policy: Any,
    condition_data: Tensor,
    condition_mask: Tensor,
    local_cond: Tensor | None = None,
    global_cond: Tensor | None = None,
    generator: Generator = None,
    **kwargs: Any,
) -> Tensor:
    """conditional_sample of the policies with a U-Net -> (B, T, D). kwargs go to scheduler.step."""
    chunk = _dp_chunk(condition_data, condition_mask, generator, global_cond=global_cond, local_cond=local_cond)
    return sampler.sample(policy.model, _with_both, _dp_chain(policy, kwargs), chunk)


def _dp_transformer_loop(
    sampler: LiveSampler,
    policy: Any,
    condition_data: Tensor,
    condition_mask: Tensor,
    cond: Tensor | None = None,
    generator: Generator = None,
    **kwargs: Any,
) -> Tensor:
    """conditional_sample of the policies with a Transformer -> (B, T, D). kwargs go to scheduler.step."""
    chunk = _dp_chunk(condition_data, condition_mask, generator, cond=cond)
    return sampler.sample(policy.model, _with_tokens, _dp_chain(policy, kwargs), chunk)


def _dp_chunk(data: Tensor, mask: Tensor, generator: Generator, **parts: Tensor | None) -> Chunk:
    inpaint = Inpainting(mask, data.detach().to(torch.float32)) if bool(mask.any()) else None
    shape = (data.shape[0], data.shape[1], data.shape[2])
    return Chunk(shape, data.device, data.dtype, _given(**parts), generator=generator, inpaint=inpaint)


def _dp_chain(policy: Any, options: Mapping[str, Any] | None = None) -> LiveChain:
    # predict_action gives the loop what the policy was made with.
    given = policy.kwargs if options is None else options
    return LiveChain(policy.noise_scheduler, int(policy.num_inference_steps), dict(given))


def _robomimic_loop(
    sampler: LiveSampler, algo: Any, obs_dict: Mapping[str, Tensor], goal_dict: Mapping[str, Tensor] | None = None
) -> Tensor:
    """DiffusionPolicyUNet._get_action_trajectory -> (B, action_horizon, Da).

    obs_dict: key -> (B, To, ...), or (B, ...) for one observation.
    """
    if algo.nets.training:
        raise AccelerateError("robomimic samples in evaluation mode only: call set_eval() (or start_episode()) first")
    horizon = algo.algo_config.horizon
    first, Ta, Tp = horizon.observation_horizon - 1, horizon.action_horizon, horizon.prediction_horizon
    observed = {key: _with_time(obs_dict[key], len(algo.obs_shapes[key])) for key in algo.obs_shapes}
    B = next(iter(observed.values())).shape[0]
    # The encoder sees one step a row, as upstream's `time_distributed` shows it.
    rows = {key: value.flatten(0, 1) for key, value in observed.items()}
    goals = None if goal_dict is None else {key: value.flatten(0, 1) for key, value in goal_dict.items()}
    features = _robomimic_nets(algo)["obs_encoder"](obs=rows, goal=goals)
    device = torch.device(algo.device)
    shape = (B, int(Tp), int(algo.ac_dim))
    chunk = Chunk(shape, device, torch.float32, {"global_cond": features.reshape(B, -1)})
    actions = sampler.sample(_robomimic_network(algo), _with_global_named, _robomimic_chain(algo), chunk)
    return actions[:, first : first + Ta]


def _with_time(value: Tensor, dims: int) -> Tensor:
    """(B, To, ...): what came without To gets it."""
    return value.unsqueeze(1) if value.ndim - 1 == dims else value


def _robomimic_nets(algo: Any) -> Any:
    """The nets that upstream samples with: the averaged ones where there are."""
    return (algo.nets if algo.ema is None else algo.ema.averaged_model)["policy"]


def _robomimic_network(algo: Any) -> nn.Module:
    return _robomimic_nets(algo)["noise_pred_net"]


def _robomimic_chain(algo: Any) -> LiveChain:
    config = algo.algo_config
    chosen = config.ddpm if config.ddpm.enabled else config.ddim
    return LiveChain(algo.noise_scheduler, int(chosen.num_inference_timesteps))


def _given(**parts: Tensor | None) -> dict[str, Tensor]:
    return {name: part for name, part in parts.items() if part is not None}


def _with_global(network: nn.Module, x: Tensor, t: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    return network(x, t, global_cond=parts.get("global_cond"))


def _with_global_named(network: nn.Module, x: Tensor, t: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    return network(sample=x, timestep=t, global_cond=parts.get("global_cond"))


def _with_both(network: nn.Module, x: Tensor, t: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    return network(x, t, local_cond=parts.get("local_cond"), global_cond=parts.get("global_cond"))


def _with_tokens(network: nn.Module, x: Tensor, t: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    return network(x, t, parts.get("cond"))


FAMILIES = (
    Family(("DiffusionModel",), "lerobot", "conditional_sample", _lerobot_loop, lambda m: m.unet, _lerobot_chain),
    Family(
        ("DiffusionUnetLowdimPolicy", "DiffusionUnetImagePolicy", "DiffusionUnetHybridImagePolicy"),
        "diffusion_policy", "conditional_sample", _dp_loop, lambda p: p.model, _dp_chain,
    ),
    Family(
        ("DiffusionTransformerLowdimPolicy", "DiffusionTransformerHybridImagePolicy"),
        "diffusion_policy", "conditional_sample", _dp_transformer_loop, lambda p: p.model, _dp_chain,
    ),
    Family(
        ("DiffusionPolicyUNet",), "robomimic", "_get_action_trajectory", _robomimic_loop, _robomimic_network,
        _robomimic_chain,
    ),
)  # fmt: skip
