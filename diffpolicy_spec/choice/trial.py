"""One sampler tried: its rounds on many observations at once, and what they would cost one robot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffpolicy_spec.networks import Denoise, Networks
from diffpolicy_spec.noise import Noise
from diffpolicy_spec.runtime.config import RuntimeConfig
from diffpolicy_spec.samplers import BoundSampler, SamplerConfig
from diffpolicy_spec.seeds import hashed_generator
from diffpolicy_spec.window import widths_to

from .acceptance import acceptance, count_tests
from .candidates import Family
from .cost import CallCost
from .rounds import Rounds, Watched
from .timing import Moments, Timed
from .windows import plan_windows

if TYPE_CHECKING:
    from diffpolicy_spec.policies import DiffusionPolicy

__all__ = ["Bench", "RoundCost", "Trial", "plan", "quickest", "under"]

_EXTRA = 8  # stream of what a sampler draws beside the noise of its chains


@dataclass(frozen=True)
class Bench:
    """What every trial shares.

    Attributes:
        policy: under test.
        denoise: its network under the first observation.
        moments: its observations.
        noise: of one chain per moment, the same for every sampler.
        num_inference_steps: of the chain.
        eta: of the chain.
    """

    policy: DiffusionPolicy
    denoise: Denoise
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
        alone = Networks(self.denoise, sampler.schedule, (1, *self.noise.start.shape[1:]), self.policy.device)
        widths = tuple(sampler.chains(alone).widths())
        return Trial(family, _shown(size) if label is None else label, sampler, watched.rounds(), widths)


def under(sampler: BoundSampler, runtime: RuntimeConfig) -> BoundSampler:
    """The sampler with its rounds run this way."""
    return replace(sampler, config=replace(sampler.config, runtime=runtime))


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
        widths: what its rounds are padded to where a runtime wants fixed shapes, ascending.
    """

    family: Family
    window: str
    sampler: BoundSampler
    rounds: Rounds
    widths: tuple[int, ...]

    @property
    def planned(self) -> bool:
        """Whether the window depends on the step."""
        return isinstance(self.sampler.config.options.get("window"), list)

    def seconds(self, cost: RoundCost) -> float:
        """Expected seconds of a chunk: E[sum over rounds c(rows) + o(rows)], padding included."""
        return float(self.rounds.total(cost(self._evaluated(cost.padded))).mean())

    def overhead(self, call: CallCost, timed: Timed, padded: bool) -> tuple[float, float]:
        """Mean rows of a round, and seconds a round spends outside the network, from chunks that were timed.

        The median over chunks: what else the machine did stands in few of them. Of captured rounds only the whole is
        known: c(rows) of the rounds counted is taken off.
        """
        rows = self._evaluated(padded)
        network = np.where(np.isnan(timed.parts[:, 0]), timed.calls * call(rows).mean(), timed.parts[:, 0])
        return float(rows.mean()), float(np.median((timed.seconds - network) / timed.calls))

    def _evaluated(self, padded: bool) -> NDArray[np.int64]:
        """(R,) rows of each round's call."""
        return _padded(self.rounds.rows, self.widths) if padded else self.rounds.rows

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


def _padded(rows: NDArray[np.int64], widths: Sequence[int]) -> NDArray[np.int64]:
    """The least width that holds each round."""
    return np.asarray(widths)[np.searchsorted(widths, rows)]


@dataclass(frozen=True)
class RoundCost:
    """What a round with n rows costs with one family: the network's c(n) and the overhead o(n) = base + per_row n.

    Attributes:
        call: c(n).
        base: seconds outside the network a round, not negative.
        per_row: seconds outside the network a row, not negative.
        padded: whether rounds are padded to a few widths.
    """

    call: CallCost
    base: float
    per_row: float = 0.0
    padded: bool = False

    @classmethod
    def fit(cls, call: CallCost, points: Iterable[tuple[float, float]], *, padded: bool = False) -> RoundCost:
        """The least-squares line through (rows, seconds outside the network) of a round, one point per sampler."""
        rows, seconds = np.maximum(np.array(list(points)).T, 0.0)
        spread = float(((rows - rows.mean()) ** 2).sum())
        slope = float(((rows - rows.mean()) * (seconds - seconds.mean())).sum()) / spread if spread > 0 else 0.0
        slope = min(max(slope, 0.0), float(seconds.mean() / rows.mean()))
        return cls(call, float(seconds.mean() - slope * rows.mean()), slope, padded)

    def elsewhere(self, call: CallCost, *, padded: bool) -> RoundCost:
        """A guess for a runtime with another c(n): what is outside the network shrinks as a call of one row does."""
        ratio = float(call(1) / self.call(1))
        return RoundCost(call, ratio * self.base, ratio * self.per_row, padded)

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
    accept, K = acceptance(*count_tests(trial.rounds for trial in trials)), trials[0].rounds.num_steps
    rows = np.arange(1, K + 1)
    seconds = cost(_padded(rows, widths_to(K)) if cost.padded else rows)
    windows, _ = plan_windows(accept, seconds[0] + credit * (seconds - seconds[0]))
    return [int(w) for w in windows]


def quickest(expected: Iterable[tuple[float, Trial]]) -> list[Trial]:
    """The quickest trial of each family, quickest first, from (expected seconds, trial)."""
    best: dict[str, Trial] = {}
    for _, trial in sorted(expected, key=lambda pair: pair[0]):
        best.setdefault(trial.family.name, trial)
    return list(best.values())
