"""Token buckets and places."""

from __future__ import annotations

import pytest

from diffpolicy_spec.server.limits import Bucket, Buckets, Places


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_its_burst_then_its_rate_and_what_is_owed_is_waited_for():
    clock = Clock()
    bucket = Bucket(rate=10.0, burst=3, clock=clock)
    assert [bucket.take() for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.2])
    clock.now = 0.2
    assert bucket.take() == pytest.approx(0.1)
    clock.now = 100.0
    assert bucket.full
    assert [bucket.take() for _ in range(4)] == pytest.approx([0, 0, 0, 0.1])


def test_names_have_buckets_of_their_own_and_owe_nothing():
    clock = Clock()
    buckets = Buckets(rate=1.0, burst=2, clock=clock)
    assert [buckets.take("a") for _ in range(5)] == [True, True, False, False, False]
    assert buckets.take("b")
    clock.now = 1.0
    assert [buckets.take("a") for _ in range(2)] == [True, False]


def test_names_that_were_quiet_are_forgotten():
    clock = Clock()
    buckets = Buckets(rate=1.0, burst=1, clock=clock)
    for number in range(1000):
        buckets.take(f"before {number}")
    clock.now = 10.0
    for number in range(1000):
        buckets.take(f"after {number}")
    assert len(buckets._of) <= 1025
    assert not buckets.take("after 999")


def test_places_are_bounded_for_all_and_for_each():
    places = Places(3, 2)
    assert [places.enter("a") for _ in range(2)] == [None, None]
    assert "of one client" in places.enter("a")
    assert places.enter("b") is None
    assert "all 3 connections" in places.enter("c")
    places.leave("a")
    assert places.full("c") is None
    assert places.enter("c") is None
    for client in ("a", "b", "c"):
        places.leave(client)
    assert not places._taken
