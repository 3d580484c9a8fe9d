"""All tests on two samples, corrected so that equal laws are called different at most at the stated rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .classifier import classifier_test
from .energy import energy_test
from .modes import modes_test
from .pool import Pool, make_pool
from .projections import extremes_test, projections_test
from .score import Score

__all__ = ["TESTS", "Comparison", "check_alpha", "compare", "holm", "needed_permutations", "run_tests", "sees"]

TESTS: dict[str, Callable[[Pool, int], Score]] = {
    "projections (KS)": projections_test,
    "extremes (KS)": extremes_test,
    "mode choice": modes_test,
    "energy distance": energy_test,
    "classifier": classifier_test,
}
"""By name, the quick ones first. Each gets the pooled chunks and a number of permutations."""


@dataclass(frozen=True)
class Comparison:
    """One test in its battery.

    Attributes:
        test: its name in TESTS.
        statistic, p, detail: of its `Score`.
        threshold: Holm's: the test calls the laws different when p is at most this, and so do those with smaller p.
        different: whether it does.
    """

    test: str
    statistic: float
    p: float
    threshold: float
    different: bool
    detail: str


def check_alpha(alpha: float) -> None:
    """Raise ValueError unless 0 < alpha < 1."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha, the overall false-alarm rate, must lie between 0 and 1, got {alpha}")


def needed_permutations(alpha: float) -> int:
    """Permutations with which the smallest p-value is half of the smallest threshold, alpha / len(TESTS)."""
    check_alpha(alpha)
    return math.ceil(2 * len(TESTS) / alpha) - 1


def holm(p: Sequence[float], alpha: float) -> tuple[list[float], list[bool]]:
    """Holm's (1979) thresholds, and which hypotheses they reject; the chance of any false rejection is at most alpha.

    The i-th smallest of m p-values is held against alpha / (m - i + 1), until the first that is larger.
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    thresholds, rejected, going = [0.0] * len(p), [False] * len(p), True
    for rank, i in enumerate(order):
        thresholds[i] = alpha / (len(p) - rank)
        going = going and p[i] <= thresholds[i]
        rejected[i] = going
    return thresholds, rejected


def run_tests(pool: Pool, permutations: int) -> dict[str, Score]:
    """Every test of TESTS on one pool."""
    return {name: test(pool, permutations) for name, test in TESTS.items()}


def compare(
    reference: Tensor, candidate: Tensor, conditions: Tensor, *, alpha: float = 1e-3
) -> tuple[Comparison, ...]:
    """The battery on chunks (O, n, Tp, Da) of two samplers under conditions (O, C).

    If all chunks of an observation are independent and of one law, whatever the observation, then the chance that any
    comparison comes out `different` is at most alpha.

    Raises:
        ValueError: shapes do not fit, too few chunks, chunks that are not finite, or an alpha outside (0, 1).
    """
    scores = run_tests(make_pool(reference, candidate, conditions), needed_permutations(alpha))
    thresholds, rejected = holm([score.p for score in scores.values()], alpha)
    return tuple(
        Comparison(name, score.statistic, score.p, threshold, different, score.detail)
        for (name, score), threshold, different in zip(scores.items(), thresholds, rejected, strict=True)
    )


def sees(reference: Tensor, candidate: Tensor, conditions: Tensor, *, alpha: float) -> bool:
    """Whether any comparison of the battery comes out `different`; stops at the first that does."""
    pool, permutations = make_pool(reference, candidate, conditions), needed_permutations(alpha)
    return any(test(pool, permutations).p <= alpha / len(TESTS) for test in TESTS.values())
