"""What a call and a round cost, from times that are known."""

import time

import numpy as np
import pytest
import torch
from tiny_policy import SCHEDULER

from diffpolicy_spec import Schedule
from diffpolicy_spec.choice.cost import CallCost, isotonic, measure_call_cost
from diffpolicy_spec.choice.timing import Timed, is_faster
from diffpolicy_spec.choice.trial import RoundCost


def test_a_sequence_that_rises_is_kept_and_falls_are_pooled():
    np.testing.assert_allclose(isotonic([1, 2, 2, 5]), [1, 2, 2, 5])
    np.testing.assert_allclose(isotonic([1, 4, 2, 3, 9]), [1, 3, 3, 3, 9])
    np.testing.assert_allclose(isotonic([3, 2, 1]), [2, 2, 2])
    # The least-squares solution: no other non-decreasing sequence is nearer.
    rng = np.random.default_rng(0)
    values = rng.normal(size=6)
    nearest = ((isotonic(values) - values) ** 2).sum()
    others = np.sort(rng.normal(size=(20_000, 6)), axis=1)
    assert ((others - values) ** 2).sum(1).min() > nearest


def test_a_call_s_cost_is_linear_between_what_was_measured_and_beyond():
    cost = CallCost((1, 4, 8), (1.0, 4.0, 6.0))
    np.testing.assert_allclose(cost([1, 2, 4, 6, 8, 10]), [1, 2, 4, 5, 6, 7])
    assert CallCost((2,), (3.0,))(50) == 3.0
    noisy = CallCost((1, 2, 4, 8), (2.0, 1.0, 3.0, 2.5))
    assert (np.diff(noisy(np.arange(1, 20))) >= 0).all()


@pytest.mark.parametrize(
    ("rows", "seconds", "message"),
    [
        ((), (), "one time for each"),
        ((1, 2), (1.0,), "one time for each"),
        ((2, 1), (1.0, 1.0), "ascending"),
        ((0, 1), (1.0, 1.0), "ascending"),
        ((1, 2), (1.0, float("nan")), "positive and finite"),
        ((1, 2), (1.0, 0.0), "positive and finite"),
    ],
)
def test_a_cost_that_cannot_be_is_refused(rows, seconds, message):
    with pytest.raises(ValueError, match=message):
        CallCost(rows, seconds)


def test_the_measured_cost_is_that_of_the_network():
    asked = []

    def denoise(x, t, chain):
        asked.append((len(x), t.tolist(), chain.unique().tolist()))
        time.sleep(0.002 + 0.0005 * len(x))
        return x

    schedule = Schedule.from_diffusers(SCHEDULER, 20)
    cost = measure_call_cost(denoise, schedule, (4, 2), torch.device("cpu"), repeats=5)
    assert cost.rows == (1, 2, 4, 8, 16, 20)
    for n in cost.rows:  # a sleep is never shorter than asked for, and hardly ever 5 ms longer in the median of five
        assert 0.002 + 0.0005 * n <= cost(n) < 0.007 + 0.0005 * n
    n, timesteps, chains = asked[3]
    assert timesteps == schedule.timesteps[:n].tolist()
    assert chains == [0]


def timed(rows, calls, overhead):
    return Timed(np.ones(len(rows)), np.array(overhead), np.array(calls), np.array(rows))


def test_the_overhead_of_a_round_is_a_line_in_its_rows():
    call = CallCost((1, 10), (1.0, 10.0))
    # base 0.5 and 0.1 a row; one chunk of the first sampler was disturbed
    known = [timed([40, 40, 40], [10, 10, 10], [9.0, 9.0, 99.0]), timed([60], [5], [8.5]), timed([30], [2], [4.0])]
    cost = RoundCost.fit(call, known)
    np.testing.assert_allclose([cost.base, cost.per_row], [0.5, 0.1])
    np.testing.assert_allclose(cost([1, 10]), [1.6, 11.5])
    falling = RoundCost.fit(call, [timed([4], [1], [3.0]), timed([8], [1], [1.0])])
    np.testing.assert_allclose([falling.base, falling.per_row], [2.0, 0.0])
    steep = RoundCost.fit(call, [timed([4], [1], [0.0]), timed([8], [1], [2.0])])
    assert steep.base == 0.0  # not negative for few rows
    one = RoundCost.fit(call, [timed([4], [1], [3.0])])
    np.testing.assert_allclose(one.overhead([1, 100]), 3.0)


def test_faster_means_beyond_chance():
    rng = np.random.default_rng(0)
    reference = 1 + 0.3 * rng.random(20)
    assert is_faster(reference - 0.01, reference)  # the same chunks, always a little less
    assert not is_faster(reference + 0.01, reference)
    assert not is_faster(reference, reference)
    assert not is_faster(np.r_[reference[:-1] + 0.01, reference[-1] - 0.5], reference)  # one lucky chunk
