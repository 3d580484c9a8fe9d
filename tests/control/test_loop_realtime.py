"""The control loop on real time: threads, signals, a robot that hangs, a policy beside it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from loop_world import INFO, Listener, P

from diffpolicy_spec.control import (
    ControlConfig,
    ControlLoop,
    InlinePlanner,
    Observation,
    Plan,
    ProcessPlanner,
    SafetyConfig,
)

HZ = 50.0
SAFETY = SafetyConfig(velocity=2.0, watchdog_ms=100.0, position_from="pos")
DOCS = Path(__file__).resolve().parents[2] / "docs" / "control.md"


class Robot:
    """Two axes that go where they are told. While `hanging` is set, `read` does not return."""

    def __init__(self):
        self.sent, self.position, self.stopped = [], np.zeros(2), threading.Event()
        self.free, self.inside = threading.Event(), threading.Event()
        self.free.set()

    def now(self):
        return time.monotonic()

    def read(self):
        if not self.free.is_set():
            self.inside.set()
            self.free.wait(30)
        return Observation(time.monotonic(), {"pos": self.position.copy()})

    def send(self, action, when):
        self.sent.append((time.monotonic(), when, np.array(action)))
        self.position = np.array(action)

    def stop(self):
        self.stopped.set()


class Count(Listener):
    """Lets a test wait for so many of something."""

    def __init__(self):
        super().__init__()
        self.changed = threading.Condition()

    def wait(self, ready, timeout=30.0):
        with self.changed:
            assert self.changed.wait_for(lambda: ready(self), timeout), (self.sources()[-20:], self.faults)

    def _noting(name):
        def note(self, event):
            with self.changed:
                getattr(Listener, name)(self, event)
                self.changed.notify_all()

        return note

    on_tick, on_chunk, on_fault = _noting("on_tick"), _noting("on_chunk"), _noting("on_fault")
    on_intervention, on_stop = _noting("on_intervention"), _noting("on_stop")


def chunk(request):
    """A slow circle."""
    times = request.time + np.arange(P) / HZ
    return Plan(request.id, 0.2 * np.stack([np.sin(times), np.cos(times)], axis=1))


@pytest.fixture
def parts():
    robot, listener = Robot(), Count()
    planner = InlinePlanner(chunk, info=INFO)
    with ControlLoop(robot, planner, ControlConfig(HZ), SAFETY, [listener]) as loop:
        yield robot, listener, loop
    robot.free.set()


def test_started_stopped_and_joined(parts):
    robot, listener, loop = parts
    loop.start()
    listener.wait(lambda heard: len(heard.chunks) >= 5)
    assert loop.state == "running"
    loop.stop("enough")
    assert loop.join(10)
    assert loop.state == "idle"
    assert listener.stopped[0].reason == "enough"
    assert robot.stopped.is_set()
    for at, when, _ in robot.sent:
        assert when <= at + 2e-3, "a period begins at its time or later"
    gaps = np.diff([when for _, when, _ in robot.sent])
    assert gaps == pytest.approx(np.round(gaps * HZ) / HZ, abs=2e-3), "commands are for the grid's times"
    assert (np.diff([at for at, _, _ in robot.sent]) > 0).all()


def test_a_robot_whose_read_hangs_is_commanded_by_the_watchdog_and_the_loop_comes_back(parts):
    robot, listener, loop = parts
    loop.start()
    listener.wait(lambda heard: len(heard.chunks) >= 3)
    robot.free.clear()
    assert robot.inside.wait(10)
    before = len(robot.sent)
    deadline = time.monotonic() + 20
    while len(robot.sent) < before + 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(robot.sent) >= before + 10, "the watchdog commands while the loop hangs"
    ticks = len(listener.ticks)
    robot.free.set()
    listener.wait(lambda heard: len(heard.ticks) >= ticks + 20)
    listener.wait(lambda heard: heard.ticks[-1].source in ("chunk", "old_chunk"))
    loop.stop()
    assert loop.join(10)
    assert "watchdog" in {i.kind for i in listener.interventions}
    assert "loop_overrun" in listener.kinds()
    actions = np.array([action for _, _, action in robot.sent])
    times = np.array([when for _, when, _ in robot.sent])
    assert (np.diff(times) > 0).all()
    assert np.abs(np.diff(actions, axis=0)).max() <= 2.0 / HZ + 1e-9, "within the velocity limit, whoever commands"


def test_an_error_in_the_thread_is_raised_where_it_is_joined():
    loop = ControlLoop(Robot(), InlinePlanner(chunk, info=INFO), ControlConfig(HZ), SafetyConfig(velocity=[1.0] * 5))
    loop.start()
    with pytest.raises(ValueError, match="velocity: 5 numbers given for 2 axes"):
        loop.join(20)
    assert loop.join(0), "raised once"
    loop.close()


def test_a_loop_that_is_closed_while_it_runs_is_stopped(parts):
    robot, listener, loop = parts
    loop.start()
    listener.wait(lambda heard: len(heard.chunks) >= 1)
    loop.close()
    assert robot.stopped.is_set()
    assert listener.stopped[0].reason == "closed"


def test_the_watchdog_does_not_outlive_the_run(parts):
    _, listener, loop = parts
    loop.run(0.5, signals=False)
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}
    assert listener.interventions == [i for i in listener.interventions if i.kind != "watchdog"]


PROGRAM = """
import sys, time
sys.path.insert(0, {folder!r})
from test_loop_realtime import HZ, SAFETY, Robot, chunk
from loop_world import INFO, Listener
from diffpolicy_spec.control import ControlConfig, ControlLoop
from diffpolicy_spec.control.planning import InlinePlanner

class Told(Listener):
    def on_chunk(self, event):
        print("chunk", event.id, flush=True)
    def on_intervention(self, event):
        print(event.kind, event.message, flush=True)
    def on_stop(self, event):
        print("stopped:", event.reason, flush=True)

robot = Robot()
if {slow}:
    robot.stop = lambda: time.sleep(30)
with ControlLoop(robot, InlinePlanner(chunk, info=INFO), ControlConfig(HZ), SAFETY, [Told()]) as loop:
    loop.run()
print("robot stopped:", robot.stopped.is_set(), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_program_cleanly(number):
    program = PROGRAM.format(folder=str(Path(__file__).parent), slow=False)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout:
                if line.startswith("chunk"):
                    break
            os.kill(process.pid, number)
            said = process.stdout.read()
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert f"stopped: {number.name}\n" in said
    assert "robot stopped: True\n" in said


def test_with_a_policy_in_its_process(tmp_path):
    from faults_policy import save_policy
    from faults_robot import AXES, NumericRobot

    robot, listener = NumericRobot(hz=HZ), Count()
    planner = ProcessPlanner(save_policy(tmp_path / "policy"), warm_up=1, committed=True)
    config = ControlConfig(HZ, policy_hz=10.0, interpolation="linear", freeze=True, deadline_ms=500.0, seed=3)
    safety = SafetyConfig(low=-1.0, high=1.0, velocity=3.0, jerk=1000.0, position_from="joints")
    with ControlLoop(robot, planner, config, safety, [listener]) as loop:
        loop.start()
        listener.wait(lambda heard: sum(c.frozen > 0 for c in heard.chunks) >= 3, timeout=120)
        loop.stop()
        assert loop.join(10)
    assert loop.info.action_dim == AXES
    assert all(c.exact for c in listener.chunks)
    assert any(c.cost.calls > 0 for c in listener.chunks)
    assert "chunk" in listener.sources()
