"""The loop's smaller parts: the grid, faults, the publisher, requests, signals."""

import gc
import os
import signal
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpolicy_spec.control import ControlConfig, Fault, PolicyInfo, Subscriber
from diffpolicy_spec.control.faults import FaultBook
from diffpolicy_spec.control.grid import Grid, sleep_until, undisturbed
from diffpolicy_spec.control.history import Stack
from diffpolicy_spec.control.publisher import Publisher
from diffpolicy_spec.control.requests import Requests
from diffpolicy_spec.control.signals import stop_on_signals

INFO = PolicyInfo({"pos": 3}, {}, 2, 8, 16, 3, 1)


# Grid


@given(st.floats(0, 1e6), st.floats(10, 200), st.integers(0, 10**6), st.floats(0, 100))
def test_periods_are_skipped_and_never_closer_than_half_of_one(start, hz, n, late):
    grid = Grid(start, hz)
    now = grid.time(n) + late / hz
    following = grid.after(n, now)
    assert following >= n + 1
    begins = max(grid.time(following), now)
    assert (begins - grid.time(following)) * hz <= 0.5 + 1e-3, "it begins in its first half"
    if following > n + 1:
        assert (now - grid.time(following - 1)) * hz >= 0.5 - 1e-3, "no period is skipped that still could begin"


def test_the_grid_does_not_drift():
    assert Grid(5.0, 20.0).time(20 * 3600) == 5.0 + 3600


def test_sleeping_ends_not_before_it_is_due():
    now = 0.0

    def sleep(seconds):
        nonlocal now
        now += 0.75 * seconds if seconds > 1e-3 else seconds  # woken too early

    sleep_until(1.0, lambda: now, sleep)
    assert now == pytest.approx(1.0)
    sleep_until(0.5, lambda: now, sleep)
    assert now == pytest.approx(1.0)


def test_what_is_held_off_is_put_back():
    interval, frozen = sys.getswitchinterval(), gc.get_freeze_count()
    with undisturbed(False):
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
        assert sys.getswitchinterval() < interval
    assert gc.get_freeze_count() == frozen
    assert sys.getswitchinterval() == interval


def test_real_time_priority_where_it_is_permitted_and_only_meanwhile():
    before = os.sched_getscheduler(0)
    found = []

    def other_thread():
        with undisturbed(True):
            found.append(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK)
        found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    permitted = os.geteuid() == 0
    if permitted and found[0] != os.SCHED_FIFO:
        with pytest.raises(PermissionError):  # root, but the system still says no
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    assert found[1] == before
    assert os.sched_getscheduler(0) == before


# Faults


def book():
    told: list[Fault] = []
    return FaultBook(told.append, quiet=1.0), told


def test_a_fault_is_told_when_it_begins_and_when_it_is_over():
    faults, told = book()
    for n in range(10):
        faults.happened("observation_lost", f"number {n}", 0.1 * n)
        faults.look(0.1 * n)
    assert [(f.kind, f.message, f.recovered) for f in told] == [("observation_lost", "number 0", False)]
    assert faults.active == ("observation_lost",)
    faults.look(1.85)
    assert len(told) == 1
    faults.look(1.95)
    assert told[1].recovered
    assert told[1].lasted_s == pytest.approx(1.95)
    assert "10 times" in told[1].message
    assert (faults.active, faults.counts) == ((), {"observation_lost": 10})
    faults.happened("observation_lost", "again", 5.0, times=3)
    assert faults.counts == {"observation_lost": 13}
    assert len(told) == 3


def test_one_that_lasts_is_over_when_it_is_said():
    faults, told = book()
    faults.happened("server_unreachable", "gone", 1.0, lasting=True)
    faults.look(100.0)
    assert len(told) == 1
    faults.over("server_unreachable", 101.0, "there again")
    faults.over("server_unreachable", 102.0)
    assert [(f.recovered, f.message, f.lasted_s) for f in told[1:]] == [(True, "there again", 100.0)]


def test_a_kind_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"'gremlins' is no fault: .*clock_jump"):
        book()[0].happened("gremlins", "", 0.0)


# Publisher


class Listener(Subscriber):
    def __init__(self, fails=False):
        self.heard, self.fails = [], fails

    def on_fault(self, event):
        self.heard.append(event)
        if self.fails:
            raise RuntimeError("disk full")


def test_a_subscriber_that_raises_is_dropped_and_the_others_go_on():
    good, bad, failed = Listener(), Listener(fails=True), []
    publisher = Publisher([bad, good], lambda subscriber, error: failed.append((subscriber, str(error))))
    events = [Fault(float(n), "clock_jump", "") for n in range(3)]
    for event in events:
        publisher.put(event)
    publisher.flush()
    assert good.heard == events
    assert bad.heard == events[:1]
    assert failed == [(bad, "disk full")]
    late = Listener()
    publisher.add(late)
    publisher.put(events[0])
    publisher.flush()
    assert late.heard == events[:1]


# Requests

DT = 0.05


def requests(**config):
    made = Requests(ControlConfig(**config))
    made.know(INFO)
    return made


