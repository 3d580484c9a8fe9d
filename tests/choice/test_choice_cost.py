"""What a call and a round cost, from times that are known."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_policy import SCHEDULER

from diffpolicy_spec import Schedule
from diffpolicy_spec.choice.candidates import Family
from diffpolicy_spec.choice.cost import CallCost, isotonic, measure_call_cost
from diffpolicy_spec.choice.rounds import Rounds
from diffpolicy_spec.choice.timing import Timed, is_faster
from diffpolicy_spec.choice.trial import RoundCost, Trial, plan
from diffpolicy_spec.runtime import RuntimeConfig


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


@pytest.mark.parametrize("known", [False, True], ids=["by the clock", "by a clock that nothing else moves"])
def test_the_measured_cost_is_that_of_the_network(known, request):
    sleep = request.getfixturevalue("known_time").sleep if known else time.sleep
    asked = []

    def denoise(x, t, chain):
        asked.append((len(x), t.tolist(), chain.unique().tolist()))
        sleep(0.002 + 0.0005 * len(x))
        return x

    schedule = Schedule.from_diffusers(SCHEDULER, 20)
    cost = measure_call_cost(denoise, schedule, (4, 2), torch.device("cpu"), repeats=5)
    assert cost.rows == (1, 2, 4, 8, 16, 20)
    for n in cost.rows:
        assert cost(n) >= 0.002 + 0.0005 * n  # how much longer a sleep takes is up to what else runs
        assert not known or cost(n) == pytest.approx(0.002 + 0.0005 * n, rel=0.01)
    n, timesteps, chains = asked[3]
    assert timesteps == schedule.timesteps[:n].tolist()
    assert chains == [0]


def test_where_rounds_are_padded_calls_are_measured_with_what_they_are_padded_to():
    asked = []

    def denoise(x, t, chain):
        asked.append(torch.get_num_threads())
        return x

    schedule = Schedule.from_diffusers(SCHEDULER, 20)
    cost = measure_call_cost(
        denoise, schedule, (4, 2), torch.device("cpu"), runtime=RuntimeConfig("static", threads=2), repeats=1
    )
    assert cost.rows == (1, 8, 16, 20)
    assert set(asked) == {2}
    assert torch.get_num_threads() == 1


def test_the_overhead_of_a_round_is_a_line_in_its_rows():
    call = CallCost((1, 10), (1.0, 10.0))
    cost = RoundCost.fit(call, [(4, 0.9), (12, 1.7), (15, 2.0)])
    np.testing.assert_allclose([cost.base, cost.per_row], [0.5, 0.1])
    np.testing.assert_allclose(cost([1, 10]), [1.6, 11.5])
    falling = RoundCost.fit(call, [(4, 3.0), (8, 1.0)])
    np.testing.assert_allclose([falling.base, falling.per_row], [2.0, 0.0])
    steep = RoundCost.fit(call, [(4, 0.0), (8, 2.0)])
    assert steep.base == 0.0  # not negative for few rows
    one = RoundCost.fit(call, [(4, 3.0)])
    np.testing.assert_allclose(one.overhead([1, 100]), 3.0)
    np.testing.assert_allclose(RoundCost.fit(call, [(4, -1.0)]).overhead([1, 100]), 0.0)
    # Elsewhere a call of one row takes half as long: so does what is around it.
    quick = cost.elsewhere(CallCost((1, 10), (0.5, 8.0)), padded=True)
    np.testing.assert_allclose([quick.base, quick.per_row, quick(10)], [0.25, 0.05, 8.75])


def trial(committed, widths, rows=None, num_steps=20):
    """One chain whose rounds go so many steps forward, and have these rows: no more than that unless they are given."""
    committed = np.array(committed)
    rows, start = committed if rows is None else np.array(rows), np.cumsum(committed) - committed
    rounds = Rounds(np.zeros_like(rows), start, rows, committed, num_steps)
    return Trial(Family("known"), "8", None, rounds, widths)


def test_padded_rounds_cost_as_much_as_what_they_are_padded_to():
    call = CallCost((1, 16), (1.0, 16.0))
    some = trial([5, 8, 6, 1], (1, 8))
    assert some.seconds(RoundCost(call, 0.5, 0.1)) == pytest.approx(20 + 4 * 0.5 + 2.0)
    assert some.seconds(RoundCost(call, 0.5, 0.1, padded=True)) == pytest.approx(25 + 4 * 0.5 + 2.5)


def test_where_rounds_are_padded_windows_are_planned_as_wide_as_what_they_are_padded_to():
    known = [trial(committed, (1, 8), rows=[8] * len(committed)) for committed in ([5, 4, 7, 4], [8, 3, 4, 5])]
    cost = RoundCost(CallCost((1, 20), (1.0, 20.0)), 3.0)
    assert set(plan(known, cost, 1.0)[:12]) - {8, 16, 20}
    assert set(plan(known, replace(cost, padded=True), 1.0)[:12]) <= {8, 16, 20}


def test_the_overhead_is_what_the_network_leaves_of_a_chunk():
    call = CallCost((1, 16), (1.0, 16.0))
    some = trial([5, 8, 6, 1], (1, 8))
    # Three chunks of four rounds; the last one was disturbed.
    parts = np.array([[20.0, 1, 1, 0], [20.0, 1, 1, 0], [20.0, 1, 1, 70]])
    known = Timed(np.array([22.0, 22.0, 92.0]), parts, np.full(3, 4.0), np.full(3, 20.0))
    assert some.overhead(call, known, padded=False) == pytest.approx((5.0, 0.5))
    assert some.overhead(call, known, padded=True) == pytest.approx((6.25, 0.5))
    # Of captured rounds only the whole is known: c of the padded rows is taken off.
    captured = Timed(np.full(3, 27.0), np.full((3, 4), np.nan), np.full(3, 4.0), np.full(3, 20.0))
    assert some.overhead(call, captured, padded=True) == pytest.approx((6.25, 0.5))


def test_faster_means_beyond_chance():
    rng = np.random.default_rng(0)
    reference = 1 + 0.3 * rng.random(20)
    assert is_faster(reference - 0.01, reference)  # the same chunks, always a little less
    assert not is_faster(reference + 0.01, reference)
    assert not is_faster(reference, reference)
    assert not is_faster(np.r_[reference[:-1] + 0.01, reference[-1] - 0.5], reference)  # one lucky chunk
