"""benchmarks/soak.py, for 20 seconds: memory, open files and threads stay where they are under random faults."""

import importlib
import math
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
GROWTH_MB = 12.0
"""Of a process after its first third: caches, a flood's buffers. An hour's run is what shows a slow leak."""
FILES = 4
"""A connection that is being made anew beside the old one, and a checkpoint that is read."""


@pytest.fixture
def soak():
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("soak")
    sys.path[:] = before


def test_twenty_seconds_of_faults_cost_no_memory(soak):
    result = soak.soak(20 / 60, seed=1)
    assert sum(result["injected"].values()) >= 3
    assert len(result["watched"]) == 4
    for name, one in result["watched"].items():
        third = len(one["rss_mb"]) // 3
        assert max(one["rss_mb"][third:]) < one["rss_mb"][third] + GROWTH_MB, (name, one["rss_mb"])
        assert max(one["files"][-third:]) <= max(one["files"][: third + 1]) + FILES, (name, one["files"])
        assert max(one["threads"][-third:]) <= max(one["threads"][: third + 1]) + FILES, (name, one["threads"])
    for name, loop in result["loops"].items():
        assert loop["sources"].get("chunk", 0) > 0, (name, loop)
    assert "ROS node" in soak.table(result)


def test_the_rise_is_that_of_the_line_after_the_first_third(soak):
    seconds = [float(t) for t in range(0, 3600, 60)]
    memory = [500.0 if t < 1000 else 100.0 + t / 3600 for t in seconds]
    assert soak.rise(soak.Watched(seconds, memory, [1] * 60, [1] * 60)) == pytest.approx(1.0)
    assert math.isnan(soak.rise(soak.Watched([0.0, 1.0], [1.0, 2.0], [1, 1], [1, 1])))
