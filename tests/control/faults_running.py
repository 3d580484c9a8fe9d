"""A control loop in real time with the tiny policy, for tests of faults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from faults_checks import SAFETY, Told, check_stream
from faults_processes import wait_for
from faults_robot import FaultyRobot, NumericRobot

from diffpolicy_spec.control import ControlConfig, SafetyConfig
from diffpolicy_spec.control.loop import ControlLoop
from diffpolicy_spec.control.protocols import Planner

HZ = 50.0
CONFIG: dict[str, Any] = {"control_hz": HZ, "policy_hz": 20.0, "interpolation": "linear", "n_action_steps": 4}
"""A chunk lasts 0.75 s and is made anew every 0.2 s: a loaded machine makes one in time."""
SOON = 60.0
"""s: what is waited for at most. It takes a second; a loaded machine may need longer."""


def recovered(told: Told, more: int = 10) -> None:
    """Wait until chunks flow."""
    had, fresh = len(told.chunks), told.fresh

    def flows() -> bool:
        return len(told.chunks) >= had + 3 and told.fresh >= fresh + more

    wait_for(flows, SOON, lambda: f"chunks do not flow: {told.faults}")


def is_over(told: Told, *kinds: str) -> None:
    """Wait until it was told that the faults are over."""
    for kind in kinds:
        wait_for(lambda kind=kind: len(told.over(kind)) >= len(told.began(kind)), SOON, f"{kind} is not over")


@contextmanager
def running(
    planner: Planner,
    robot: FaultyRobot | None = None,
    safety: SafetyConfig = SAFETY,
    **changes: Any,
) -> Iterator[tuple[ControlLoop, FaultyRobot, Told]]:
    """The loop, driving from a chunk already; after it its stream of commands is checked, whatever has happened."""
    robot = robot or FaultyRobot(NumericRobot(hz=25.0))
    told = Told()
    loop = ControlLoop(robot, planner, ControlConfig(**CONFIG | changes), safety, [told])
    loop.start()
    try:
        wait_for(lambda: told.fresh >= 5, SOON, lambda: f"the loop did not begin: {told.faults}")
        yield loop, robot, told
    finally:
        loop.stop("the test is over")
        assert loop.join(20.0), "the loop did not stop"
    check_stream(robot.robot.sent, told.ticks, HZ, safety)
    assert told.stopped
