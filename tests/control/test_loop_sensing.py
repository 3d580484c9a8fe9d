"""The loop's eyes: readings that are lost, late, doubled, broken, and a robot's clock that jumps. Commands go on."""

import re

import numpy as np
import pytest
from loop_world import DT, Setting

from diffpolicy_spec.control import Observation, SafetyConfig

UNBROKEN = {"chunk", "old_chunk"}


class Faulty:
    """Gives the robot's readings through `change`, from one second to another."""

    def __init__(self, setting, change, begin=1.0, end=3.0):
        self.setting, self.change, self.count = setting, change, 0
        self.begin, self.end = 1000.0 + begin, 1000.0 + end
        self._read, setting.robot.read = setting.robot.read, self.read

    def read(self):
        now = self.setting.world.now
        reading = self._read()
        if not self.begin - 1e-9 <= now < self.end - 1e-9:
            return reading
        self.count += 1
        return self.change(reading, self.count, now)


def run(change, seconds=5.0, latency=0.02, begin=1.0, end=3.0, **config):
    setting = Setting(latency, **config)
    Faulty(setting, change, begin, end)
    return setting.run(seconds)


def assert_goes_on(setting, held=False):
    """One command a period from the first chunk to the end, each for its time, whatever was read."""
    ticks = setting.listener.ticks
    assert len(ticks) == len(setting.robot.sent) + 1
    assert np.diff(setting.robot.times) == pytest.approx(DT)
    if not held:
        assert set(setting.listener.sources()[1:-1]) <= UNBROKEN
    for when, _, action in setting.robot.sent[:-1]:
        if not held:
            assert abs(action[1] - when) <= DT / 2 + 1e-6


def told(setting, kind):
    return [f for f in setting.listener.faults if f.kind == kind]


def test_lost_readings():
    setting = run(lambda reading, n, now: None if n % 5 == 0 else reading)
    assert_goes_on(setting)
    assert [f.recovered for f in told(setting, "observation_lost")] == [False, True]
    assert setting.loop.fault_counts["observation_lost"] >= 8
    assert setting.listener.kinds() == ["observation_lost"]


def test_a_reading_that_is_missing_in_the_history_is_stood_for_and_told():
    def change(reading, n, now):
        return None if n == 4 else reading  # of 1.15 s; the chunk of 1.2 s wants it

    setting = run(change)
    request = next(r for r in setting.planner.requests if r.time == pytest.approx(1001.2))
    assert request.obs["pos"][:, 0] == pytest.approx([1001.1, 1001.2])
    assert "history" in told(setting, "observation_lost")[0].message or len(told(setting, "observation_lost")) == 2


def test_no_readings_at_all_and_then_again():
    setting = run(lambda reading, n, now: None, seconds=6.0)
    sources = setting.listener.sources()
    assert sources[-2] in UNBROKEN
    assert "hold" in sources
    # The newest observation is of 0.95 s; until 1.45 s it is young enough.
    assert set(sources[1:30]) <= UNBROKEN
    assert sources[30:61] == ["hold"] * 31
    assert sources[61] in UNBROKEN
    assert [i.kind for i in setting.listener.interventions].count("stale_observation") == 2  # told once a second


def test_doubled_readings():
    last = {}

    def change(reading, n, now):
        if n % 3 == 0:
            return last["reading"]
        last["reading"] = reading
        return reading

    setting = run(change)
    assert_goes_on(setting)
    assert told(setting, "observation_duplicate")[0].recovered is False
    assert setting.loop.fault_counts["observation_duplicate"] == 13


def test_readings_out_of_order():
    kept = {}

    def change(reading, n, now):
        if n % 4 == 1:
            kept["late"] = reading
            return None
        return kept.pop("late") if n % 4 == 3 else reading

    setting = run(change)
    assert_goes_on(setting)
    assert setting.loop.fault_counts["observation_reordered"] == 10
    assert "clock_jump" not in setting.loop.fault_counts


def test_readings_200_ms_late_are_late_and_no_jump():
    queue = []

    def change(reading, n, now):
        queue.append(reading)
        return queue.pop(0) if len(queue) > 4 else None

    setting = run(change, end=99.0, seconds=6.0)
    assert_goes_on(setting)
    assert "clock_jump" not in setting.loop.fault_counts
    late = told(setting, "observation_late")
    assert len(late) == 1
    assert "200 ms late" in late[0].message
    request = setting.planner.requests[-1]
    asked = 1000.0 + 0.05 * round((request.time - 1000.0) / 0.05)
    assert request.time == pytest.approx(asked), "the times of the observations are still known"
    chunk = setting.listener.chunks[-1]
    assert chunk.observation_age_ms == pytest.approx(250)


@pytest.mark.parametrize("told_by_robot", [False, True])
@pytest.mark.parametrize("jump", [3600.0, -3600.0, 0.35, -0.35])
def test_a_clock_that_jumps(jump, told_by_robot):
    setting = Setting(0.02, offset=50.0)
    if told_by_robot:
        setting.robot.now = lambda: setting.world.now + setting.robot.offset
    setting.world.at(1002.01, lambda: setattr(setting.robot, "offset", 50.0 + jump))
    setting.run(6.0)
    assert_goes_on(setting)
    (begun, over) = told(setting, "clock_jump")
    assert not begun.recovered
    assert over.recovered
    assert begun.time == pytest.approx(1002.05 if told_by_robot else 1002.15)
    for when, time, _ in setting.robot.sent[-60:]:
        assert time - when == pytest.approx(50.0 + jump)
    for request in setting.planner.requests:
        age = request.obs["pos"][-1, 0] - request.time
        assert age == pytest.approx(0.0, abs=1e-6), "the observation's value is the time it was read at"


