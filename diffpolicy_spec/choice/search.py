"""What is expected of every sampler: under one runtime all of them, under the others the best few."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffpolicy_spec.runtime.config import RuntimeConfig
from diffpolicy_spec.samplers import BoundSampler

from .candidates import Family, windows_near
from .cost import CallCost
from .timing import time_samplers
from .trial import Bench, RoundCost, Trial, plan, quickest, under

__all__ = ["CREDITS", "Found", "elsewhere", "search"]

CREDITS = (1.0, 0.5, 0.25)
"""Shares of the price of rows that planned windows are made with; see `trial.plan`."""

Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Found:
    """A sampler under a runtime, and what its rounds cost there."""

    trial: Trial
    runtime: RuntimeConfig
    cost: RoundCost

    @property
    def seconds(self) -> float:
        """Expected, of a chunk."""
        return self.trial.seconds(self.cost)

    @property
    def sampler(self) -> BoundSampler:
        """Bound, with its runtime."""
        return under(self.trial.sampler, self.runtime)

    def row(self) -> dict[str, Any]:
        """For tables and speculation.json."""
        return self.trial.row(self.cost) | {"runtime": asdict(self.runtime)}


def search(
    bench: Bench,
    families: Sequence[Family],
    runtime: RuntimeConfig,
    call: CallCost,
    probes: Iterable[int],
    progress: Progress,
) -> list[Found]:
    """Every family coarsely; the two quickest finely, and with planned windows."""
    K, padded = bench.noise.uniforms.shape[0], runtime.mode != "eager"
    trials = [trial for family in progress(families) for trial in _widen(bench, family, call, K, padded)]
    timed = time_samplers(bench.policy, [under(t.sampler, runtime) for t in trials], bench.moments, probes, repeats=1)
    points: dict[str, list[tuple[float, float]]] = {family.name: [] for family in families}
    for trial, measured in zip(trials, timed, strict=True):
        points[trial.family.name].append(trial.overhead(call, measured, padded))
    costs = {name: RoundCost.fit(call, known, padded=padded) for name, known in points.items()}
    for best in progress(quickest([(t.seconds(costs[t.family.name]), t) for t in trials])[:2]):
        family, cost = best.family, costs[best.family.name]
        if family.shapes:
            continue
        known = [t for t in trials if t.family is family]
        tried = [t.sampler.config.options["window"] for t in known]
        near = windows_near(best.sampler.config.options["window"], K)
        known += [bench.run(family, {"window": n}) for n in near if n not in tried]
        trials = [t for t in trials if t.family is not family] + known + _planned(bench, known, cost, "by step")
    return [Found(t, runtime, costs[t.family.name]) for t in trials]


def _widen(bench: Bench, family: Family, call: CallCost, num_steps: int, padded: bool) -> list[Trial]:
    """A family with more and more rows a round, until that takes longer than fewer did."""
    trials: list[Trial] = []
    least = float("inf")
    for size in family.sizes(num_steps):
        trials.append(bench.run(family, size))
        seconds = trials[-1].seconds(RoundCost(call, 0.0, padded=padded))
        if seconds > 1.05 * least:
            break
        least = min(least, seconds)
    return trials


def _planned(bench: Bench, known: Sequence[Trial], cost: RoundCost, label: str) -> list[Trial]:
    """A family with windows by step, from its trials so far. Plans that agree are tried once."""
    plans = {tuple(plan(known, cost, credit)): credit for credit in CREDITS}
    return [
        bench.run(known[0].family, {"window": list(windows)}, f"{label}, {credit:g}")
        for windows, credit in plans.items()
    ]


def elsewhere(
    bench: Bench, found: Sequence[Found], runtime: RuntimeConfig, call: CallCost, contenders: int, probes: Iterable[int]
) -> list[Found]:
    """What was found under one runtime, expected under another: of the most promising families the best sampler each.

    Rounds and their rows are known, whatever the runtime. Only where rounds are padded here does the best family get
    windows planned anew: other sizes are the cheap ones. The overhead is then timed.
    """
    padded = runtime.mode != "eager"
    costs = {f.trial.family.name: f.cost.elsewhere(call, padded=padded) for f in found}

    def ranked(trials: Iterable[Trial]) -> list[Trial]:
        return quickest([(t.seconds(costs[t.family.name]), t) for t in trials])

    trials = [f.trial for f in found]
    leader = ranked(trials)[0].family
    if padded and not leader.shapes:
        constant = [t for t in trials if t.family is leader and not t.planned]
        trials += _planned(bench, constant, costs[leader.name], f"by step, {runtime.mode}")
    best = ranked(trials)[:contenders]
    timed = time_samplers(bench.policy, [under(t.sampler, runtime) for t in best], bench.moments, probes, repeats=1)
    return [
        Found(t, runtime, RoundCost.fit(call, [t.overhead(call, measured, padded)], padded=padded))
        for t, measured in zip(best, timed, strict=True)
    ]
