"""How often a drafted step is accepted, by step and by distance from the round's start, as measured."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .rounds import Rounds

__all__ = ["acceptance", "count_tests"]


def count_tests(rounds: Iterable[Rounds]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tests and passes, each (K, K) by [step, distance from the round's start].

    A round of n rows that went c steps forward passed the tests of its first c - 1 rows, and failed the next one if
    c < n. What lies beyond was never tested: it is left out, not counted as a failure.
    """
    tests = passes = np.zeros((0, 0))
    for run in rounds:
        if not tests.size:
            tests, passes = np.zeros((run.num_steps,) * 2), np.zeros((run.num_steps,) * 2)
        i = np.arange(run.num_steps)
        passed = i < (run.committed - 1)[:, None]  # (R, K)
        tested = passed | (i == (run.committed - 1)[:, None]) & (run.committed < run.rows)[:, None]
        step = np.minimum(run.start[:, None] + i, run.num_steps - 1)
        np.add.at(tests, (step[tested], np.broadcast_to(i, step.shape)[tested]), 1)
        np.add.at(passes, (step[passed], np.broadcast_to(i, step.shape)[passed]), 1)
    return tests, passes


def acceptance(tests: NDArray[np.float64], passes: NDArray[np.float64], *, prior: float = 2.0) -> NDArray[np.float64]:
    """(K, K) probability that the test at [step, distance] is passed, given that it is reached.

        p = (K_s passes K_d + prior q) / (K_s tests K_d + prior),   q: the same without regard to distance

    K_s, K_d average over neighbouring steps and over distances alike in ratio (Gaussian weights of width K / 50 steps
    and 0.4 in log(1 + distance)). Where hardly anything was measured, the step's own mean stands in, and for a step
    without any test the mean of all.
    """
    K = len(tests)
    steps, distance = np.arange(K), np.log1p(np.arange(K))
    over_steps = np.exp(-0.5 * ((steps[:, None] - steps) / max(K / 50, 0.5)) ** 2)
    over_distance = np.exp(-0.5 * ((distance[:, None] - distance) / 0.4) ** 2)
    overall = (passes.sum() + prior) / (tests.sum() + prior)  # nothing measured: a test is taken to be passed
    by_step = (over_steps @ passes.sum(1) + prior * overall) / (over_steps @ tests.sum(1) + prior)
    smooth_passes, smooth_tests = over_steps @ passes @ over_distance, over_steps @ tests @ over_distance
    return (smooth_passes + prior * by_step[:, None]) / (smooth_tests + prior)
