"""Observations by their time, as a policy needs them."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpolicy_spec.control import PolicyInfo
from diffpolicy_spec.control.history import DUPLICATE, NEW, OLD, REORDERED, History, misfit

INFO = PolicyInfo({"pos": 3, "gripper": 1}, {"front": (3, 4, 5)}, 3, 8, 16, 10, 2)
DT = 0.05


def values(number):
    return {
        "pos": np.full(3, float(number)),
        "gripper": np.full(1, float(number)),
        "front": np.full((3, 4, 5), number % 256, np.uint8),
    }


def history(times, **kwargs):
    made = History(INFO, DT, **kwargs)
    for time in times:
        made.add(time, values(round(time / DT)))
    return made


def numbers(stack):
    return stack.obs["pos"][:, 0].tolist()


def test_the_last_steps_oldest_first():
    stack = history([0.0, 0.05, 0.1, 0.15]).stack()
    assert numbers(stack) == [1, 2, 3]
    assert {key: value.shape for key, value in stack.obs.items()} == {
        "pos": (3, 3), "gripper": (3, 1), "front": (3, 3, 4, 5)
    }  # fmt: skip
    assert stack.obs["front"].dtype == np.uint8
    assert (stack.time, stack.lost) == (0.15, 0)


def test_at_the_start_the_first_is_repeated():
    assert history([]).stack() is None
    assert numbers(history([1.0]).stack()) == [20, 20, 20]
    assert numbers(history([1.0, 1.05]).stack()) == [20, 20, 21]
    assert history([1.0]).stack().lost == 0


def test_a_lost_one_is_stood_for_by_the_nearest_older_one_and_counted():
    stack = history([0.0, 0.05, 0.15, 0.2]).stack()  # 0.1 is lost
    assert numbers(stack) == [1, 3, 4]
    assert stack.lost == 1
    assert numbers(history([0.0, 0.2]).stack()) == [0, 0, 4]


def test_times_that_are_a_little_off_are_near_enough():
    stack = history([0.0, 0.06, 0.1, 0.16]).stack()
    assert numbers(stack) == [1, 2, 3]
    assert stack.lost == 0
    strict = history([0.0, 0.06, 0.1, 0.16], tolerance=0.05)
    assert numbers(strict.stack()) == [1, 2, 3]  # 0.1 for 0.11 is nearest older, 0.06 is exact
    assert strict.stack().lost == 1


def test_duplicates_late_ones_and_old_ones():
    made = history([0.0, 0.05, 0.15])
    assert made.add(0.15, values(99)) == DUPLICATE
    assert made.add(0.1, values(2)) == REORDERED
    assert numbers(made.stack()) == [1, 2, 3]
    assert made.add(-1.0, values(99)) == OLD
    assert made.add(0.2, values(4)) == NEW


def test_sensors_faster_and_slower_than_the_policy():
    fast = history(np.arange(0, 1, 0.01).tolist())
    assert numbers(fast.stack()) == [18, 19, 20]  # 0.89, 0.94, 0.99
    assert fast.stack().lost == 0
    assert len(fast) <= 22
    slow = history([0.0, 0.1, 0.2])
    assert numbers(slow.stack()) == [2, 2, 4]
    assert slow.stack().lost == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=80), st.floats(0.1, 0.9))
def test_whatever_comes_the_newest_is_last_and_nothing_is_from_later_than_its_place(ticks, tolerance):
    made = History(INFO, DT, tolerance)
    for tick in ticks:
        made.add(tick * 0.01, values(tick))
    stack = made.stack()
    assert stack.time == max(ticks) * 0.01
    got = np.array(numbers(stack)) * 0.01
    assert got[-1] == pytest.approx(stack.time)
    assert (np.diff(got) >= 0).all()
    wanted = stack.time - DT * np.arange(2, -1, -1)
    kept = made._times[0]
    assert (got <= np.maximum(wanted, kept) + tolerance * DT + 1e-9).all()
    assert len(made) <= 22


def test_arrays_that_are_written_again_are_not_the_history():
    made, one = History(INFO, DT), values(1)
    made.add(0.0, one)
    one["pos"][:] = 77
    assert numbers(made.stack()) == [1, 1, 1]


def test_gaps_are_counted_by_the_usual_distance():
    made = History(INFO, DT)
    found = []
    for i in [0, 1, 2, 3, 4, 5, 7, 8, 11, 12]:
        made.add(i * DT, values(i))
        found.append(made.missing)
    assert found == [0, 0, 0, 0, 0, 0, 1, 0, 2, 0]
    jittery = History(INFO, DT)  # a 30 Hz camera read at 20 Hz loses nothing
    for i in range(60):
        jittery.add(np.floor(i * DT * 30) / 30, values(i))
        assert jittery.missing == 0


def test_clear_forgets():
    made = history([0.0, 0.05])
    made.clear()
    assert made.stack() is None
    assert made.newest is None
    assert made.add(-100.0, values(1)) == NEW


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pos": None}, "pos missing .*the robot gives joint_1"),
        ({"pos": np.zeros(4)}, r"pos has shape \(4,\), the policy needs \(3,\)"),
        ({"pos": np.zeros((1, 3))}, "pos has shape"),
        ({"front": np.zeros((4, 5, 3), np.uint8)}, "front has shape"),
        ({"pos": np.array(["a", "b", "c"])}, "not numbers"),
        ({"pos": np.array([1, 2, None])}, "not numbers"),
        ({"pos": np.array([1, 2, np.nan])}, "pos is not finite"),
    ],
)
def test_what_does_not_fit_is_named(change, said):
    given = {**values(1), "joint_1": np.zeros(2), **change}
    if change.get("pos", 0) is None:
        del given["pos"]
    assert re.search(said, misfit(given, INFO))


def test_what_fits():
    assert misfit({**values(1), "other": "anything"}, INFO) is None
    assert misfit({**values(1), "pos": [1.0, 2, 3]}, INFO) is None
