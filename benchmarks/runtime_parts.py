"""The parts of `runtime.py`: what each measures, and the section it writes."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from runtime_chunks import SEQUENTIAL, Contender, Trained, batch_row, chunk_row, contenders, eager_only
from runtime_composed import Searched, best_of, composed_rows, drawn_afresh, search
from runtime_floors import Machine
from runtime_networks import TRAINED, Costs, Network, encoder_seconds, measure_calls, sequential_ms
from runtime_tables import batch_table, call_table, chunk_table, composed_table, report_table

from diffpolicy_spec import SamplerConfig
from diffpolicy_spec.choice.cost import CallCost
from diffpolicy_spec.choice.rounds import Rounds
from diffpolicy_spec.choice.runtimes import described
from diffpolicy_spec.runtime import RuntimeConfig

__all__ = ["PARTS", "Plan", "Run"]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        share: of the size of the tensors that bandwidth and matrix rate are measured with.
        budget: seconds for c(n) of a network in one way.
        chunks: of every contender.
        searched: chunks of every sampler and window that is searched; twice as many of those that are picked.
        windows: that are searched.
        ours: windows of our default sampler among the contenders.
        batches: (robots, batches that count).
        again: samplers of a network that are timed again under other runtimes.
    """

    share: float
    budget: float
    chunks: int
    searched: int
    windows: tuple[int | str, ...]
    ours: tuple[int | str, ...]
    batches: tuple[tuple[int, int], ...]
    again: int = 3


@dataclass
class Run:
    """A run under way.

    Attributes:
        runtimes: the first is eager; one of each mode and dtype.
        costs: c(n) of the networks measured so far.
        found: by dtype, what was searched; best: the quickest of it for the trained policy.
        results: for the JSON file; sections: of the markdown file.
    """

    device: torch.device
    plan: Plan
    machine: Machine
    trained: Trained
    networks: list[str]
    rows: list[int]
    runtimes: list[RuntimeConfig]
    costs: dict[str, Costs] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    found: dict[str, list[Searched]] = field(default_factory=dict)
    best: dict[RuntimeConfig, list[Contender]] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    sections: list[str] = field(default_factory=list)

    def costs_of(self, name: str) -> Costs:
        """c(n) of a network in all ways; measured at the first time."""
        if name not in self.costs:
            schedule = self.trained.policy.bind(SamplerConfig("ddpm")).schedule
            network = Network.make(name, self.device)
            self.costs[name], rows = measure_calls(
                network, schedule, self.machine, self.runtimes, self.rows, self.plan.budget
            )
            self.calls += rows
        return self.costs[name]

    def call(self, name: str, runtime: RuntimeConfig) -> CallCost | None:
        """c(n) of a network under a runtime; None where it has no such dtype. Static calls are eager ones."""
        mode = "eager" if runtime.mode == "static" else runtime.mode
        return self.costs_of(name).get((mode, dtype_of(runtime)))

    def trained_call(self, runtime: RuntimeConfig) -> CallCost:
        """c(n) of the trained policy's network."""
        call = self.call(TRAINED, runtime)
        assert call is not None  # it has a layout, which has every dtype
        return call

    def write(self, title: str, text: str) -> None:
        """A section."""
        self.sections.append(f"### {title}\n\n{text}")
        print(f"\n{self.sections[-1]}", flush=True)


def dtype_of(runtime: RuntimeConfig) -> str:
    """Its dtype's name."""
    return runtime.dtype or "float32"


def run_networks(run: Run) -> None:
    """c(n) of every network."""
    for name in run.networks:
        run.costs_of(name)
    run.results["calls"] = run.calls
    run.write("ms of a call, and how many times the floor", call_table(run.calls))
    run.results["image_encoder_ms"] = 1e3 * encoder_seconds(run.device, 5)
    run.write("Image encoder, two cameras, once a chunk", f"{run.results['image_encoder_ms']:.1f} ms\n")


def run_composed(run: Run) -> None:
    """The best samplers and windows for every network and runtime."""
    found: list[dict[str, Any]] = []
    for runtime in run.runtimes:
        calls = {name: call for name in run.networks if (call := run.call(name, runtime)) is not None}
        trained, dtype, searched = run.trained_call(runtime), dtype_of(runtime), run.plan.searched
        if dtype not in run.found:
            eager, chunks = RuntimeConfig(dtype=runtime.dtype), range(200, 200 + searched)
            run.found[dtype] = search(run.trained, eager, chunks, run.plan.windows, list(calls.values()))
        chosen = promising(run, run.found[dtype], calls, runtime)
        known = drawn_afresh(run.trained, chosen, runtime, range(300, 300 + 2 * searched))
        run.best[runtime] = [s.contender for s in best_of(known, trained, trained, 2)]
        rows = []
        for name, call in calls.items():
            measured = sequential(run, name, runtime, call)
            rows += composed_rows(name, known, call, trained, run.plan.again, measured)
        found += [{"runtime": asdict(runtime), **row} for row in rows]
        title = f"Composed: rounds of the trained policy x cost of a round with each network, {described(runtime)}"
        run.write(title, composed_table(rows))
    run.results["composed"] = found


