"""The control loop, the server and the ROS node drive the shipped Lift policy in a world that does not wait.

Success is asserted, no times: the world runs at a rate of wall clock that a loaded machine can follow. Where it could
not, which the loop says by deadlines that were missed, the same is tried at half the rate; an episode that fails
without that fails the test. `benchmarks/robot.py` runs it at 20 Hz, on more episodes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RATES = (10.0, 5.0, 2.5)
MAX_STEPS = 120
SEEDS = (400_000, 400_001)


@pytest.fixture(scope="module", autouse=True)
def _programs():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def solved(drive: Callable[[float], Any], count: int) -> Any:
    """What came of it at the first rate that this machine can follow."""
    for hz in RATES:
        driven = drive(hz)
        assert len(driven.episodes) == count
        assert driven.loop.chunks >= 3 * count
        if driven.successes == count:
            return driven
        starved = driven.loop.deadline_misses + sum(e["held"] + e["late"] + e["slipped"] for e in driven.episodes)
        assert starved, f"not solved at {hz} Hz, though nothing was late: {driven.episodes}\n{driven.loop.text()}"
    raise AssertionError(f"this machine cannot follow {RATES[-1]} Hz:\n{driven.loop.text()}")


def in_loop(planner, hz: float) -> Any:
    from robot_drive import LIFT, by_loop, control_config

    from diffpolicy_spec.envs.realtime import LiveSim

    with LiveSim(LIFT, control_hz=hz, max_steps=MAX_STEPS) as sim:
        return by_loop(sim, planner, SEEDS, control_config(hz))


def test_the_loop_lifts_the_cube():
    from diffpolicy_spec.control.planning import ProcessPlanner

    with ProcessPlanner("lift") as planner:
        driven = solved(lambda hz: in_loop(planner, hz), len(SEEDS))
    assert driven.loop.policy.startswith("lift")
    assert driven.loop.inexact == 0
    assert driven.loop.acceptance > 0.5  # drawn by speculation


def test_the_server_lifts_the_cube():
    from programs import policy_server

    from diffpolicy_spec.server import RemotePlanner

    program, url = policy_server("lift")
    with program:
        planner = RemotePlanner(url)
        planner.start()
        driven = solved(lambda hz: in_loop(planner, hz), len(SEEDS))
        planner.close()
    assert driven.loop.inexact == 0


def test_the_ros_node_lifts_the_cube():
    from robot_node import by_node

    driven = solved(lambda hz: by_node(SEEDS[:1], hz, MAX_STEPS), 1)
    assert driven.loop.stopped == "SIGTERM"
