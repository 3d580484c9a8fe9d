"""`accelerate`: another sampling loop for a live policy, in place and to be taken off again.

A policy gets a class made for it, a subclass of its own with one method replaced and one property more. So nothing is
added that a state dict, `save_pretrained` or an optimizer would see; a pickle is that of the policy as it was.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

from diffpolicy_spec.acceleration.chain import as_config
from diffpolicy_spec.acceleration.families import PLAIN, Family, find, plain_class
from diffpolicy_spec.acceleration.sampling import LiveSampler
from diffpolicy_spec.acceleration.stored import read_stored
from diffpolicy_spec.runtime import RuntimeConfig
from diffpolicy_spec.samplers import SamplerConfig
from diffpolicy_spec.stats import SampleStats

__all__ = ["accelerate", "accelerated", "decelerate"]

Policy = TypeVar("Policy")

_STATE = "_diffpolicy_spec_sampler"


def accelerate(
    policy: Policy,
    sampler: SamplerConfig | str = "auto",
    *,
    runtime: RuntimeConfig | None = None,
    speculation: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
) -> Policy:
    """Make a live policy of LeRobot, diffusion_policy or robomimic sample exactly and fast, in place.

    Only its sampling loop is replaced, on this object: queues, observation encoding, normalisation, device, dtype, mode
    and what its methods return stay. After every chunk `policy.last_sample_stats` has its `SampleStats`. Accelerated
    again, it takes the new settings; `decelerate` takes them off; a deep copy is accelerated, too; pickles, state dicts
    and saved folders are those of the policy as it was. Chunks carry no gradient.

    Published networks in float32 run in this package's layouts on the policy's own parameters: weights may change,
    move or be loaded at any time. Others, and calls under autocast, are run as they are.

    Args:
        policy: LeRobot's DiffusionPolicy, one of diffusion_policy's five, or robomimic's algo or RolloutPolicy.
        sampler: what to sample with: a `SamplerConfig` or a method's name. "auto": what dps-calibrate found quickest on
            this device, if `speculation` is a folder that has it, else the default speculative sampler. What a config
            leaves open (steps, eta) is as the policy has it. "ddpm" and "ddim" draw noise in the order upstream does:
            the same seed gives upstream's chunk. Exact samplers that need noise, over a DDIM policy, draw the DDPM
            chain of all training timesteps.
        runtime: how rounds are run, where the sampler does not say; None: eager.
        speculation: gains and draft network: the folder of a native checkpoint of the same weights (dps-convert, then
            dps-calibrate), or tensors by name.

    Returns:
        The same object.

    Raises:
        AccelerateError: an unknown object, a loop of its own, a chain without noise, or speculation made for others.
        ScheduleError, ValueError: a sampler that does not fit the policy's chain.
    """
    owner, family = find(policy)
    made = LiveSampler(as_config(sampler), runtime, read_stored(speculation))
    made.check(family.network(owner), family.chain(owner))
    _put(owner, family, made)
    if policy is not owner:
        _take_off(policy)
        _set_class(policy, _watching(type(policy), _place_of(policy, owner)))
    return policy


def decelerate(policy: Policy) -> Policy:
    """Give a policy back its own sampling loop. One that is not accelerated stays as it is.

    Returns:
        The same object.

    Raises:
        AccelerateError: an unknown object.
    """
    owner, _ = find(policy)
    _take_off(owner)
    _take_off(policy)
    return policy


@contextmanager
def accelerated(policy: Policy, sampler: SamplerConfig | str = "auto", **options: Any) -> Iterator[Policy]:
    """`accelerate` within a with block; afterwards the policy is as it was before. Arguments as there."""
    owner, family = find(policy)
    before = vars(owner).get(_STATE)
    try:
        yield accelerate(policy, sampler, **options)
    finally:
        if before is None:
            decelerate(policy)
        else:
            _put(owner, family, before)


def _put(owner: Any, family: Family, sampler: LiveSampler) -> None:
    _take_off(owner)
    _set_class(owner, _sampling(type(owner), family))
    object.__setattr__(owner, _STATE, sampler)  # nn.Module's own would look whether it is a submodule


def _take_off(thing: Any) -> None:
    plain = plain_class(thing)
    if plain is not type(thing):
        _set_class(thing, plain)
        vars(thing).pop(_STATE, None)


def _set_class(thing: Any, kind: type) -> None:
    object.__setattr__(thing, "__class__", kind)


def _place_of(policy: Any, owner: Any) -> str:
    """Under which name the owner of the loop stands in a policy around it."""
    return "diffusion" if getattr(policy, "diffusion", None) is owner else "policy"


def _sampling(plain: type, family: Family) -> type:
    """A subclass with the loop replaced."""
    upstream = getattr(plain, family.method)

    def loop(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return family.loop(vars(self)[_STATE], self, *args, **kwargs)

    def last_sample_stats(self: Any) -> SampleStats | None:
        return vars(self)[_STATE].stats

    return _subclass(plain, {
        family.method: functools.update_wrapper(loop, upstream, assigned=("__name__", "__qualname__", "__doc__")),
        "last_sample_stats": property(last_sample_stats, doc="SampleStats of the last chunk, or None."),
    })  # fmt: skip


def _watching(plain: type, attribute: str) -> type:
    """A subclass of what stands around the loop's owner: it shows the owner's statistics."""

    def last_sample_stats(self: Any) -> SampleStats | None:
        return getattr(getattr(self, attribute), "last_sample_stats", None)

    return _subclass(plain, {
        "last_sample_stats": property(last_sample_stats, doc="SampleStats of the last chunk, or None."),
    })  # fmt: skip


def _subclass(plain: type, members: Mapping[str, Any]) -> type:
    meta: Callable[..., type] = type(plain)
    return meta(plain.__name__, (plain,), {
        "__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__, PLAIN: plain,
        "__reduce_ex__": _reduce, "__deepcopy__": _deepcopy, **members,
    })  # fmt: skip


def _as_it_was(thing: Any) -> Any:
    """A shallow copy of the class it had, without what was put in."""
    plain = plain_class(thing)
    twin: Any = object.__new__(plain)
    vars(twin).update({name: value for name, value in vars(thing).items() if name != _STATE})
    return twin


def _reduce(self: Any, protocol: Any) -> Any:
    """Pickles and shallow copies are those of the policy as it was."""
    made, *rest = _as_it_was(self).__reduce_ex__(protocol)
    # pickle asks of __newobj__ that the class be the object's own, which is the one made here.
    return object.__new__ if made.__name__ == "__newobj__" else made, *rest


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    """A deep copy, accelerated with the same settings."""
    kind, sampler = type(self), vars(self).get(_STATE)
    twin = copy.deepcopy(_as_it_was(self), memo)
    memo[id(self)] = twin
    _set_class(twin, kind)
    if sampler is not None:
        object.__setattr__(twin, _STATE, sampler.fresh())
    return twin
