"""Whole chunks of the trained policy, every sampler in turns under one runtime: for one robot and for many."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers_loop import DiffusersLoop
from runtime_networks import AS_IT_IS, as_it_is
from safetensors.torch import load_file
from systems_list import SPECULATIVE
from systems_problems import OBSERVATIONS

from diffpolicy_spec import Sample, SamplerConfig, draw_noise, load_policy
from diffpolicy_spec.choice.cost import CallCost
from diffpolicy_spec.choice.rounds import Rounds, Watched
from diffpolicy_spec.clock import clock
from diffpolicy_spec.policies import DiffusionPolicy
from diffpolicy_spec.runtime import RuntimeConfig
from diffpolicy_spec.window import widths_to

__all__ = ["DDIM", "SEQUENTIAL", "Contender", "Drawn", "Trained", "batch_row", "chunk_row", "contenders",
           "eager_only", "network_seconds", "padded"]  # fmt: skip

SEQUENTIAL, DDIM = "DDPM-100", "DDIM-10"
PARTS = ("network", "draft", "verify", "sync")


@dataclass(frozen=True)
class Contender:
    """A line of a table.

    Attributes:
        sampler: `SamplerConfig`; None: diffusers' own loop.
        module: the network as it is, whatever the runtime's layout.
    """

    name: str
    window: int | str | None
    sampler: SamplerConfig | None
    exact: bool = True
    module: bool = False

    @property
    def label(self) -> str:
        """Name and window."""
        return self.name if self.window is None else f"{self.name}, window {self.window}"


def contenders(windows: Sequence[int | str]) -> list[Contender]:
    """What is compared under every runtime; ours at every window."""
    published = {"ASD, two-call": "ASD, two-call", "nearest": "frozen x0, fused (nearest)",
                 "nearest, block": "BV, Free Drafter (nearest, block)"}  # fmt: skip
    found = [
        Contender(SEQUENTIAL, None, SamplerConfig("ddpm")),
        Contender(DDIM, None, SamplerConfig("ddim", 10, 0.0), exact=False),
        Contender("ParaDiGMS, tolerance 0.1", 32, SamplerConfig("paradigms", options={"window": 32}), exact=False),
    ]
    for name, system in published.items():
        found.append(Contender(name, 32, SamplerConfig(options={**SPECULATIVE[system][1], "window": 32})))
    return found + [Contender("ours", n, SamplerConfig(options={"window": n})) for n in windows]


def eager_only() -> list[Contender]:
    """What people run: diffusers' loop, and no layout for inference."""
    return [
        Contender(f"diffusers' loop, {AS_IT_IS}", None, None, module=True),
        Contender("diffusers' loop", None, None),
        Contender(f"{SEQUENTIAL}, {AS_IT_IS}", None, SamplerConfig("ddpm"), module=True),
        Contender(f"{DDIM}, {AS_IT_IS}", None, SamplerConfig("ddim", 10, 0.0), exact=False, module=True),
    ]


@dataclass(frozen=True)
class Drawn:
    """Chunks of one contender.

    Attributes:
        seconds: of each chunk: from the condition to the chunk, the device done; noise is drawn before.
        samples: what the sampler says.
        rounds: of each chunk, where they were watched.
    """

    seconds: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    rounds: list[Rounds] = field(default_factory=list)


