"""What `systems.py` samples: the shipped policy on stored observations, and a mixture with a closed-form denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scaling import Target
from torch import Tensor

from diffpolicy_spec import BoundSampler, Denoise, SamplerConfig, Schedule, bind, calibrate, load_policy

__all__ = ["PROBLEMS", "Problem", "closed_form_problem", "make_problem", "policy_problem"]

# 64 conditions of the shipped Lift policy, (64, 38) float32: held-out moments of our own scripted demonstrations, by
# `draw_conditions(policy, dataset, 64, "valid", seed=1)`.
OBSERVATIONS = Path(__file__).parent / "lift_observations.safetensors"

PROBLEMS = ("lift", "closed_form")
CLOSED_FORM = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample",
               "clip_sample": False}  # fmt: skip

Networks = Callable[[Tensor], tuple[Denoise, Denoise]]


@dataclass(frozen=True)
class Problem:
    """Something to sample.

    Attributes:
        title: as the tables say it.
        scheduler_config: of the chain.
        speculation: gains by name.
        chunk: (Tp, Da).
        observations: how many there are.
        networks: (n,) long, the observation of each chain -> the network and the draft network under them.
        device: where all of this is.
    """

    title: str
    scheduler_config: Mapping[str, Any]
    speculation: Mapping[str, Tensor]
    chunk: tuple[int, int]
    observations: int
    networks: Networks
    device: torch.device

    def bind(self, config: SamplerConfig) -> BoundSampler:
        """The sampler for this chain."""
        return bind(config, self.scheduler_config, self.speculation, has_draft=True)


def policy_problem(name: str, observations: int, device: torch.device) -> Problem:
    """A policy with gains and a draft network that reads the stored observations.

    Raises:
        ValueError: it has neither, or its conditions are of another size.
    """
    policy = load_policy(name, device=device)
    conditions = load_file(OBSERVATIONS)["conditions"].to(device)
    if conditions.shape[1] != policy.config.condition_dim:
        raise ValueError(
            f"{OBSERVATIONS.name} holds conditions of {conditions.shape[1]} numbers, the policy {name!r} reads "
            f"{policy.config.condition_dim}: only policies with the shipped Lift policy's observations fit"
        )
    if policy.draft_network is None or not policy.speculation:
        raise ValueError(f"the policy {name!r} lacks gains or a draft network: dps-calibrate, dps-train draft=PATH")
    conditions = conditions[:observations]

    def networks(which: Tensor) -> tuple[Denoise, Denoise]:
        condition = conditions[which]
        draft = policy.drafter(condition)
        assert draft is not None
        return policy.denoiser(condition), draft

    return Problem(
        f"policy {name}", policy.scheduler_config, policy.speculation,
        (policy.config.horizon, policy.config.action_dim), len(conditions), networks, policy.device,
    )  # fmt: skip


def two_modes(dim: int) -> Target:
    """Two unequal ways to do it, of unequal width."""
    away = torch.from_numpy(np.random.default_rng(dim).normal(size=dim))
    return Target(
        torch.tensor([0.3, 0.7], dtype=torch.float64), 0.35 * torch.stack([-away, away]),
        torch.tensor([[0.15], [0.25]], dtype=torch.float64).expand(2, dim),
    )  # fmt: skip


def one_gaussian(target: Target, schedule: Schedule, device: torch.device) -> Denoise:
    """A smaller model of the target: the posterior mean under the Gaussian with its mean and covariance S.

        x0 = mu + sqrt(abar) S (abar S + (1 - abar) I)^-1 (x - sqrt(abar) mu)

    in the principal axes of S, where it is one number per coordinate.
    """
    mu = target.weights @ target.means
    off = target.means - mu
    S = torch.diag(target.weights @ target.sds**2) + (off.T * target.weights) @ off
    values, axes = torch.linalg.eigh(S)
    abar = schedule.abar[:, None]
    gain = (abar.sqrt() * values / (abar * values + 1 - abar)).to(device, torch.float32)
    center = (abar.sqrt() * mu).to(device, torch.float32)
    mu, axes = mu.to(device, torch.float32), axes.to(device, torch.float32)
    k_of_t = torch.zeros(schedule.num_train_timesteps, dtype=torch.long)
    k_of_t[schedule.timesteps] = torch.arange(schedule.num_steps)
    k_of_t = k_of_t.to(device)

    def draft(x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
        k = k_of_t[t]
        return (mu + ((x.flatten(1) - center[k]) @ axes * gain[k]) @ axes.T).view_as(x)

    return draft


def closed_form_problem(device: torch.device, chunk: tuple[int, int] = (16, 2)) -> Problem:
    """Two modes in D = 32, K = 100; the draft network is the best single Gaussian, the gains are calibrated here."""
    target, schedule = two_modes(chunk[0] * chunk[1]), Schedule.from_diffusers(CLOSED_FORM)
    denoise, draft = target.denoiser(schedule, device), one_gaussian(target, schedule, device)
    generator = torch.Generator().manual_seed(1)
    gains = calibrate(denoise, schedule, (512, *chunk), generator=generator, batch=1024, device=device)
    return Problem(
        f"two modes, D = {chunk[0] * chunk[1]}", CLOSED_FORM, gains.to(device).state_dict(), chunk, 1,
        lambda which: (denoise, draft), device,
    )  # fmt: skip


def make_problem(name: str, policy: str, observations: int, device: torch.device) -> Problem:
    """One of PROBLEMS."""
    return policy_problem(policy, observations, device) if name == "lift" else closed_form_problem(device)