def test_one_stamp_that_is_wrong_is_dropped():
    setting = run(lambda reading, n, now: Observation(reading.time + 9.0, reading.values) if n == 7 else reading)
    assert_goes_on(setting)
    assert "9.000 s after it was received" in told(setting, "observation_invalid")[0].message
    assert "clock_jump" not in setting.loop.fault_counts


BROKEN = {
    "renamed": (lambda v: {"position": v["pos"]}, "pos missing .*the robot gives position"),
    "missing": (lambda v: {}, "pos missing .*nothing else"),
    "shape": (lambda v: {"pos": np.zeros(7)}, r"pos has shape \(7,\), the policy needs \(2,\)"),
    "no mapping": (lambda v: [1, 2], "must be a mapping"),
    "words": (lambda v: {"pos": np.array(["x", "y"])}, None),
    "nan": (lambda v: {"pos": np.array([np.nan, 1.0])}, None),
    "infinite": (lambda v: {"pos": np.array([np.inf, 1.0])}, None),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_readings_are_dropped_and_told_once(name):
    change, said = BROKEN[name]
    safety = SafetyConfig(kind="free", max_observation_age_ms=1000.0)
    setting = run(lambda reading, n, now: Observation(reading.time, change(reading.values)), safety=safety, end=1.4)
    assert_goes_on(setting)
    if said is None:  # the guard's business
        assert "nonfinite_observation" in {i.kind for i in setting.listener.interventions}
    else:
        faults = told(setting, "observation_invalid")
        assert [f.recovered for f in faults] == [False, True]
        assert faults[0].message
        assert re.search(said, faults[0].message)
        assert setting.loop.fault_counts["observation_invalid"] == 8
    for request in setting.planner.requests:
        assert np.isfinite(request.obs["pos"]).all()


@pytest.mark.parametrize("junk", [7, "reading", Observation(float("nan"), {}), Observation("now", {}), object()])
def test_what_is_no_reading_is_dropped(junk):
    setting = run(lambda reading, n, now: junk, end=1.3)
    assert_goes_on(setting)
    assert told(setting, "observation_invalid")[0].message == "an observation without a time"


def test_a_robot_that_cannot_be_read_and_then_can():
    def change(reading, n, now):
        raise OSError("cable")

    setting = run(change, seconds=6.0)
    assert_goes_on(setting, held=True)
    faults = told(setting, "robot_failed")
    assert [f.recovered for f in faults] == [False, True]
    assert faults[0].message == "read: OSError: cable"
    assert setting.listener.sources()[-2] in UNBROKEN


def test_a_robot_that_cannot_be_commanded_and_then_can():
    setting = Setting(0.02)
    send, tried = setting.robot.send, []

    def refusing(action, time):
        if 1001.0 - 1e-9 <= setting.world.now < 1002.0 - 1e-9:
            tried.append(setting.world.now)
            raise ConnectionError("gone")
        send(action, time)

    setting.robot.send = refusing
    setting.run(4.0)
    assert len(tried) == 20, "it is tried every period"
    faults = told(setting, "robot_failed")
    assert (faults[0].recovered, faults[0].message) == (False, "send: ConnectionError: gone")
    assert faults[1].recovered
    sources = setting.listener.sources()
    assert sources[20:40] == ["nothing"] * 20
    assert sources[40] in UNBROKEN


def test_a_clock_that_cannot_be_told_is_a_robot_that_failed():
    setting = Setting(0.02)

    def now():
        raise OSError("no clock")

    setting.robot.now = now
    setting.run(1.0)
    assert setting.listener.kinds() == ["robot_failed"]


def test_arrays_that_the_robot_writes_again_are_not_the_policys():
    setting = Setting()
    buffer = np.zeros(2)

    def values(now):
        buffer[:] = now
        return {"pos": buffer}

    setting.robot.values = values
    setting.run(2.0)
    assert setting.planner.requests[1].obs["pos"][:, 0] == pytest.approx([1000.35, 1000.4])


def test_drift_is_followed():
    setting = Setting(0.02)
    setting.robot.read = lambda: Observation(1.001 * setting.world.now, setting.robot.values(setting.world.now))
    setting.run(60.0)
    assert "clock_jump" not in setting.loop.fault_counts
    for when, time, _ in setting.robot.sent:
        assert time - 1.001 * when == pytest.approx(0.0, abs=0.011)


def test_all_readings_of_a_period_are_taken_where_a_robot_gives_them():
    """Sensors as fast as the loop, a little early or late: two readings in one period, none in the next."""
    setting = Setting(0.02)
    world = setting.world
    told = [1000.0]

    def readings():
        jitter = 0.004 * np.sin(7.0 * world.now)
        found = []
        while told[-1] + 0.05 <= world.now + jitter:
            told.append(told[-1] + 0.05)
            found.append(Observation(told[-1], {"pos": np.array([told[-1], 0.0])}))
        return found

    setting.robot.readings = readings
    setting.robot.now = world.clock
    setting.run(20.0)
    assert "observation_lost" not in setting.loop.fault_counts
    assert len(setting.planner.requests) > 45
    for request in setting.planner.requests[1:]:
        assert np.diff(request.obs["pos"][:, 0]) == pytest.approx([0.05])


def test_attributes_of_the_robots_own_are_not_called():
    setting = Setting(0.02)
    setting.robot.readings, setting.robot.now, setting.robot.failures = {"pos": 1}, 7.0, ["cable"]
    setting.run(2.0)
    assert_goes_on(setting)
    assert setting.loop.fault_counts == {}