class Trained:
    """The trained policy and stored conditions for it."""

    def __init__(self, device: torch.device) -> None:
        self.policy: DiffusionPolicy = load_policy("lift", device=device)
        self.conditions = load_file(OBSERVATIONS)["conditions"].to(device)

    def draw(self, contender: Contender, runtime: RuntimeConfig, chains: range, *, watch: bool = False) -> Drawn:
        """Chunks of these chains together; chain j is under condition j mod 64, and its noise is its own."""
        policy, device = self.policy, self.policy.device
        condition = self.conditions[torch.tensor(chains, device=device) % len(self.conditions)]
        config = contender.sampler
        sampler: Any = DiffusersLoop(policy.scheduler_config) if config is None else policy.bind(config)
        sampler = Watched(sampler) if watch else sampler
        shape = (len(chains), policy.config.horizon, policy.config.action_dim)
        generators = [torch.Generator().manual_seed(1000 + chain) for chain in chains]
        noise = draw_noise(shape, sampler.schedule, generators, device)
        generator, runner = torch.Generator(device).manual_seed(chains.start), policy.runner(runtime)
        begin = clock(device)
        if contender.module:
            sample = sampler(as_it_is(policy.network, condition), noise, generator=generator)
        else:
            sample = runner.sample(sampler, condition, noise, generator=generator)
        seconds = clock(device) - begin
        return Drawn([seconds], [sample], [sampler.rounds()] if watch else [])

    def in_turns(
        self, compared: Sequence[Contender], runtime: RuntimeConfig, chunks: range, *, watch: bool = False,
        warm_up: int = 1,
    ) -> list[Drawn]:  # fmt: skip
        """One chunk of every contender, then the next: a slow minute of the machine is everybody's."""
        for contender in compared:
            for _ in range(warm_up):
                self.draw(contender, runtime, range(1))
        drawn = [Drawn() for _ in compared]
        for chunk in chunks:
            for contender, all_of_it in zip(compared, drawn, strict=True):
                one = self.draw(contender, runtime, range(chunk, chunk + 1), watch=watch)
                all_of_it.seconds.extend(one.seconds)
                all_of_it.samples.extend(one.samples)
                all_of_it.rounds.extend(one.rounds)
        return drawn


def padded(rows: np.ndarray, window: int, mode: str) -> np.ndarray:
    """Rows that a mode calls the network with, for rounds of so many."""
    if mode == "eager":
        return rows
    widths = np.asarray(widths_to(window))
    return widths[np.searchsorted(widths, rows)]


def network_seconds(drawn: Drawn, rounds: Sequence[Rounds], mode: str, call: CallCost) -> np.ndarray:
    """(n,) seconds of each chunk in the network: as measured, or of captured rounds the sum of c(rows) over them."""
    measured = np.array([sample.stats.time.network for sample in drawn.samples])
    if not np.isnan(measured).any():
        return measured
    return np.array([call(padded(r.rows, int(r.rows.max()), mode)).sum() for r in rounds])


def chunk_row(
    contender: Contender, drawn: Drawn, rounds: Sequence[Rounds], mode: str, call: CallCost
) -> dict[str, Any]:
    """A line of a table: percentiles of a chunk, counts, where the time goes.

    rounds: of the same chunks, and call: c(n) in this mode, for modes whose parts are not known.
    """
    ms = 1e3 * np.array(drawn.seconds)
    stats = [sample.stats for sample in drawn.samples]
    calls, rows = (np.array([float(getattr(s, n)[0]) for s in stats]) for n in ("calls", "evaluations"))
    parts = {part: 1e3 * np.array([getattr(s.time, part) for s in stats]) for part in PARTS}
    known = not np.isnan(parts["draft"]).any()
    network = 1e3 * network_seconds(drawn, rounds, mode, call)
    p50, p95, p99 = (float(np.percentile(ms, p)) for p in (50, 95, 99))
    other = ms - sum(parts.values(), np.zeros_like(ms))
    return {
        "sampler": contender.name, "window": contender.window, "exact": contender.exact, "chunks": len(ms),
        "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "calls": float(calls.mean()), "rows": float(rows.mean()),
        "network_ms": float(np.median(network)), "parts_known": known,
        **{f"{part}_ms": float(np.median(parts[part])) if known else None for part in PARTS[1:]},
        "other_ms": float(np.median(other)) if known else None, "overhead": float(1 - network.sum() / ms.sum()),
    }  # fmt: skip


def batch_row(
    trained: Trained, contender: Contender, runtime: RuntimeConfig, size: int, repeats: int
) -> dict[str, Any]:
    """Chunks a second of a batch of robots, the batch's own warm-up not counted where there is more than one."""
    warm_up = int(repeats > 1)
    drawn = [trained.draw(contender, runtime, range(i * size, (i + 1) * size)) for i in range(repeats + warm_up)]
    # What a session makes ready at its first chunk is outside the sampler's own clock.
    seconds = [d.samples[0].stats.time.total for d in drawn][warm_up:]
    stats = drawn[-1].samples[0].stats
    return {
        "sampler": contender.name, "window": contender.window, "batch": size, "calls": float(stats.calls.max()),
        "rows": float(stats.evaluations.double().mean()), "ms": 1e3 * statistics.median(seconds),
        "chunks_per_second": size / statistics.median(seconds),
    }  # fmt: skip
