"""The search for the quickest exact sampler of a policy on this device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffpolicy_spec.gains import Gains
from diffpolicy_spec.noise import draw_noise
from diffpolicy_spec.schedule import Schedule
from diffpolicy_spec.seeds import hashed_generator
from diffpolicy_spec.speculation import check_speculative

from .candidates import FAMILIES, Family, available, windows_near
from .cost import CallCost, measure_call_cost
from .record import Choice, device_name, processor, sequential
from .timing import Moments, Timed, is_faster, time_samplers
from .trial import Bench, RoundCost, Trial, plan, quickest

if TYPE_CHECKING:
    from diffpolicy_spec.policies import DiffusionPolicy

__all__ = ["CREDITS", "choose", "finalists_of", "pick"]

CREDITS = (1.0, 0.5, 0.25)
"""Shares of the price of rows that planned windows are made with; see `trial.plan`."""

_NOISE = 6  # stream of the trials' noise
Progress = Callable[[Iterable[Any]], Iterable[Any]]
Expected = tuple[float, Trial, dict[str, Any]]  # seconds a chunk, what was tried, its row of the table


def choose(
    policy: DiffusionPolicy,
    moments: Moments,
    *,
    num_inference_steps: int | None = None,
    eta: float | None = None,
    families: Sequence[Family] = FAMILIES,
    finalists: int = 4,
    timed: int = 24,
    probes: int = 4,
    seed: int = 0,
    progress: Progress = iter,
) -> Choice:
    """Measure, and pick the sampler with the least expected latency for one robot.

    1. c(n), the cost of a network call.
    2. Every family at a few windows: rounds and rows on all moments, overhead of a round; from these the expectation.
    3. The two quickest families at more windows, and at windows by step planned from their measured acceptance.
    4. The `finalists` quickest by expectation and the sequential sampler, timed side by side on `timed` chunks. The
       quickest of them is the choice; the sequential sampler, unless another one is quicker beyond chance.

    Args:
        moments: observations of the user's own, best of many episodes.
        num_inference_steps, eta: the chain, as in `SamplerConfig`.
        families: ways to draft and verify; those whose tensors the checkpoint lacks are left out.
        finalists, timed: see above; probes: chunks timed per sampler for the overhead of a round.
        seed: of the noise of the trials.
        progress: wraps the iteration over what is tried, such as `tqdm`.

    Raises:
        ScheduleError: the chain has steps without noise (eta = 0): nothing can be speculated.
        ValueError: numbers below 1 (timed: below 2).
    """
    if min(finalists, probes) < 1 or timed < 2 or len(moments) < 1:
        raise ValueError(
            f"the choice needs at least one observation, finalists and probes of at least 1 and timed of at least 2, "
            f"got {len(moments)}, {finalists}, {probes}, {timed}"
        )
    step_by_step = policy.bind(sequential(num_inference_steps, eta))
    schedule, device = step_by_step.schedule, policy.device
    check_speculative(schedule)
    chunk = (policy.config.horizon, policy.config.action_dim)
    call = measure_call_cost(policy.denoiser(policy.encode(moments.at(0).obs)), schedule, chunk, device)
    noise = draw_noise((len(moments), *chunk), schedule, hashed_generator(_NOISE, seed), device)
    bench = Bench(policy, moments, noise, num_inference_steps, eta)

    usable = available(families, _stored(policy, schedule))
    expected = _search(bench, usable, call, range(probes), progress)
    chosen = finalists_of(expected, finalists)
    reference, *measured = time_samplers(policy, [step_by_step, *(t.sampler for t in chosen)], moments, range(timed))
    winner = pick(reference.seconds, [m.seconds for m in measured])
    rows = [row for _, _, row in expected]
    found = {id(trial): row for _, trial, row in expected}
    for trial, timing in zip(chosen, measured, strict=True):
        found[id(trial)].update(_measured(timing))
    rows.append(_sequential_row(call, schedule.num_steps, reference))
    best = rows[-1] if winner is None else found[id(chosen[winner])]
    return Choice(
        device=device_name(device),
        processor=processor(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        num_inference_steps=num_inference_steps,
        eta=eta,
        name=best["name"],
        method=best["method"],
        options=best["options"],
        calls=best["calls"],
        rows=best["rows"],
        latency_ms=best["measured_ms"],
        latency_ms_p95=best["measured_ms_p95"],
        sequential_ms=rows[-1]["measured_ms"],
        call_cost_ms={str(n): 1e3 * s for n, s in zip(call.rows, call.seconds, strict=True)},
        candidates=tuple(rows),
    )


def _stored(policy: DiffusionPolicy, schedule: Schedule) -> set[str]:
    """What families may need that this policy has."""
    gains = Gains.from_state_dict(policy.speculation or {})
    there = {"gains": gains is not None and gains.fit(schedule), "draft": policy.draft_network is not None}
    return {name for name, has in there.items() if has}


def _search(
    bench: Bench, families: Sequence[Family], call: CallCost, probes: Iterable[int], progress: Progress
) -> list[Expected]:
    """Every family coarsely; the two quickest finely, and with planned windows."""
    K = bench.noise.uniforms.shape[0]
    trials = [trial for family in progress(families) for trial in _widen(bench, family, call, K)]
    timed = time_samplers(bench.policy, [t.sampler for t in trials], bench.moments, probes, repeats=1)
    costs = {
        family.name: RoundCost.fit(call, [m for m, t in zip(timed, trials, strict=True) if t.family is family])
        for family in families
    }
    for best in progress(quickest([(t.seconds(costs[t.family.name]), t) for t in trials])[:2]):
        family, cost = best.family, costs[best.family.name]
        if family.shapes:
            continue
        known = [t for t in trials if t.family is family]
        tried = [t.sampler.config.options["window"] for t in known]
        near = windows_near(best.sampler.config.options["window"], K)
        known += [bench.run(family, {"window": n}) for n in near if n not in tried]
        for credit in CREDITS:
            known.append(bench.run(family, {"window": plan(known, cost, credit)}, f"by step, {credit:g}"))
        trials = [t for t in trials if t.family is not family] + known
    return [(t.seconds(costs[t.family.name]), t, t.row(costs[t.family.name])) for t in trials]


def _widen(bench: Bench, family: Family, call: CallCost, num_steps: int) -> list[Trial]:
    """A family with more and more rows a round, until that takes longer than fewer did."""
    trials: list[Trial] = []
    least = float("inf")
    for size in family.sizes(num_steps):
        trials.append(bench.run(family, size))
        seconds = trials[-1].seconds(RoundCost(call, 0.0))
        if seconds > 1.05 * least:
            break
        least = min(least, seconds)
    return trials


def finalists_of(expected: Sequence[Expected], count: int) -> list[Trial]:
    """The quickest by expectation; among them, from two on, at least one window by step and one constant window."""
    order = [trial for _, trial, _ in sorted(expected, key=lambda e: e[0])]
    chosen = order[:count]
    for planned in (True, False):
        other = next((t for t in order if t.planned is planned), None)
        if count > 1 and other is not None and all(t.planned is not planned for t in chosen):
            chosen[-1] = other
    return chosen


def pick(reference: NDArray[np.float64], measured: Sequence[NDArray[np.float64]]) -> int | None:
    """The index of the quickest, by its mean; None for the sequential sampler: nothing slower is ever picked.

    Args:
        reference: (n,) seconds of each chunk by the sequential sampler.
        measured: for each finalist the seconds (n,) of the same chunks.
    """
    if not measured:
        return None
    best = int(np.argmin([seconds.mean() for seconds in measured]))
    return best if is_faster(measured[best], reference) else None


def _measured(timed: Timed) -> dict[str, Any]:
    return {
        "measured_ms": 1e3 * float(timed.seconds.mean()),
        "measured_ms_p95": 1e3 * float(np.percentile(timed.seconds, 95)),
        "measured_calls": float(timed.calls.mean()),
    }


def _sequential_row(call: CallCost, num_steps: int, timed: Timed) -> dict[str, Any]:
    overhead = float(np.median(timed.overhead / timed.calls))
    return {
        "name": "sequential",
        "window": "1",
        "method": "sequential",
        "options": {},
        "calls": float(num_steps),
        "rows": float(num_steps),
        "overhead_ms_per_round": 1e3 * overhead,
        "predicted_ms": 1e3 * num_steps * (float(call(1)) + overhead),
        **_measured(timed),
    }
