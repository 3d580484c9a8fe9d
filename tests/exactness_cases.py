"""What is drawn in the exactness tests: targets, chains, drafters by name, and samplers of the battery's form."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from closed_form import Mixture, gaussian, two_modes
from torch import Tensor

from diffpolicy_spec import Gains, Nearest, Noise, Parent, Picard, Sample, Schedule, calibrate, draw_noise
from diffpolicy_spec.drafting import Drafter, Model
from diffpolicy_spec.networks import Denoise
from diffpolicy_spec.sampling import sample_ddim, sample_ddpm, sample_speculative
from diffpolicy_spec.trees import sample_tree
from diffpolicy_spec.verification import VERIFIERS

# Samples of a case, and of the sequential sampler: `closed_form.assert_same_law` states what they see.
N, REFERENCE = {"steps": 100_000, "block": 50_000, "tree": 50_000}, 400_000
BATCH = 25_000

Sampler = Callable[[Denoise, Schedule, Noise], Sample]


@dataclass(frozen=True, eq=False)
class Case:
    """A target and the chain that samples it: K steps of `train`, changes of the scheduler's config, DDIM's eta."""

    target: Mixture
    K: int
    train: int = 100
    eta: float | None = None
    config: tuple[tuple[str, Any], ...] = ()


def _case(target: Mixture, K: int, train: int = 100, eta: float | None = None, **config: Any) -> Case:
    return Case(target, K, train, eta, tuple(config.items()))


# The three kinds of chains, each crossed with all predictions.
CHAINS = {
    "ddpm": _case(two_modes(2, seed=1), 12, train=12),
    "respaced": _case(two_modes(3, seed=4), 10),
    "ddim": _case(two_modes(2, seed=5), 10, eta=0.6),
}
PREDICTIONS = ("epsilon", "sample", "v_prediction")
# Targets and settings that something else may depend on.
SPECIAL = {
    "gaussian D=1 K=5": _case(gaussian(1), 5),
    "anisotropic D=8 K=10": _case(gaussian(8, stretch=1.5), 10),
    "two modes D=32 K=8": _case(two_modes(32), 8, prediction_type="epsilon"),
    "clipped D=2 K=16": _case(two_modes(2, seed=3), 16, clip_sample=True, clip_sample_range=0.4),
    "fixed_large, noisy last step D=3 K=9": _case(
        two_modes(3), 9, variance_type="fixed_large", timestep_spacing="trailing", prediction_type="v_prediction"),
}  # fmt: skip
OTHER = {
    "two modes D=2 K=20": _case(two_modes(2), 20),
    "two modes D=2 K=100": _case(two_modes(2, seed=8), 100),
    "two modes D=32 K=100": _case(two_modes(32, seed=8), 100),
}
CASES = CHAINS | SPECIAL | OTHER
ANALYTIC = ("gaussian D=1 K=5", "anisotropic D=8 K=10")  # the law of the whole chain is known

KINDS = ("parent", "nearest", "drift", "drift nearest", "model", "model that breaks", "picard", "secant", "gain",
         "gain, one sweep", "corrector", "corrector that breaks", "warm start")  # fmt: skip
"""Drafters, with `sample_speculative`."""

TREES: dict[str, dict[str, Any]] = {
    "two children": {"children": 2, "depth": 3},
    "fewer further down": {"children": [4, 2, 1], "depth": 3},
    "five children, one level": {"children": 5, "depth": 1},
    "a line longer than the chain": {"children": 1, "depth": 25},
}


@functools.cache
def schedule_of(name: str, prediction: str | None = None) -> Schedule:
    case = CASES[name]
    config = {"num_train_timesteps": case.train, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample",
              "clip_sample": False, **dict(case.config)}  # fmt: skip
    if prediction is not None:
        config["prediction_type"] = prediction
    return Schedule.from_diffusers(config, None if case.K == case.train else case.K, eta=case.eta)


def seed_of(*names: object) -> int:
    return zlib.crc32("".join(map(str, names)).encode())


def run(name: str, sampler: Sampler, n: int, seed: int, prediction: str | None = None, batch: int = BATCH) -> Tensor:
    """n samples (n, D) in batches; what the noise lacks is drawn from torch's own generator, with the same seed."""
    target, schedule = CASES[name].target, schedule_of(name, prediction)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    parts = []
    for begin in range(0, n, batch):
        noise = draw_noise((min(batch, n - begin), target.dim, 1), schedule, generator)
        parts.append(sampler(target.denoiser(schedule), schedule, noise).x0.flatten(1))
    return torch.cat(parts)


