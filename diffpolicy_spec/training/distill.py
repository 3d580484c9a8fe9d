"""Distilling a draft network from a policy, on the states that speculation visits.

Two things cost calls: what the draft network gets wrong where nothing is known yet, |s(x) - m(x)|, and what it gets
wrong about a move from an evaluated state to the next one of the same step, |(s(x') - s(x)) - (m(x') - m(x))|. Both
enter the acceptance in units of the step's noise, |v| = shift |error|, so that is what is minimised, on pairs (x, x')
recorded while the sampler runs with the network as it is, round after round (as in DAgger, arXiv 1011.0686).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpolicy_spec.drafting import Picard, Running, SmallNetwork
from diffpolicy_spec.noise import draw_noise
from diffpolicy_spec.policies.diffusion import DiffusionPolicy
from diffpolicy_spec.policies.draft import DraftNetwork
from diffpolicy_spec.samplers import SamplerConfig
from diffpolicy_spec.sampling import sample_speculative
from diffpolicy_spec.schedule import Schedule, StepTables
from diffpolicy_spec.scheduler_settings import training_abar
from diffpolicy_spec.verification import Outcome
from diffpolicy_spec.window import Draft, Window, WindowSize

__all__ = ["DistillConfig", "Pairs", "distill", "record_pairs"]


@dataclass(frozen=True)
class DistillConfig:
    """How a draft network is distilled.

    Attributes:
        hidden, depth: its size.
        max_steps: optimiser steps in all, spread over the rounds.
        rounds: recordings; the first without a draft network.
        chains: chains of a recording, each with a condition of its own.
        windows: recorded in turn.
        batch_size: pairs a step.
        lr, weight_decay: of AdamW; the learning rate falls to zero along a cosine.
        anchor: weight of |s(x') - m(x')| where the step had been evaluated before.
        seed: of weights, noise, and batches.
    """

    hidden: int = 288
    depth: int = 3
    max_steps: int = 4_000
    rounds: int = 4
    chains: int = 256
    windows: tuple[WindowSize, ...] = ("all", 32)
    batch_size: int = 512
    lr: float = 2e-3
    weight_decay: float = 1e-5
    anchor: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", tuple(self.windows))
        for name in ("hidden", "depth", "max_steps", "rounds", "chains", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"distillation: {name} must be positive, got {getattr(self, name)}")
        if not self.windows:
            raise ValueError("distillation: windows must not be empty")


@dataclass(frozen=True)
class Pairs:
    """States of one step of one chain and the network's x0 there, one evaluation after the other.

    chain, k: (n,) long; x, m: (n, D) the newer; x_old, m_old: (n, D) the one before, or the newer again where `first`:
    (n,) bool says that there is none.
    """

    chain: Tensor
    k: Tensor
    x: Tensor
    m: Tensor
    x_old: Tensor
    m_old: Tensor
    first: Tensor

    def __len__(self) -> int:
        return len(self.k)

    def at(self, rows: Tensor) -> Pairs:
        """Some of them."""
        return Pairs(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@torch.no_grad()
def record_pairs(
    policy: DiffusionPolicy,
    schedule: Schedule,
    conditions: Tensor,
    network: DraftNetwork | None,
    *,
    window: WindowSize = "all",
    generator: torch.Generator | None = None,
) -> Pairs:
    """Sample a chunk for each condition (B, C), with `network` correcting the drafts, and keep all it evaluates."""
    shape = (len(conditions), policy.config.horizon, policy.config.action_dim)
    noise = draw_noise(shape, schedule, generator, conditions.device)
    drafter = _Watched(Picard(memory=1, corrector=network is not None), [])
    draft = None if network is None else lambda x, t, chain: network(x, t, conditions[chain])
    sample_speculative(policy.denoiser(conditions), schedule, noise, drafter=drafter, window=window, draft=draft)
    return Pairs(*(torch.cat(column) for column in zip(*drafter.seen, strict=True)))


def distill(
    policy: DiffusionPolicy,
    conditions: Tensor,
    config: DistillConfig | None = None,
    *,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> DraftNetwork:
    """Train a draft network for a policy.

    Args:
        conditions: (M, To * Do) of observations the policy meets, on its device; chains take them in random order.
        progress: wraps the iteration over optimiser steps, such as `tqdm`.

    Raises:
        ValueError: settings that cannot be used, or a loss that is not finite.
    """
    config = DistillConfig() if config is None else config
    schedule = policy.bind(SamplerConfig("ddpm")).schedule
    device, shift = policy.device, schedule.on(policy.device).shift
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = DraftNetwork(
            policy.config.horizon, policy.config.action_dim, policy.config.condition_dim,
            torch.from_numpy(training_abar(policy.scheduler_config)), clip=schedule.clip, hidden=config.hidden,
            depth=config.depth,
        ).to(device)  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    starts = {round(r * config.max_steps / config.rounds) for r in range(config.rounds)}
    for step in progress(range(config.max_steps)):
        if step in starts:
            some = torch.randperm(len(conditions), generator=generator)[: config.chains]
            met = conditions[some.to(device)]
            window = config.windows[(len(starts) - 1 - sum(step < s for s in starts)) % len(config.windows)]
            network.eval()
            pairs = record_pairs(policy, schedule, met, network if step else None, window=window, generator=generator)
            network.train()
        falling = 0.5 * (1 + math.cos(math.pi * step / config.max_steps))
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / 200) * falling
        rows = torch.randint(len(pairs), (config.batch_size,), generator=generator).to(device)
        loss = _loss(network, pairs.at(rows), met, schedule.timesteps.to(device), shift, config.anchor)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if not torch.isfinite(loss):
        raise ValueError("the loss is not finite: try a smaller lr")
    stored = DraftNetwork.from_stored(network.eval().stored())  # the network is what is stored
    assert stored is not None
    return stored.to(device)


def _loss(
    network: DraftNetwork, pairs: Pairs, conditions: Tensor, timesteps: Tensor, shift: Tensor, anchor: float
) -> Tensor:
    """Mean of log(1 + |v|): what |v| does to the acceptance 2 Phi(-|v| / 2) levels off where all is lost anyway."""
    shape = (-1, network.horizon, network.action_dim)
    t, condition = timesteps[pairs.k].repeat(2), conditions[pairs.chain].repeat(2, 1)
    states = torch.cat([pairs.x, pairs.x_old])
    s, s_old = network(states.view(shape), t, condition).flatten(1).chunk(2)
    value, move = s - pairs.m, (s - s_old) - (pairs.m - pairs.m_old)
    w = shift[pairs.k]

    def cost(error: Tensor) -> Tensor:
        return torch.log1p(w * (error.square().sum(1) + 1e-8).sqrt())

    return torch.where(pairs.first, cost(value), cost(move) + anchor * cost(value)).mean()


@dataclass(frozen=True)
class _Watched:
    """A drafter that keeps all pairs it observes in `seen`."""

    drafter: Picard
    seen: list[tuple[Tensor, ...]]

    def start(self, tables: StepTables, prior: Tensor, small: SmallNetwork | None) -> Running:
        return _Watch(self.drafter.start(tables, prior, small), self.seen, tables, prior)


class _Watch:
    def __init__(self, running: Running, seen: list[tuple[Tensor, ...]], tables: StepTables, prior: Tensor) -> None:
        (B, D), K = prior.shape, tables.sigma.shape[0]
        self._running, self._seen = running, seen
        self._pairs = prior.new_zeros(B, K, 2, D)
        self._known = torch.zeros(B, K, dtype=torch.bool, device=prior.device)
        self.sizes, self.draft = running.sizes, running.draft

    def begin(self, prior: Tensor, chain: Tensor) -> None:
        self._running.begin(prior, chain)
        self._known[chain] = False

    def observe(self, window: Window, draft: Draft, m: Tensor, outcome: Outcome) -> None:
        self._running.observe(window, draft, m, outcome)
        chain, k = window.chain[:, None].expand_as(window.steps)[window.valid], window.steps[window.valid]
        new, first = torch.stack([draft.x, m], 2)[window.valid], ~self._known[chain, k]
        old = torch.where(first[:, None, None], new, self._pairs[chain, k])
        self._pairs[chain, k], self._known[chain, k] = new, True
        self._seen.append((chain, k, new[:, 0], new[:, 1], old[:, 0], old[:, 1], first))
