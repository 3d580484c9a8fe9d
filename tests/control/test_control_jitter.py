"""benchmarks/control_jitter.py runs, and counts what it says."""

import sys
from pathlib import Path

import numpy as np

from diffpolicy_spec.control import Tick

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import control_jitter


def test_a_row():
    row = control_jitter.measure(50.0, "nothing", 0.5, False, "lift")
    assert 0 < row["periods"] <= 26
    assert row["periods"] + row["skipped"] <= 26
    assert 0 <= row["jitter_ms"]["p50"] <= row["jitter_ms"]["p99"] <= row["jitter_ms"]["max"]
    assert row["busy_ms"]["p50"] > 0
    header, _, line = control_jitter.table([row]).splitlines()
    assert header.count("|") == line.count("|")


def test_what_is_counted():
    times, action = control_jitter.Times(1.0, 10.0), np.zeros(2)
    for index in range(40):
        if index != 25:
            sent = action if index >= 5 else None
            times.on_tick(Tick(index, 0.1 * index, float(index), sent, "chunk", busy_ms=1.0))
    # The first command at 0.5 s, one second of settling, one second: periods 15 to 24.
    assert times.jitter[: times.count].tolist() == list(range(15, 25))
    assert (times.first, times.last) == (15, 24)