def sequential(run: Run, name: str, runtime: RuntimeConfig, call: CallCost) -> dict[str, float]:
    """ms of the references, drawn with this network."""
    network, found = Network.make(name, run.device), {}
    for contender in contenders(())[:2]:
        assert contender.sampler is not None
        sampler = run.trained.policy.bind(contender.sampler)
        expected = sampler.schedule.num_steps * float(call(1))
        found[contender.name] = sequential_ms(network, sampler, runtime, expected, run.plan.budget / 4)
    return found


def promising(run: Run, known: list[Searched], calls: dict[str, CallCost], runtime: RuntimeConfig) -> list[Contender]:
    """The references, and what may be among the best few for each c(n) under a runtime.

    A guess, where it is not eager: what is outside the network shrinks as a call of one row does.
    """
    eager, there = run.trained_call(RuntimeConfig(dtype=runtime.dtype)), run.trained_call(runtime)
    share = float(there(1) / eager(1))
    here = [replace(s, mode=runtime.mode) for s in known]
    chosen = {repr(s.contender): s.contender for s in here if s.contender.window is None}
    for call in calls.values():
        chosen |= {repr(s.contender): s.contender for s in best_of(here, call, eager, run.plan.again, share)}
    return list(chosen.values())


def run_chunks(run: Run) -> None:
    """Whole chunks of the trained policy, a table a runtime; then what making them ready cost."""
    found: list[dict[str, Any]] = []
    for runtime in run.runtimes:
        compared = contenders(run.plan.ours)
        compared += [c for c in run.best.get(runtime, []) if c.label not in [known.label for known in compared]]
        chunks = range(100, 100 + run.plan.chunks)
        drawn = run.trained.in_turns(compared, runtime, chunks)
        watched: list[list[Rounds]] = [[] for _ in compared]
        if runtime.compiles or runtime.captures:
            eager = run.trained.in_turns(compared, RuntimeConfig(dtype=runtime.dtype), chunks, watch=True)
            watched = [d.rounds for d in eager]
        call = run.trained_call(runtime)
        rows = [chunk_row(c, d, r, runtime.mode, call) for c, d, r in zip(compared, drawn, watched, strict=True)]
        if runtime == RuntimeConfig():
            others = [c for c in eager_only() if c.sampler is not None or importlib.util.find_spec("diffusers")]
            drawn = run.trained.in_turns(others, runtime, chunks[: max(len(chunks) // 4, 1)])
            rows += [chunk_row(c, d, [], runtime.mode, call) for c, d in zip(others, drawn, strict=True)]
        found += [{"runtime": asdict(runtime), **row} for row in rows]
        run.write(f"Chunks of the shipped Lift policy, {described(runtime)}", chunk_table(rows))
    if not importlib.util.find_spec("diffusers"):
        run.write("diffusers' loop", "Not timed: diffusers is not installed here.\n")
    run.results["chunks"] = found


def run_batches(run: Run) -> None:
    """Chunks a second for several robots."""
    block = {"drafter": "nearest", "verifier": "block"}
    compared = [
        Contender(SEQUENTIAL, None, SamplerConfig("ddpm")),
        *(Contender("nearest, block", n, SamplerConfig(options={**block, "window": n})) for n in (2, 4)),
        *(Contender("ours", n, SamplerConfig(options={"window": n})) for n in (8, 32)),
    ]  # fmt: skip
    found: list[dict[str, Any]] = []
    for runtime in run.runtimes:
        rows = [
            batch_row(run.trained, contender, runtime, size, repeats)
            for size, repeats in run.plan.batches
            for contender in compared
        ]
        found += [{"runtime": asdict(runtime), **row} for row in rows]
        run.write(f"Batches of the shipped Lift policy, {described(runtime)}", batch_table(rows))
    run.results["batches"] = found


def reports(run: Run) -> None:
    """What fixed shapes and graphs cost to make ready, for every sampler that ran."""
    rows = []
    for runtime in run.runtimes:
        for (sampler, batch, _), report in run.trained.policy.runner(runtime).reports.items():
            if report is not None:
                rows.append({"runtime": described(runtime), "sampler": sampler, "batch": batch, **asdict(report)})
    run.results["reports"] = rows
    ready = [row | {"sampler": shortened(row["sampler"])} for row in rows if row["graphs"] or row["seconds"] > 1]
    if ready:
        run.write("Made ready: seconds and device memory", report_table(ready))


def shortened(config: str) -> str:
    """What differs between configurations, of what they print."""
    return config.removeprefix("SamplerConfig(").removesuffix(", runtime=None)").replace("num_inference_steps=", "K=")


PARTS = {"networks": run_networks, "composed": run_composed, "chunks": run_chunks, "batches": run_batches,
         "reports": reports}  # fmt: skip
"""By name, in the order in which they run."""