def stack(time):
    return Stack({"pos": np.zeros((2, 3))}, time, 0)


def test_one_chunk_each_ta_steps():
    made, asked = requests(), []
    for n in range(30):
        now = 100 + n * DT
        if made.due(now, now):
            request = made.ask(stack(now), None, now)
            asked.append(n)
            made.answered(request.id, now + 0.02)
    assert asked == [0, 8, 16, 24]


def test_none_while_one_is_under_way_but_when_nothing_of_it_could_be_executed():
    made = requests(n_action_steps=4)
    first = made.ask(stack(0.0), None, 0.0)
    assert not any(made.due(n * DT, n * DT) for n in range(15))
    assert made.due(0.75, 0.75)
    second = made.ask(stack(0.75), None, 0.75)
    assert made.newest.request is second
    assert made.answered(first.id, 0.8).request is first
    assert made.newest.request is second, "the older answer does not end the wait"
    assert made.answered(second.id, 0.9).request is second
    assert made.newest is None
    assert made.answered(second.id, 0.9) is None


def test_after_a_loss_at_once_and_with_the_first_observation_after_a_gap():
    made = requests()
    first = made.ask(stack(0.0), None, 0.0)
    made.lost(first.id)
    assert made.due(0.0, 0.05), "the same observation will do"
    second = made.ask(stack(0.05), None, 0.05)
    made.answered(second.id, 0.1)
    assert not made.due(0.40, 0.40)
    assert not made.due(0.40, 5.0), "without an observation there is nothing to plan from"
    assert made.due(0.7, 5.0)


def test_losing_an_older_one_changes_nothing():
    made = requests()
    first = made.ask(stack(0.0), None, 0.0)
    second = made.ask(stack(0.75), None, 0.75)
    made.lost(first.id)
    made.answered(second.id, 0.8)
    assert not made.due(0.85, 0.85)


def test_readings_that_are_a_little_early_are_the_ones_that_are_due():
    made = requests()
    made.answered(made.ask(stack(0.0), None, 0.0).id, 0.01)
    assert made.due(0.398, 0.4)
    assert not made.due(0.36, 0.4)


def test_deadlines_are_given_only_to_be_kept():
    kept = requests(deadline_ms=100, on_deadline="finish").ask(stack(1.0), None, 1.02)
    assert kept.deadline == pytest.approx(1.12)
    made = requests(deadline_ms=100)
    assert made.ask(stack(1.0), None, 1.02).deadline is None
    assert made.missed(1.11) == []
    (missed,) = made.missed(1.13)
    assert missed.deadline == pytest.approx(1.12)
    assert made.missed(1.2) == [], "told once"


def test_what_is_frozen_is_what_chunks_took_and_one():
    made = requests(freeze=True, lead_ms=10)
    assert made.to_freeze == 0
    for latency in (0.07, 0.12, 0.05):
        made.answered(made.ask(stack(0.0), None, 0.0).id, latency)
    assert made.to_freeze == 4  # 0.13 s are 3 steps, and one
    made.answered(made.ask(stack(0.0), None, 0.0).id, 60.0)
    assert made.to_freeze == 14, "one action is left to be planned"
    for _ in range(10):
        made.answered(made.ask(stack(0.0), None, 0.0).id, 0.01)
    assert made.to_freeze == 2, "what took long once is forgotten"
    assert requests(freeze=True, freeze_steps=5).to_freeze == 5
    assert requests(freeze_steps=5).to_freeze == 0


def test_seeds_differ_and_come_again():
    def seeds(seed):
        made = requests(seed=seed)
        return [made.ask(stack(float(n)), None, float(n)).seed for n in range(5)]

    assert seeds(3) == seeds(3)
    assert len(set(seeds(3) + seeds(4))) == 10
    assert seeds(None) == [None] * 5


def test_unanswered_requests_do_not_pile_up():
    made = requests()
    for n in range(1000):
        made.ask(stack(float(n)), None, float(n))
    assert len(made._pending) <= 64


def test_more_action_steps_than_a_chunk_has():
    with pytest.raises(ValueError, match="n_action_steps is 16, but a chunk of this policy has 15"):
        requests(n_action_steps=16)


# Signals


class Loop:
    def __init__(self):
        self.calls = []

    def stop(self, reason):
        self.calls.append(("stop", reason))

    def emergency_stop(self, reason):
        self.calls.append(("emergency_stop", reason))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_and_a_second_one_is_the_emergency_stop(number):
    loop, before = Loop(), signal.getsignal(number)
    with stop_on_signals(loop):
        signal.raise_signal(number)
        assert loop.calls == [("stop", number.name)]
        signal.raise_signal(signal.SIGTERM)
        assert loop.calls[1] == ("emergency_stop", "SIGTERM, the second signal")
    assert signal.getsignal(number) is before


def test_handlers_are_put_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), stop_on_signals(Loop()):
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_leave_signals_alone():
    before, found = signal.getsignal(signal.SIGTERM), []

    def other():
        with stop_on_signals(Loop()):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [before]
