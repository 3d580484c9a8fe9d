"""The environment in real time in its own process: which command is executed when, and that nobody is waited for."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from diffpolicy_spec.control import Robot
from diffpolicy_spec.envs.config import EnvConfig
from diffpolicy_spec.envs.live_world import due
from diffpolicy_spec.envs.realtime import LiveSim, SimDiedError

CONFIG = EnvConfig("lift", "absolute_rot6d")
ABOVE = np.array([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0, -1.0])
HZ = 10.0  # slower than the task's 20: a loaded machine keeps up


@pytest.fixture(scope="module")
def sim():
    with LiveSim(CONFIG, control_hz=HZ, max_steps=12) as sim:
        yield sim


def newest(sim, timeout=20.0):
    """A reading of what is the case now."""
    now = sim.robot.now()
    while sim.robot.now() < now + timeout:
        observation = sim.robot.read()
        if observation is not None and observation.time >= now:
            return observation
        time.sleep(0.005)
    raise AssertionError(f"no reading within {timeout} s")


def test_the_nearest_command_is_executed_and_earlier_ones_forgotten():
    commands = [(9.8, "old"), (10.04, "now"), (9.97, "nearest"), (10.1, "next")]
    chosen, left = due(commands, 10.0, 0.1)
    assert chosen == (9.97, "nearest")
    assert left == [(10.04, "now"), (10.1, "next")]  # not lost: the nearest to the next step, if nothing else comes


def test_commands_for_later_wait_and_older_ones_come_late():
    assert due([(10.06, "later")], 10.0, 0.1) == (None, [(10.06, "later")])
    assert due([(9.5, "older"), (9.7, "old")], 10.0, 0.1) == ((9.7, "old"), [])


def test_rates_and_horizons_that_cannot_be():
    with pytest.raises(ValueError, match="control_hz must be above 0"):
        LiveSim(CONFIG, control_hz=0)
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        LiveSim(CONFIG, max_steps=0)


def test_an_environment_that_cannot_be_made_is_told():
    with LiveSim(EnvConfig("lift", "sideways")) as sim, pytest.raises(ValueError, match="sideways"):
        sim.reset(0)


def test_the_world_moves_only_once_it_is_commanded_and_then_without_waiting(sim):
    assert isinstance(sim.robot, Robot)
    sim.reset(5)
    first = newest(sim)
    time.sleep(3 / HZ)
    readings = sim.robot.readings()
    assert len(readings) >= 2
    np.testing.assert_allclose(np.diff([reading.time for reading in readings]), 1 / HZ, atol=1e-9)  # all, in order
    later = newest(sim)
    assert later.time > first.time  # readings go on
    np.testing.assert_array_equal(first.values["object"], later.values["object"])
    assert sim.result() is None
    sim.robot.send(ABOVE, time.monotonic())
    result = sim.result(timeout=60)
    assert result.steps == 12
    assert result.held == 11  # one command, twelve steps: it was held, and nobody was waited for
    assert not result.success
    np.testing.assert_array_equal(result.actions, np.tile(ABOVE, (12, 1)))
    assert newest(sim).values["robot0_eef_pos"][2] < first.values["robot0_eef_pos"][2] + 0.1


def test_what_is_executed_in_real_time_is_what_the_plain_environment_makes_of_it(sim):
    sim.reset(6)
    rng = np.random.default_rng(0)
    while (result := sim.result()) is None:
        sim.robot.send(ABOVE + np.r_[rng.normal(0, 0.05, 3), np.zeros(7)], time.monotonic() + 0.5 / HZ)
        time.sleep(1 / HZ)
    there = newest(sim).values
    env = CONFIG.make()
    env.reset(seed=6)
    for action in result.actions:
        observation, *_ = env.step(action)
    env.close()
    for key, value in observation.items():
        np.testing.assert_array_equal(there[key], value)


def test_a_command_that_is_no_action_is_refused(sim):
    sim.reset(7)
    sim.robot.send(np.zeros(10), time.monotonic())  # rows of a rotation that are zero
    newest(sim)
    sim.robot.send(ABOVE, time.monotonic() + 2 / HZ)
    sim.robot.send(np.full(10, np.nan), time.monotonic() + 5 / HZ)
    result = sim.result(timeout=60)
    assert result.refused >= 1
    assert np.isfinite(result.actions).all()


def test_clock_offset_is_the_robots_own():
    with LiveSim(CONFIG, control_hz=HZ, max_steps=3, clock_offset=1e6) as sim:
        sim.reset(0)
        assert newest(sim).time == pytest.approx(sim.robot.now(), abs=5)
        assert sim.robot.now() == pytest.approx(time.monotonic() + 1e6, abs=5)
        sim.robot.send(ABOVE, sim.robot.now())
        assert sim.result(timeout=60).steps == 3


def test_a_killed_simulator_is_told():
    sim = LiveSim(CONFIG, control_hz=HZ)
    sim.process.kill()
    sim.process.join()
    with pytest.raises(SimDiedError, match="-9"):
        sim.reset(0)
    with pytest.raises(SimDiedError):
        sim.robot.send(ABOVE, 0.0)
    sim.close()
    sim.close()


def test_it_ends_with_its_parent():
    program = (
        "from diffpolicy_spec.envs.config import EnvConfig\n"
        "from diffpolicy_spec.envs.realtime import LiveSim\n"
        "if __name__ == '__main__':\n"
        "    sim = LiveSim(EnvConfig('lift', 'absolute_rot6d')); sim.reset(0); print(sim.process.pid, flush=True)\n"
        "    import time; time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        child = int(parent.stdout.readline())
        os.kill(child, 0)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("the simulator outlived its parent")
