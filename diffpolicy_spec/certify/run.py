"""Certification of a sampler on a policy: draw, compare, measure the power, report."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpolicy_spec.samplers import SamplerConfig

from .battery import compare, needed_permutations
from .draws import draw_chunks
from .power import Power, measure_false_alarms, measure_power
from .verdict import Verdict

__all__ = ["certify", "describe_checkpoint", "reference_of"]

_REFERENCE, _CANDIDATE, _PLANS, _POWER, _NULL = range(5)
_WARM_PLANS = 16


def _silent(what: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    return iter


def reference_of(config: SamplerConfig) -> SamplerConfig:
    """The sequential sampler a candidate is held against.

    Speculative samplers, trees and ParaDiGMS mean to draw from their own chain, so the reference is its sequential
    sampler: DDPM with as many steps, or DDIM with the same eta. A sequential sampler (DDIM, or DDPM of few steps) is
    its own chain; it is held against the policy's full DDPM chain.
    """
    if config.method in ("ddpm", "ddim"):
        return SamplerConfig("ddpm")
    if config.eta is None:
        return SamplerConfig("ddpm", config.num_inference_steps)
    return SamplerConfig("ddim", config.num_inference_steps, config.eta)


def certify(
    policy: Any,
    sampler: SamplerConfig,
    conditions: Tensor,
    *,
    chunks: int = 400,
    alpha: float = 1e-3,
    reference: SamplerConfig | None = None,
    splits: int = 20,
    seed: int = 0,
    batch: int = 256,
    checkpoint: dict[str, Any] | None = None,
    source: str = "given",
    environment: dict[str, Any] | None = None,
    progress: Callable[[str], Callable[[Iterable[Any]], Iterable[Any]]] = _silent,
) -> Verdict:
    """Compare a sampler with the sequential one on a policy's own observations.

    Of every observation, `chunks` are drawn with the candidate and 2 x `chunks` with the reference, all with
    independent noise. The first half of the reference's is compared with the candidate's; both halves serve to measure
    the power. Every second chain of the candidate is given a plan to warm-start with: another chunk of its observation,
    shifted by the executed actions, drawn for this purpose alone.

    Args:
        policy: a `DiffusionPolicy`.
        conditions: (O, C), from `policy.encode`.
        alpha: overall false-alarm rate.
        reference: default `reference_of` the sampler, as it is bound.
        splits: repetitions of the measurement of power; 0: it is not measured.
        batch: chains per call of a sampler.
        checkpoint, source, environment: for the report; see `Verdict`.
        progress: what is being done -> a wrapper of its iterations.

    Raises:
        ValueError: settings out of range, or a sampler that cannot be bound to this policy.
    """
    begin = time.perf_counter()
    for name, value, lowest in (("chunks", chunks, 8), ("splits", splits, 0), ("batch", batch, 1), ("seed", seed, 0)):
        if value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}")
    needed_permutations(alpha)
    candidate = policy.bind(sampler)
    sequential = policy.bind(reference_of(candidate.config) if reference is None else reference)

    def draw(bound: Any, count: int, stream: int, what: str, plans: Tensor | None = None) -> Any:
        return draw_chunks(
            policy, bound, conditions, count, seed=(seed, stream), batch=batch, plans=plans, progress=progress(what)
        )

    plans, _ = draw(sequential, _WARM_PLANS, _PLANS, "plans to start from")
    drawn, reference_cost = draw(sequential, 2 * chunks, _REFERENCE, "sequential chunks")
    ours, cost = draw(candidate, chunks, _CANDIDATE, "candidate chunks", _shift(plans, policy.config.n_action_steps))
    tests = compare(drawn[:, :chunks], ours, conditions.cpu(), alpha=alpha)
    power: tuple[Power, ...] = ()
    null_splits = None
    if splits:
        given = conditions.cpu()
        power = measure_power(
            drawn, given, alpha=alpha, splits=splits, seed=seed + _POWER, progress=progress("power")
        )  # fmt: skip
        alarms = measure_false_alarms(drawn, given, alpha=alpha, splits=splits, seed=seed + _NULL)
        null_splits = (alarms, splits)
    return Verdict(
        sampler=_plain(candidate.config), reference=_plain(sequential.config), checkpoint=checkpoint,
        observations=len(conditions), source=source, chunks=chunks, chunk=(drawn.shape[2], drawn.shape[3]),
        alpha=alpha, tests=tests, power=power, null_splits=null_splits, cost=cost, reference_cost=reference_cost,
        seed=seed, seconds=time.perf_counter() - begin,
        environment=environment or {"versions": {"torch": torch.__version__}},
    )  # fmt: skip


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Name of a checkpoint, a folder or a file, and the SHA-256 of its files: what exactly was certified."""
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in (".json", ".safetensors"))
    return {"name": path.name, "sha256": {file.name: _sha256(file) for file in files}}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _shift(plans: Tensor, steps: int) -> Tensor:
    """Plans (O, P, Tp, Da) as seen `steps` later; the last action stands for those that were not reached."""
    last = plans.shape[2] - 1
    return plans[:, :, (torch.arange(last + 1) + steps).clamp(max=last)]


def _plain(config: SamplerConfig) -> dict[str, Any]:
    return {
        "method": config.method, "num_inference_steps": config.num_inference_steps, "eta": config.eta,
        "options": dict(config.options),
    }  # fmt: skip
