"""benchmarks/serving_load.py: what it counts, and that it runs."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_policy import tiny_policy

from diffpolicy_spec import SamplerConfig

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    program = importlib.import_module("serving_load")
    yield program
    sys.modules.pop("serving_load")


class Slow:
    """Serves in order, 10 ms each."""

    def __init__(self) -> None:
        self.waiting, self.next = [], 0

    def submit(self, obs, seed):
        self.waiting.append(self.next)
        self.next += 1
        return self.waiting[-1]

    def step(self):
        if not self.waiting:
            return []
        time.sleep(0.01)
        return [(self.waiting.pop(0), 7, 1.0)]


def test_waiting_in_line_is_part_of_a_latency(program):
    cell = program.Cell()
    program.serve(Slow(), "back to back", 4, 5, [{"x": np.zeros(1)}], 0, cell)
    row = cell.row()
    assert row["chunks"] == 20
    assert row["rows"] == 7
    assert row["median_ms"] >= 35.0  # three others are served first


def test_a_robot_that_is_answered_late_is_counted(program, monkeypatch):
    monkeypatch.setattr(program, "PATTERNS", {"often": (program.spread, 0.005), "seldom": (program.spread, 0.5)})
    often, seldom = program.Cell(), program.Cell()
    program.serve(Slow(), "often", 2, 4, [{"x": np.zeros(1)}], 0, often)
    program.serve(Slow(), "seldom", 1, 1, [{"x": np.zeros(1)}], 0, seldom)
    assert often.late == 8
    assert seldom.late == 0


def test_all_ways_are_measured(program, monkeypatch):
    monkeypatch.setattr(program, "PATTERNS", {"often": (program.spread, 0.02), "back to back": (program.at_once, 0.0)})
    rows = program.measure(tiny_policy(), SamplerConfig("ddpm", 10), [1, 3], 2, 1)
    assert len(rows) == 2 * 4 * 2
    assert all(row["chunks"] == 2 * row["robots"] and row["rows"] == 10 for row in rows)
    assert len(program.table(rows).splitlines()) == 2 + len(rows)
