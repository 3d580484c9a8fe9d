"""A robot's readings go wrong while the loop runs: the commands go on within the limits, it is told, it passes."""

from __future__ import annotations

import time

import numpy as np
import pytest
from faults_checks import SLACK_S, WATCHDOG_MS
from faults_policy import save_policy
from faults_processes import wait_for
from faults_robot import FaultyRobot, NumericRobot, Readings
from faults_running import SOON, is_over, recovered, running

from diffpolicy_spec.control.planning import ProcessPlanner


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    planner = ProcessPlanner(save_policy(tmp_path_factory.mktemp("policy") / "tiny"))
    planner.start()
    yield planner
    planner.close()


@pytest.mark.parametrize("share", [0.05, 0.25])
def test_readings_lost_duplicated_reordered_and_late(planner, share):
    with running(planner) as (_, robot, told):
        robot.wrong = Readings(lose=share, duplicate=share, reorder=share, delay=share, delay_s=0.2)
        wait_for(lambda: min(robot.done.values()) >= 2, SOON, lambda: f"too few faults: {robot.done}")
        recovered(told)
        robot.wrong = Readings()
        kinds = ("observation_lost", "observation_duplicate", "observation_reordered")
        for kind in kinds:
            assert told.began(kind), (kind, told.kinds())
        is_over(told, *kinds)
        recovered(told)


def test_all_readings_late(planner):
    with running(planner) as (_, robot, told):
        robot.wrong = Readings(delay=1.0, delay_s=0.2)
        wait_for(lambda: told.began("observation_late"), SOON, "lateness is not told")
        recovered(told)
        robot.wrong = Readings()
        recovered(told)
        is_over(told, "observation_late")


@pytest.mark.parametrize("jump", [5.0, -5.0, 3600.0])
@pytest.mark.parametrize("tells", [False, True])
def test_the_clock_jumps(planner, jump, tells):
    robot = FaultyRobot(NumericRobot(hz=25.0, clock_offset=1000.0))
    if tells:
        robot.now = robot.robot.clock
    with running(planner, robot) as (_, robot, told):
        robot.robot.clock_offset += jump
        wait_for(lambda: told.began("clock_jump"), SOON, "the jump is not told")
        recovered(told)
        is_over(told, "clock_jump")
        last = robot.robot.sent[-1]
        assert last.time == pytest.approx(last.at + robot.robot.clock_offset, abs=0.5)  # times are of the new clock


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_readings_that_are_no_numbers(planner, kind):
    with running(planner) as (_, robot, told):
        if kind == "nan":
            robot.wrong.nan = True
        else:
            robot.wrong.change = lambda values: {
                k: np.where(np.arange(len(v)) == 0, np.inf, v) for k, v in values.items()
            }
        wait_for(lambda: "nonfinite_observation" in told.kinds(), SOON, "it is not told")
        wait_for(lambda: told.ticks[-1].source == "hold", SOON, "no safety action")
        robot.wrong = Readings()
        recovered(told)


@pytest.mark.parametrize(
    ("wrong", "told_as"),
    [
        (Readings(drop=("goal",)), "observation_invalid"),
        (Readings(rename={"goal": "target"}), "observation_invalid"),
        (Readings(drop=("joints",)), "wrong_observation"),
        (Readings(change=lambda values: {k: v[:1] for k, v in values.items()}), "wrong_observation"),
        (Readings(change=lambda values: values | {"goal": np.zeros((3, 3))}), "observation_invalid"),
        (Readings(change=lambda values: values | {"goal": np.array(["a", "b"])}), "nonfinite_observation"),
    ],
    ids=["missing", "renamed", "no position", "too short", "shape", "text"],
)
def test_readings_of_another_robot(planner, wrong, told_as):
    with running(planner) as (_, robot, told):
        robot.wrong = wrong
        wait_for(lambda: told_as in told.kinds(), SOON, lambda: f"it is not told as {told_as}: {told.kinds()}")
        wait_for(lambda: told.ticks[-1].source == "hold", SOON, "no safety action")
        robot.wrong = Readings()
        recovered(told)


def test_no_readings_any_more(planner):
    with running(planner) as (_, robot, told):
        robot.wrong = Readings(freeze=True)
        wait_for(lambda: "stale_observation" in told.kinds(), SOON, "it is not told")
        wait_for(lambda: told.ticks[-1].source == "hold", SOON, "no safety action")
        robot.wrong = Readings()
        recovered(told)


def test_reading_raises(planner):
    with running(planner) as (_, robot, told):
        robot.wrong = Readings(fail=ConnectionError("the bus is off"))
        wait_for(lambda: told.began("robot_failed"), SOON, "it is not told")
        assert "the bus is off" in told.began("robot_failed")[0].message
        robot.wrong = Readings()
        recovered(told)
        is_over(told, "robot_failed")


def test_reading_hangs(planner):
    with running(planner) as (_, robot, told):
        before = len(robot.robot.sent)
        began = time.monotonic()
        robot.wrong = Readings(hang_s=2.0)
        wait_for(lambda: "watchdog" in told.kinds(), SOON, "the watchdog is not told of")
        wait_for(lambda: any(s.at < began + 2.0 for s in robot.robot.sent[before + 10 :]) or told.fresh, SOON)
        recovered(told)
        times = [s.at for s in robot.robot.sent]
        assert max(np.diff(times)) < 1e-3 * WATCHDOG_MS + SLACK_S  # it commanded while the reading hung


def test_the_emergency_stop_wins_while_readings_are_wrong(planner):
    with running(planner) as (loop, robot, told):
        robot.wrong = Readings(lose=0.3, reorder=0.3)
        loop.emergency_stop("the button")
        wait_for(lambda: loop.state == "stopped", SOON, "it is not stopped")
        wait_for(lambda: np.ptp([t.action for t in told.ticks[-5:]], axis=0).max() == 0, SOON, "it moves on")
        loop.resume()  # is no reset: nothing moves
        seen = len(told.ticks)
        wait_for(lambda: len(told.ticks) > seen + 20, SOON)
        assert {t.source for t in told.ticks[seen + 5 :]} <= {"stop"}
        assert "emergency_stop" in told.kinds()
        loop.reset()
        loop.resume()
        robot.wrong = Readings()
        recovered(told)