def sequential(denoise: Denoise, schedule: Schedule, noise: Noise) -> Sample:
    return (sample_ddpm if schedule.kind == "ddpm" else sample_ddim)(denoise, schedule, noise)


@functools.cache
def reference(name: str, n: int | None = None, batch: int = BATCH) -> Tensor:
    """Sequential samples. One set serves all predictions: in closed form they say the same x0."""
    return run(name, sequential, n or REFERENCE, seed=1, batch=batch)


@functools.cache
def gains(name: str, prediction: str | None = None) -> Gains:
    target, schedule = CASES[name].target, schedule_of(name, prediction)
    return calibrate(target.denoiser(schedule), schedule, (512, target.dim, 1),
                     generator=torch.Generator().manual_seed(2))  # fmt: skip


def drafter_of(kind: str, name: str, prediction: str | None = None) -> Drafter:
    return {
        "parent": Parent,
        "nearest": Nearest,
        "drift": lambda: Parent("drift"),
        "drift nearest": lambda: Nearest("drift"),
        "model": Model,
        "model that breaks": Model,
        "picard": lambda: Picard(memory=0),
        "secant": lambda: Picard(memory=3),
        "gain": lambda: Picard(memory=1, gains=gains(name, prediction)),
        "gain, one sweep": lambda: Picard(memory=0, gains=gains(name, prediction), sweeps=1),
        "corrector": lambda: Picard(memory=1, corrector=True),
        "corrector that breaks": lambda: Picard(memory=0, corrector=True, sweeps=1, first_sweeps=2),
        "warm start": lambda: Picard(memory=1, gains=gains(name, prediction)),
    }[kind]()


def draft_of(kind: str, name: str, schedule: Schedule) -> Denoise | None:
    """A draft network for the kinds that have one: near the target, poor, or poor and not even finite at times."""
    if not kind.startswith(("model", "corrector")):
        return None
    target = CASES[name].target
    if kind == "model":  # the posterior mean of a wrong target
        wrong = Mixture(target.weights, target.means + 0.2, 1.5 * target.covs)
        return wrong.denoiser(replace(schedule, prediction_type="sample"))

    def poor(x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
        return 0.5 * x.tanh()

    def breaks(x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
        bad = (x > 0.8) | (t % 3 == 0).view(-1, 1, 1)
        return torch.where(bad, torch.where(x > 0, torch.nan, -torch.inf), 0.5 * x.tanh())

    return poor if kind == "corrector" else breaks


def speculate(
    kind: str, name: str, window: int | str, verifier: str = "steps", prediction: str | None = None
) -> Sampler:
    """A sampler of the battery's form."""

    def sampler(denoise: Denoise, schedule: Schedule, noise: Noise) -> Sample:
        warm = None
        if kind == "warm start":  # any plan that does not know the noise, missing for half of the chains
            warm = torch.full_like(noise.start, 0.3)
            warm[::2] = torch.nan
        return sample_speculative(
            denoise, schedule, noise, drafter=drafter_of(kind, name, prediction), verifier=VERIFIERS[verifier],
            window=window, warm_start=warm, draft=draft_of(kind, name, schedule),
        )  # fmt: skip

    return sampler


def tree(shape: str) -> Sampler:
    return lambda denoise, schedule, noise: sample_tree(denoise, schedule, noise, **TREES[shape])
