"""A robot's clock in terms of the loop's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpolicy_spec.control.clock_map import FUTURE, JUMP, NORMAL, PAST, ClockMap

MAX_JUMP = 0.1


def feed(clock, stamps, offset, delays):
    return [clock.see(stamp, stamp + offset + delay) for stamp, delay in zip(stamps, delays, strict=True)]


def test_before_the_first_reading_both_clocks_are_one():
    clock = ClockMap(MAX_JUMP)
    assert clock.offset is None
    assert clock.to_loop(3.0) == clock.to_robot(3.0) == 3.0


@settings(max_examples=100, deadline=None)
@given(
    offset=st.floats(-1e6, 1e6),
    delays=st.lists(st.floats(0, 0.4), min_size=2, max_size=60),
    period=st.floats(0.005, 0.1),
)
def test_late_readings_are_late_and_never_a_jump(offset, delays, period):
    """Whatever the delays, in the order of their stamps: normal readings, offset = the smallest delay's."""
    clock = ClockMap(MAX_JUMP)
    delays[0] = 0.0  # with nothing smaller before, a first delay is not known from the offset
    stamps = np.arange(len(delays)) * period
    for i, stamp in enumerate(stamps):
        assert clock.see(stamp, stamp + offset + delays[i]) == NORMAL
        assert clock.to_loop(stamp) == pytest.approx(stamp + offset, abs=1e-9)
        assert clock.to_robot(clock.to_loop(stamp)) == pytest.approx(stamp, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    jump=st.floats(0.35, 1e5),
    back=st.booleans(),
    delays=st.lists(st.floats(0, 0.04), min_size=20, max_size=20),
)
def test_a_jump_is_noticed_by_the_third_reading_and_the_offset_begins_anew(jump, back, delays):
    clock = ClockMap(MAX_JUMP)
    before = np.arange(12) * 0.05
    assert set(feed(clock, before, 7.0, delays[:12])) == {NORMAL}
    jump = -jump if back else jump
    after = before[-1] + 0.05 * np.arange(1, 9) + jump
    kinds = feed(clock, after, 7.0 - jump, delays[12:])
    assert kinds == [PAST if back else FUTURE] * 2 + [JUMP] + [NORMAL] * 5
    assert clock.offset == pytest.approx(7.0 - jump + min(delays[12:]), abs=1e-6)


def test_one_odd_stamp_is_no_jump():
    clock = ClockMap(MAX_JUMP)
    feed(clock, [0.0, 0.05], 0.0, [0, 0])
    assert clock.see(5.0, 0.1) == FUTURE
    assert clock.see(0.15, 0.15) == NORMAL
    assert clock.see(-5.0, 0.2) == PAST
    assert clock.see(5.0, 0.25) == FUTURE
    assert clock.see(-5.0, 0.3) == PAST
    assert clock.see(9.0, 0.3) == FUTURE
    assert clock.see(0.35, 0.35) == NORMAL
    assert clock.offset == pytest.approx(0.0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_five_percent_late_by_200_ms_and_overtaken_is_no_jump(seed):
    rng = np.random.default_rng(seed)
    stamps = np.arange(400) * 0.05
    arrivals = stamps + np.where(rng.random(400) < 0.05, 0.2, 0.001)
    arrivals[0] = 0.001
    clock = ClockMap(MAX_JUMP)
    for i in np.argsort(arrivals, kind="stable"):
        assert clock.see(stamps[i], arrivals[i]) in (NORMAL, PAST)
        assert clock.offset == pytest.approx(0.001)


@pytest.mark.parametrize("drift", [1e-4, -1e-4, 1e-3, -1e-3])
def test_drift_is_followed(drift):
    clock, rng = ClockMap(MAX_JUMP), np.random.default_rng(0)
    for stamp in np.arange(0, 600, 0.05):
        true = stamp * (1 + drift)
        received = true + rng.uniform(0, 0.005)
        assert clock.see(stamp, received) == NORMAL
        assert abs(clock.to_loop(stamp) - true) < 0.005 + 10 * abs(drift)


def test_memory_is_bounded_by_the_window():
    clock = ClockMap(MAX_JUMP)
    for i in range(20_000):  # delays that grow keep every reading of the window
        clock.see(i * 0.005, i * 0.005 * (1 + 1e-4))
    assert len(clock._smallest) <= 10.0 / 0.005 + 2


def test_a_clock_that_is_told_needs_no_guess():
    clock = ClockMap(MAX_JUMP)
    assert not clock.synchronise(100.0, 3.0, 3.0002)
    assert clock.offset == pytest.approx(-96.9999)
    assert clock.see(99.98, 3.03) == NORMAL  # read 20 ms before, though it came as the first
    assert clock.offset == pytest.approx(-96.9999)
    assert not clock.synchronise(100.5, 3.0, 4.0), "held up in between: it may have been any time of that"
    assert clock.offset == pytest.approx(-96.9999)
    assert not clock.synchronise(100.9, 3.0, 4.0)
    assert clock.offset == pytest.approx(-96.9999)
    assert clock.synchronise(200.0, 3.1, 3.1)
    assert clock.offset == pytest.approx(-196.9)
    assert clock.see(200.01, 3.12) == NORMAL
    assert clock.see(199.0, 3.13) == PAST
    assert [clock.see(201.0, 3.13) for _ in range(5)] == [FUTURE] * 5
