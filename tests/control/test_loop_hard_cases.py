"""What a loop's orders, a failing robot and odd readings may come to at the worst moment."""

import numpy as np
import pytest
from loop_world import DT, HZ, Setting

from diffpolicy_spec.control import ChunkArrived, Failure, JsonLines, Observation, SafetyConfig, read_records
from diffpolicy_spec.control.jsonl import summary_of

MOVING = {"chunk", "old_chunk"}
LIMITED = SafetyConfig(velocity=2.0, acceleration=10.0, position_from="pos")


def driven(safety=LIMITED, latency=0.02, speed=1.0, **config):
    """A robot of two axes that goes where it is told; chunks move it at `speed`, units / s."""
    setting = Setting(latency, safety=safety, **config)
    velocity = safety.kind == "velocity"
    if not velocity:
        setting.robot.values = lambda now: {"pos": setting.robot.sent[-1][2] if setting.robot.sent else np.zeros(2)}

    def actions(request):
        times = request.time - 1000 + np.arange(15) / HZ
        return np.tile(np.full(15, speed)[:, None] if velocity else speed * times[:, None], (1, 2))

    setting.planner.actions = actions
    return setting


def velocities(setting):
    return np.diff(setting.robot.actions[:, 0]) / DT


def test_an_emergency_stop_wins_over_orders_that_were_not_obeyed_yet():
    setting = driven()
    loop = setting.loop

    def all_at_once():
        loop.reset()
        loop.resume()
        loop.emergency_stop("button")

    setting.world.at(1001.01, all_at_once)
    setting.run(3.0)
    assert not [t for t in setting.listener.ticks if t.time > 1001.02 and t.source in MOVING]
    assert "emergency_stop" in {i.kind for i in setting.listener.interventions}


def test_an_emergency_stop_in_the_middle_of_a_resume_does_not_end_the_loop():
    setting = driven()
    driver = setting.loop._driver

    def halfway():  # as between the look at it and the safety layer's
        driver._safety.emergency_stop("button")
        setting.loop.resume()

    setting.world.at(1001.01, halfway)
    setting.run(2.0)
    assert setting.listener.stopped[0].reason == "its time is over"
    assert setting.listener.sources()[-1] == "stop"


def test_a_reset_while_it_moves_comes_to_rest_first():
    setting = driven()
    setting.world.at(1001.01, setting.loop.pause)
    setting.world.at(1001.02, setting.loop.reset)
    setting.run(2.0)
    speed = velocities(setting)
    assert speed.max() >= 1.0
    assert speed[-1] == pytest.approx(0.0, abs=1e-9)
    assert np.abs(np.diff(speed)).max() <= 10.0 * DT + 1e-9
    assert setting.listener.sources()[-2:] == ["nothing", "nothing"], "it forgets when it stands"


def test_a_reset_leaves_no_velocity_commanded():
    setting = driven(SafetyConfig(kind="velocity", acceleration=10.0))
    setting.world.at(1001.01, setting.loop.pause)
    setting.world.at(1001.02, setting.loop.reset)
    setting.run(2.0)
    assert setting.robot.actions.max() == 1.0
    assert setting.robot.actions[-1].tolist() == [0.0, 0.0]


def test_orders_after_a_reset_wait_until_it_stands():
    setting = driven()
    setting.world.at(1001.01, setting.loop.reset)
    setting.world.at(1001.01, setting.loop.pause)
    setting.world.at(1001.02, setting.loop.resume)
    setting.run(3.0)
    assert setting.listener.sources()[-6] in MOVING
    assert np.abs(np.diff(velocities(setting))).max() <= 10.0 * DT + 1e-9


def test_a_stop_takes_as_long_as_the_limits_need():
    setting = driven(SafetyConfig(kind="velocity", acceleration=0.1))
    setting.world.at(1015.0, setting.loop.stop)
    setting.run(60.0)
    sent = setting.robot.actions[:, 0]
    assert sent.max() > 0.9
    assert sent[-1] == pytest.approx(0.0, abs=1e-9), "the robot is left with a velocity"
    assert np.abs(np.diff(sent)).max() <= 0.1 * DT + 1e-9


@pytest.mark.parametrize("seconds", [0.2, 3.0])
def test_after_commands_that_could_not_be_sent_the_limits_hold(seconds):
    """What was not sent the robot has not done."""
    setting = driven(SafetyConfig(velocity=2.0, position_from="pos"))
    send = setting.robot.send

    def failing(action, time):
        if 1001.0 < setting.world.now < 1001.0 + seconds:
            raise OSError("no route to the arm")
        send(action, time)

    setting.robot.send = failing
    setting.run(6.0)
    assert setting.robot.actions[-1, 0] == pytest.approx(5.5, abs=0.6), "it goes on"
    steps = np.abs(np.diff(setting.robot.actions[:, 0]))
    assert steps.max() <= 2.0 * DT + 1e-9


def test_a_stop_ends_though_nothing_can_be_sent():
    setting = driven(SafetyConfig(velocity=2.0))

    def failing(action, time):
        raise OSError("no route to the arm")

    setting.world.at(1001.0, lambda: setattr(setting.robot, "send", failing))
    setting.world.at(1002.0, setting.loop.stop)
    setting.run(60.0)
    assert setting.listener.stopped[0].time < 1010


