"""One sampler tried: its rounds on many observations at once, and what they would cost one robot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffpolicy_spec.noise import Noise
from diffpolicy_spec.samplers import BoundSampler, SamplerConfig
from diffpolicy_spec.seeds import hashed_generator

from .acceptance import acceptance, count_tests
from .candidates import Family
from .cost import CallCost
from .rounds import Rounds, Watched
from .timing import Moments, Timed
from .windows import plan_windows

if TYPE_CHECKING:
    from diffpolicy_spec.policies import DiffusionPolicy

__all__ = ["Bench", "RoundCost", "Trial", "plan", "quickest"]

_EXTRA = 8  # stream of what a sampler draws beside the noise of its chains


@dataclass(frozen=True)
class Bench:
    """What every trial shares.

    Attributes:
        policy: under test.
        moments: its observations.
        noise: of one chain per moment, the same for every sampler.
        num_inference_steps: of the chain.
        eta: of the chain.
    """

    policy: DiffusionPolicy
    moments: Moments
    noise: Noise
    num_inference_steps: int | None
    eta: float | None

    def run(self, family: Family, size: Mapping[str, Any], label: str | None = None) -> Trial:
        """Count the rounds of a sampler on all moments, in one batch: each chain's are what they would be alone.

        Args:
            size: options of a round's size, such as {"window": 16}.
            label: of the size in tables.
        """
        # What the family remembers (gains, a draft network) is loaded once; sizes differ in the options only.
        config = SamplerConfig(
            family.method, self.num_inference_steps, self.eta, {**family.options, **family.sizes(1)[0]}
        )
        bound = self.policy.bind(config)
        sampler = replace(bound, config=replace(config, options={**family.options, **size}))
        watched = Watched(sampler)
        self.policy.predict_action(
            self.moments.obs,
            sampler=watched,  # type: ignore[arg-type]
            noise=self.noise,
            generator=hashed_generator(_EXTRA),
            previous_plan=self.moments.previous_plan,
        )
        return Trial(family, _shown(size) if label is None else label, sampler, watched.rounds())


def _shown(size: Mapping[str, Any]) -> str:
    value = next(iter(size.values()))
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Trial:
    """A sampler and the rounds it made.

    Attributes:
        family: how it drafts and verifies.
        window: as shown in tables: a number, how it was planned, or the children of a tree's levels.
        sampler: bound.
        rounds: of one chain per moment.
    """

    family: Family
    window: str
    sampler: BoundSampler
    rounds: Rounds

    @property
    def planned(self) -> bool:
        """Whether the window depends on the step."""
        return isinstance(self.sampler.config.options.get("window"), list)

    def seconds(self, cost: RoundCost) -> float:
        """Expected seconds of a chunk: E[sum over rounds c(rows) + o(rows)]."""
        return float(self.rounds.total(cost(self.rounds.rows)).mean())

    def row(self, cost: RoundCost) -> dict[str, Any]:
        """For tables and speculation.json."""
        calls, rows = float(self.rounds.calls.mean()), float(self.rounds.evaluations.mean())
        return {
            "name": self.family.name,
            "window": self.window,
            "method": self.family.method,
            "options": dict(self.sampler.config.options),
            "calls": calls,
            "rows": rows,
            "overhead_ms_per_round": 1e3 * float(cost.overhead(rows / calls)),
            "predicted_ms": 1e3 * self.seconds(cost),
        }


@dataclass(frozen=True)
class RoundCost:
    """What a round with n rows costs with one family: the network's c(n) and the overhead o(n) = base + per_row n.

    Attributes:
        call: c(n).
        base: seconds outside the network a round.
        per_row: seconds outside the network a row, not negative.
    """

    call: CallCost
    base: float
    per_row: float = 0.0

    @classmethod
    def fit(cls, call: CallCost, timed: Iterable[Timed]) -> RoundCost:
        """The least-squares line through the overhead of a round against its rows, one point per sampler timed.

        The median over a sampler's chunks is taken first: what else the machine did stands in few of them.
        """
        points = [(np.median(t.rows / t.calls), np.median(t.overhead / t.calls)) for t in timed]
        rows, seconds = np.array(points).T
        spread = float(((rows - rows.mean()) ** 2).sum())
        slope = float(((rows - rows.mean()) * (seconds - seconds.mean())).sum()) / spread if spread > 0 else 0.0
        slope = min(max(slope, 0.0), float(seconds.mean() / rows.mean()))
        return cls(call, float(seconds.mean() - slope * rows.mean()), slope)

    def overhead(self, n: ArrayLike) -> NDArray[np.float64]:
        """o(n), seconds outside the network of a round with n rows (any shape)."""
        return self.base + self.per_row * np.asarray(n, dtype=np.float64)

    def __call__(self, n: ArrayLike) -> NDArray[np.float64]:
        """c(n) + o(n) for n rows (any shape)."""
        return self.call(n) + self.overhead(n)


def plan(trials: Sequence[Trial], cost: RoundCost, credit: float) -> list[int]:
    """(K,) windows by step for a family, from all its trials of whatever window.

    Picard's rows beyond a rejection are worth something that the renewal model of `windows` does not see: they are
    sweeps of what comes later. `credit` in (0, 1] is the share of the price of further rows that is charged:

        cost(1) + credit (cost(n) - cost(1))
    """
    accept = acceptance(*count_tests(trial.rounds for trial in trials))
    seconds = cost(np.arange(1, trials[0].rounds.num_steps + 1))
    windows, _ = plan_windows(accept, seconds[0] + credit * (seconds - seconds[0]))
    return [int(w) for w in windows]


def quickest(expected: Iterable[tuple[float, Trial]]) -> list[Trial]:
    """The quickest trial of each family, quickest first, from (expected seconds, trial)."""
    best: dict[str, Trial] = {}
    for _, trial in sorted(expected, key=lambda pair: pair[0]):
        best.setdefault(trial.family.name, trial)
    return list(best.values())
