"""The quickest exact sampler of a policy on this device, and the runtime it is quickest with."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffpolicy_spec.gains import Gains
from diffpolicy_spec.networks import Denoise
from diffpolicy_spec.noise import draw_noise
from diffpolicy_spec.runtime.config import RuntimeConfig
from diffpolicy_spec.samplers import BoundSampler
from diffpolicy_spec.schedule import Schedule
from diffpolicy_spec.seeds import hashed_generator
from diffpolicy_spec.speculation import check_speculative

from .candidates import FAMILIES, Family, available
from .cost import CallCost, measure_call_cost
from .fingerprint import fingerprint
from .record import Choice, device_name, processor, sequential
from .runtimes import described, keeping_threads, runtimes
from .search import Found, Progress, elsewhere, search
from .timing import Moments, Timed, is_faster, time_samplers
from .trial import Bench, under

if TYPE_CHECKING:
    from diffpolicy_spec.policies import DiffusionPolicy

__all__ = ["choose", "finalists_of", "measure_calls", "most_chains", "pick"]

_NOISE = 6  # stream of the trials' noise
_HOPELESS = 1.5  # a runtime is not looked at further where calls of any size take so many times as long as the first's


@keeping_threads()
def choose(
    policy: DiffusionPolicy,
    moments: Moments,
    *,
    tried: Sequence[RuntimeConfig] | None = None,
    num_inference_steps: int | None = None,
    eta: float | None = None,
    families: Sequence[Family] = FAMILIES,
    finalists: int = 4,
    timed: int = 24,
    probes: int = 4,
    contenders: int = 3,
    seed: int = 0,
    progress: Progress = iter,
) -> Choice:
    """Measure, and pick the sampler and the runtime with the least expected latency for one robot.

    1. c(n), the cost of a network call, under every runtime.
    2. Under the first runtime every family at a few windows: rounds and rows on all moments, overhead of a round; from
       these the expectation. The two quickest families at more windows, and at windows by step planned from their
       measured acceptance.
    3. Under every other runtime the `contenders` that promise most: rounds and rows do not depend on the runtime.
    4. The `finalists` quickest by expectation, whatever their runtime, and the sequential sampler under its own best
       runtime, timed side by side on `timed` chunks. The quickest of them is the choice; the sequential sampler, unless
       another one is quicker beyond chance.

    Torch has as many threads afterwards as before.

    Args:
        moments: observations of the user's own, best of many episodes.
        tried: runtimes; None: those of `runtimes.runtimes` for the policy's device.
        num_inference_steps, eta: the chain, as in `SamplerConfig`.
        families: ways to draft and verify; those whose tensors the checkpoint lacks are left out.
        finalists, timed, contenders: see above; probes: chunks timed per sampler for the overhead of a round.
        seed: of the noise of the trials.
        progress: wraps the iteration over what is tried, such as `tqdm`.

    Raises:
        ScheduleError: the chain has steps without noise (eta = 0): nothing can be speculated.
        ValueError: numbers below 1 (timed: below 2), or a runtime that this device or network does not have.
    """
    tried = runtimes(policy.device) if tried is None else tried
    if min(finalists, probes, contenders, len(tried), len(moments)) < 1 or timed < 2:
        raise ValueError(
            f"the choice needs at least one observation and runtime, finalists, probes and contenders of at least 1 "
            f"and timed of at least 2, got {len(moments)}, {len(tried)}, {finalists}, {probes}, {contenders}, {timed}"
        )
    step_by_step = policy.bind(sequential(num_inference_steps, eta))
    check_speculative(step_by_step.schedule)
    schedule, device = step_by_step.schedule, policy.device
    chunk = (policy.config.horizon, policy.config.plan_dim)
    costs = measure_calls(policy, moments, schedule, tried)
    first, call = next(iter(costs.items()))
    promising = [runtime for runtime, cost in costs.items() if runtime == first or _promises(cost, call)]
    noise = draw_noise((len(moments), *chunk), schedule, hashed_generator(_NOISE, seed), device)
    bench = Bench(policy, _denoiser(policy, moments, first), moments, noise, num_inference_steps, eta)

    usable = available(families, _stored(policy, schedule))
    of_first = search(bench, usable, first, call, range(probes), progress)
    found = list(of_first)
    for runtime in progress(promising[1:]) if found else ():
        found += elsewhere(bench, of_first, runtime, costs[runtime], contenders, range(probes))
    chosen = finalists_of(found, finalists)
    reference_sampler = _best_runtime(policy, step_by_step, promising, moments, range(probes))
    reference, *measured = time_samplers(
        policy, [reference_sampler, *(f.sampler for f in chosen)], moments, range(timed)
    )
    winner = pick(reference.seconds, [m.seconds for m in measured])
    timings = {id(f): _measured(timing) for f, timing in zip(chosen, measured, strict=True)}
    rows = {id(f): f.row() | timings.get(id(f), {}) for f in found}
    last = _sequential_row(reference_sampler, costs, reference)
    best = last if winner is None else rows[id(chosen[winner])]
    return Choice(
        device=device_name(device),
        processor=processor(),
        torch=torch.__version__,
        weights=fingerprint(policy.network, policy.speculation),
        num_inference_steps=num_inference_steps,
        eta=eta,
        name=best["name"],
        method=best["method"],
        options=best["options"],
        runtime=RuntimeConfig(**best["runtime"]),
        calls=best["calls"],
        rows=best["rows"],
        latency_ms=best["measured_ms"],
        latency_ms_p95=best["measured_ms_p95"],
        sequential_ms=last["measured_ms"],
        call_cost_ms={described(runtime): in_ms(cost) for runtime, cost in costs.items()},
        candidates=(*rows.values(), last),
        most_chains=None if winner is None else most_chains(
            costs[RuntimeConfig(**best["runtime"])], best["calls"], best["rows"], schedule.num_steps
        ),
    )  # fmt: skip


def most_chains(call: CallCost, calls: float, rows: float, num_steps: int) -> int:
    """The largest batch, of 1, 2, 4, ... 1024, that is expected to take clearly less time than step by step.

        calls c(B rows / calls) <= 0.9 K c(B)

    With many chains a device is busy anyway: the rows of a call cost what they cost, and those dropped are lost.
    """
    sizes = [2**i for i in range(11)]
    slower = (B for B in sizes[1:] if calls * float(call(B * rows / calls)) > 0.9 * num_steps * float(call(B)))
    return next(slower, 2 * sizes[-1]) // 2


def measure_calls(
    policy: DiffusionPolicy, moments: Moments, schedule: Schedule, tried: Sequence[RuntimeConfig]
) -> dict[RuntimeConfig, CallCost]:
    """c(n) under each runtime. One that cannot run here is left out with a warning, but for the first."""
    costs = {}
    for runtime in tried:
        try:
            costs[runtime] = measure_call_cost(
                _denoiser(policy, moments, runtime), schedule, (policy.config.horizon, policy.config.plan_dim),
                policy.device, runtime=runtime,
            )  # fmt: skip
        except RuntimeError as error:  # no compiler, no memory, an operation that a dtype does not have
            if runtime == tried[0]:
                raise
            warnings.warn(f"runtime {described(runtime)} is left out: it does not run here ({error})", stacklevel=2)
    return costs


def in_ms(cost: CallCost) -> dict[str, float]:
    """c(n) for speculation.json: rows -> milliseconds."""
    return {str(n): 1e3 * s for n, s in zip(cost.rows, cost.seconds, strict=True)}


def _denoiser(policy: DiffusionPolicy, moments: Moments, runtime: RuntimeConfig) -> Denoise:
    runner, (condition, _) = policy.runner(runtime), policy.condition(moments.at(0).obs)
    if runtime.devices:  # from how many rows on they are shared out
        runner.measure_split(condition, (policy.config.horizon, policy.config.plan_dim))
    return runner.denoiser(condition)


def _promises(cost: CallCost, first: CallCost) -> bool:
    return bool((cost(first.rows) < _HOPELESS * first(first.rows)).any())


def _best_runtime(
    policy: DiffusionPolicy, sampler: BoundSampler, tried: Sequence[RuntimeConfig], moments: Moments,
    probes: Iterable[int],
) -> BoundSampler:  # fmt: skip
    """The sampler under the runtime that it is quickest with."""
    candidates = [under(sampler, runtime) for runtime in tried]
    if len(candidates) == 1:
        return candidates[0]
    timed = time_samplers(policy, candidates, moments, probes, repeats=1)
    return candidates[int(np.argmin([np.median(t.seconds) for t in timed]))]


def _stored(policy: DiffusionPolicy, schedule: Schedule) -> set[str]:
    """What families may need that this policy has."""
    gains = Gains.from_state_dict(policy.speculation or {})
    there = {"gains": gains is not None and gains.fit(schedule), "draft": policy.draft_network is not None}
    return {name for name, has in there.items() if has}


def finalists_of(found: Sequence[Found], count: int) -> list[Found]:
    """The quickest by expectation, whatever their runtime.

    Among them, from two on, at least one window by step and one constant window.
    """
    order = sorted(found, key=lambda f: f.seconds)
    chosen = order[:count]
    for planned in (True, False):
        other = next((f for f in order if f.trial.planned is planned), None)
        if count > 1 and other is not None and all(f.trial.planned is not planned for f in chosen):
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


def _sequential_row(sampler: BoundSampler, costs: Mapping[RuntimeConfig, CallCost], timed: Timed) -> dict[str, Any]:
    runtime, K = sampler.config.runtime, sampler.schedule.num_steps
    assert runtime is not None
    network = float(costs[runtime](1))
    # Of a captured chain only the whole is known.
    outside = np.where(np.isnan(timed.overhead), timed.seconds - K * network, timed.overhead) / K
    overhead = max(float(np.median(outside)), 0.0)
    return {
        "name": "sequential",
        "window": "1",
        "method": "sequential",
        "options": {},
        "calls": float(K),
        "rows": float(K),
        "overhead_ms_per_round": 1e3 * overhead,
        "predicted_ms": 1e3 * K * (network + overhead),
        "runtime": asdict(runtime),
        **_measured(timed),
    }
