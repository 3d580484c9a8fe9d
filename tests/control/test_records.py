"""What a run was like, in a fixed amount of memory."""

import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_events import a_run

from diffpolicy_spec.control import Fault, Recorder
from diffpolicy_spec.control.histogram import Histogram
from diffpolicy_spec.control.records import replay


@given(st.lists(st.floats(1e-3, 1e7), min_size=1, max_size=200), st.sampled_from([1, 50, 90, 99, 100]))
def test_percentiles_of_a_histogram_are_within_one_percent(values: list[float], percent: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    rank = max(1, math.ceil(percent / 100 * len(values)))
    assert histogram.percentile(percent) == pytest.approx(sorted(values)[rank - 1], rel=0.01)
    found = histogram.percentiles()
    assert (found.count, found.max) == (len(values), max(values))
    assert found.mean == pytest.approx(np.mean(values))


def test_small_and_missing_values_of_a_histogram() -> None:
    histogram = Histogram()
    assert math.isnan(histogram.percentile(50))
    assert histogram.percentiles().data() == {"count": 0}
    for value in [0.0, 0.0, 0.0, float("nan"), 3.0]:
        histogram.add(value)
    found = histogram.percentiles()
    assert (found.count, found.p50, found.max) == (4, 0.0, 3.0)


def test_a_recorder_counts_what_happened() -> None:
    recorder = Recorder()
    replay(a_run(), recorder)
    run = recorder.summary()
    assert (run.control_hz, run.policy, run.sampler) == (100.0, "lift@12ab", "speculative")
    assert (run.seconds, run.periods, run.skipped) == (pytest.approx(2.0), 198, 2)
    assert run.sources == {"nothing": 10, "chunk": 188}
    assert (run.chunks, run.inexact, run.deadline_misses) == (10, 1, 1)
    assert (run.stale_actions, run.usable_actions) == (50, 100)
    assert (run.calls, run.evaluations, run.accepted, run.rejected) == (225, 1800, 630, 90)
    assert run.acceptance == pytest.approx(630 / 720)
    assert run.latency_ms.p50 == pytest.approx(54, rel=0.01)
    assert run.jitter_ms.max == pytest.approx(0.299)
    assert run.observation_age_ms.count == 188
    assert run.interventions == {"velocity_limit": 7}
    late, gone = run.faults["late_inference"], run.faults["server_unreachable"]
    assert (late.count, late.seconds, late.ongoing) == (1, pytest.approx(0.4), False)
    assert (gone.count, gone.seconds, gone.ongoing) == (1, pytest.approx(0.5), True)
    assert run.stopped == "asked to"
    text = run.text()
    for part in ("198 periods at 100 Hz, 2 skipped", "velocity_limit 7", "late_inference 1 (0.4 s)", "not over",
                 "87.5 % of drafted steps", "stopped: asked to"):  # fmt: skip
        assert part in text
    assert json.loads(json.dumps(run.data(), allow_nan=False))["latency_ms"]["count"] == 10


def test_nothing_recorded_is_no_error() -> None:
    run = Recorder().summary()
    assert run.periods == run.chunks == 0
    assert "faults: none" in run.text()
    json.dumps(run.data(), allow_nan=False)


def test_a_fault_told_twice_is_one_and_its_time_is_counted_once() -> None:
    recorder = Recorder()
    for time, over, lasted in [(0.0, False, None), (1.0, False, None), (3.0, True, None), (5.0, False, None)]:
        recorder.on_fault(Fault(time, "worker_died", "", over, lasted))
    fault = recorder.summary().faults["worker_died"]
    assert (fault.count, fault.seconds, fault.ongoing) == (2, 3.0, True)


def test_a_recorders_memory_does_not_grow() -> None:
    recorder = Recorder()
    events = list(a_run())
    replay(events, recorder)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(20):
        replay(events, recorder)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 5_000


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(TypeError, match="dict is no event"):
        replay([{}], Recorder())
