"""Chunks composed: rounds of the trained policy, with calls of another network.

A network with random weights has a clock but no acceptance. So the rounds of the trained policy's samplers, the same
for every network, are taken as they were, and each is charged what a call with its rows costs with this network,
c(rows), plus what it spent outside the network under the trained policy, with chunks of the same shape:

    chunk = sum over rounds c(rows) + (seconds - network)

A larger network that was trained might be accepted more or less often: that is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from runtime_chunks import DDIM, SEQUENTIAL, Contender, Drawn, Trained, network_seconds, padded

from diffpolicy_spec import SamplerConfig
from diffpolicy_spec.choice.acceptance import acceptance, count_tests
from diffpolicy_spec.choice.candidates import FAMILIES, Family
from diffpolicy_spec.choice.cost import CallCost
from diffpolicy_spec.choice.search import CREDITS
from diffpolicy_spec.choice.windows import plan_windows
from diffpolicy_spec.runtime import RuntimeConfig

__all__ = ["SEARCHED", "Searched", "best_of", "composed_rows", "drawn_afresh", "search"]

SEARCHED = ("ASD", "nearest", "nearest, block", "picard + secant", "picard + corrector, 1 sweep", "picard + corrector")


@dataclass(frozen=True)
class Searched:
    """A sampler of the trained policy, its rounds, and its chunks under a runtime."""

    contender: Contender
    drawn: Drawn
    mode: str

    def outside(self, trained: CallCost) -> np.ndarray:
        """(n,) seconds of each chunk outside the network; trained: c(n) of the trained policy in this mode."""
        return np.array(self.drawn.seconds) - network_seconds(self.drawn, self.drawn.rounds, self.mode, trained)

    def network(self, call: CallCost) -> np.ndarray:
        """(n,) seconds of each chunk in calls that cost c(n)."""
        return np.array([call(padded(r.rows, int(r.rows.max()), self.mode)).sum() for r in self.drawn.rounds])

    def seconds(self, call: CallCost, trained: CallCost, share: float = 1.0) -> np.ndarray:
        """(n,) composed seconds of each chunk; share: of what is outside the network."""
        return self.network(call) + share * self.outside(trained)


def search(
    trained: Trained, runtime: RuntimeConfig, chunks: range, windows: Sequence[int | str], calls: Iterable[CallCost]
) -> list[Searched]:
    """Every family at every window, eagerly; then the best family of each c(n) with windows by step."""
    families = {family.name: family for family in FAMILIES if family.name in SEARCHED}
    compared = [Contender(SEQUENTIAL, None, SamplerConfig("ddpm")),
                Contender(DDIM, None, SamplerConfig("ddim", 10, 0.0), exact=False)]  # fmt: skip
    compared += [_windowed(family, window) for family in families.values() for window in windows]
    found = _watched(trained, runtime, compared, chunks)
    planned: dict[str, Contender] = {}
    for call in calls:
        exact = [s for s in found if s.contender.name in families]
        best = min(exact, key=lambda s: float(s.seconds(call, call).mean()))  # eagerly the parts are measured
        family = families[best.contender.name]
        of_family = [s for s in exact if s.contender.name == family.name]
        for sizes in _by_step(of_family, call):
            planned.setdefault(repr((family.name, sizes)), _windowed(family, sizes))
    return found + _watched(trained, runtime, list(planned.values()), chunks)


def _windowed(family: Family, window: int | str | list[int]) -> Contender:
    shown = "by step" if isinstance(window, list) else window
    return Contender(family.name, shown, SamplerConfig(options={**family.options, "window": window}))


def _watched(trained: Trained, runtime: RuntimeConfig, compared: list[Contender], chunks: range) -> list[Searched]:
    drawn = trained.in_turns(compared, runtime, chunks, watch=True)
    return [Searched(c, d, runtime.mode) for c, d in zip(compared, drawn, strict=True)]


def _by_step(of_family: Sequence[Searched], call: CallCost) -> Iterable[list[int]]:
    """Windows for this c(n), as dps-calibrate plans them; see `diffpolicy_spec.choice.trial.plan`."""
    rounds = [r for s in of_family for r in s.drawn.rounds]
    K = rounds[0].num_steps
    outside = sum(s.outside(call).sum() for s in of_family) / sum(len(r.rows) for r in rounds)
    seconds = call(np.arange(1, K + 1)) + max(float(outside), 0.0)
    accept = acceptance(*count_tests(rounds))
    for credit in CREDITS:
        yield plan_windows(accept, seconds[0] + credit * (seconds - seconds[0]))[0].tolist()


def best_of(
    found: Sequence[Searched], call: CallCost, trained: CallCost, count: int, share: float = 1.0
) -> list[Searched]:
    """The quickest exact samplers with this c(n), at most one of a family, quickest first; see `Searched.seconds`."""
    order = sorted((s for s in found if s.contender.exact and s.contender.name != SEQUENTIAL),
                   key=lambda s: float(s.seconds(call, trained, share).mean()))  # fmt: skip
    families: dict[str, Searched] = {}
    for s in order:
        families.setdefault(s.contender.name, s)
    return list(families.values())[:count]


def drawn_afresh(trained: Trained, compared: list[Contender], runtime: RuntimeConfig, chunks: range) -> list[Searched]:
    """Other chunks than those that were searched: what was picked there was in luck there.

    Rounds are watched eagerly; under another runtime the same chunks are drawn once more.
    """
    watched = _watched(trained, RuntimeConfig(dtype=runtime.dtype), compared, chunks)
    if runtime.mode == "eager":
        return watched
    drawn = trained.in_turns(compared, runtime, chunks)
    return [
        Searched(s.contender, replace(d, rounds=s.drawn.rounds), runtime.mode)
        for s, d in zip(watched, drawn, strict=True)
    ]


def composed_rows(
    network: str,
    found: Sequence[Searched],
    call: CallCost,
    trained: CallCost,
    count: int,
    measured: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Lines of a table: sequential, DDIM-10, and the best few, with one c(n) on both sides of every ratio.

    measured: ms of the references' chunks, drawn with this network.
    """
    references = {s.contender.name: s for s in found if s.contender.name in (SEQUENTIAL, DDIM)}
    compared = [references[SEQUENTIAL], references[DDIM], *best_of(found, call, trained, count)]
    ms = [1e3 * float(np.median(s.seconds(call, trained))) for s in compared]
    return [
        _row(s, call, trained)
        | {"network": network, "ms": own, "speedup": ms[0] / own, "against_ddim": ms[1] / own}
        | {"measured_ms": measured.get(s.contender.name), "speedup_measured": measured[SEQUENTIAL] / own}
        for s, own in zip(compared, ms, strict=True)
    ]


def _row(s: Searched, call: CallCost, trained: CallCost) -> dict[str, Any]:
    options = {} if s.contender.sampler is None else dict(s.contender.sampler.options)
    calls, rows = [len(r.rows) for r in s.drawn.rounds], [int(r.rows.sum()) for r in s.drawn.rounds]
    network, seconds = s.network(call), s.seconds(call, trained)
    return {
        "sampler": s.contender.name, "window": s.contender.window, "options": options, "exact": s.contender.exact,
        "calls": float(np.mean(calls)), "rows": float(np.mean(rows)), "network_ms": 1e3 * float(np.median(network)),
        "overhead": float(1 - network.sum() / seconds.sum()),
    }  # fmt: skip