def test_a_pause_is_no_intervention():
    setting = driven()
    setting.world.at(1001.01, setting.loop.pause)
    setting.run(5.0)
    assert set(setting.listener.sources()[25:-1]) == {"hold"}
    assert "no_chunk" not in {i.kind for i in setting.listener.interventions}


def test_what_a_pause_makes_pointless_is_not_told_for_ever():
    setting = driven(latency=lambda number: None if number > 2 else 0.02, deadline_ms=100.0)
    setting.world.at(1003.01, setting.loop.pause)
    active = []
    setting.world.at(1003.0, lambda: active.append(setting.loop.faults))
    setting.world.at(1004.5, lambda: active.append(setting.loop.faults))
    setting.run(5.0)
    assert "deadline_missed" in active[0]
    assert active[1] == ()


class Hostile:
    """Nothing that can be an array."""

    def __array__(self, *args, **kwargs):
        raise MemoryError("no array")


@pytest.mark.parametrize(
    "value",
    [[[1.0], [1.0, 2.0]], Hostile(), "text", None, {}, [1e300, 1e300], np.array([object(), object()])],
    ids=["ragged", "raises", "text", "none", "mapping", "far", "objects"],
)
def test_readings_that_are_nothing_do_not_end_the_loop(value):
    setting = driven()
    usual = setting.robot.values
    setting.robot.values = lambda now: {"pos": value} if 1001 < now < 1002 else usual(now)
    setting.run(4.0)
    assert setting.listener.stopped[0].reason == "its time is over"
    assert np.isfinite(setting.robot.actions).all()
    assert setting.listener.sources()[-6] in MOVING, "it recovers"
    assert np.abs(velocities(setting)).max() <= 2.0 + 1e-9


def test_keys_that_the_policy_does_not_know_do_not_matter():
    setting = driven()
    usual = setting.robot.values
    setting.robot.values = lambda now: usual(now) | {"force": np.array([np.nan]), "task": "lift"}
    setting.run(2.0)
    assert "nonfinite_observation" not in {i.kind for i in setting.listener.interventions}
    assert setting.listener.sources()[-6] in MOVING


def test_held_up_it_goes_on_from_the_last_command_not_from_a_reading_before_it():
    setting = driven()
    read, send = setting.robot.read, setting.robot.send

    def blind():
        return read() if setting.world.now < 1000.81 else None

    def hold_up(action, time):
        send(action, time)
        if 1000.99 < setting.world.now < 1001.01:
            setting.world.now += 0.7

    setting.robot.read, setting.robot.send = blind, hold_up
    setting.run(2.5)
    assert np.abs(velocities(setting)).max() <= 2.0 + 1e-9


def test_resumed_without_readings_it_stays_where_it_is():
    """The last reading is from before it came to rest."""
    setting = driven(SafetyConfig(velocity=2.0, position_from="pos", action="stop"))
    read = setting.robot.read
    setting.robot.read = lambda: read() if setting.world.now < 1001 else None
    setting.world.at(1003.01, setting.loop.resume)
    setting.run(5.0)
    assert "stale_observation" in {i.kind for i in setting.listener.interventions}
    assert setting.listener.sources()[-2] == "stop"
    assert np.abs(velocities(setting)).max() <= 2.0 + 1e-9


def test_failures_that_are_none_do_not_end_the_loop():
    setting = driven()
    setting.robot.failures = lambda: [None, "text"]
    setting.run(1.0)
    assert setting.listener.stopped[0].reason == "its time is over"
    assert "robot_failed" in setting.listener.kinds()


def test_a_connection_that_is_back_is_not_the_other_one():
    """The robot's and the planner's may be lost together; each is over by itself."""
    setting = driven()
    told, active = [], {}
    setting.robot.failures = lambda: [told.pop()] if told else []
    setting.world.at(1001.01, lambda: told.append(Failure("connection_lost", "to the robot")))
    setting.world.at(1001.01, lambda: setting.planner.fail("connection_lost", "to the server"))
    setting.world.at(1002.01, lambda: setting.planner.fail("connection_lost", "the server is back", recovered=True))
    setting.world.at(1002.5, lambda: active.update(both=setting.loop.faults))
    setting.world.at(1003.01, lambda: told.append(Failure("connection_lost", "back", recovered=True)))
    setting.run(4.0)
    assert active["both"] == ("connection_lost",)
    assert setting.loop.faults == ()
    assert setting.listener.kinds().count("connection_lost") == 2


def test_every_chunks_record_says_what_is_done_with_late_ones(tmp_path):
    setting = driven(deadline_ms=100.0, on_deadline="finish")
    with JsonLines(tmp_path / "log.jsonl") as log:
        setting.loop.subscribe(log)
        setting.run(1.0)
    chunks = [event for event in read_records(tmp_path / "log.jsonl") if isinstance(event, ChunkArrived)]
    assert chunks
    assert {chunk.on_deadline for chunk in [*chunks, *setting.listener.chunks]} == {"finish"}
    assert "(on_deadline: finish)" in summary_of(tmp_path / "log.jsonl").text()


def test_an_observation_that_is_none():
    setting = driven()
    read = setting.robot.read
    setting.robot.read = lambda: 3 if 1000.5 < setting.world.now < 1000.6 else read()
    setting.run(1.0)
    assert setting.listener.stopped[0].reason == "its time is over"
    assert isinstance(read(), Observation)
