"""Stopping, pausing, beginning anew, the emergency stop: what others ask of a running loop."""

import numpy as np
import pytest
from loop_world import DT, HZ, Setting

from diffpolicy_spec.control import SafetyConfig

MOVING = {"chunk", "old_chunk"}
LIMITED = SafetyConfig(velocity=2.0, acceleration=10.0, position_from="pos")


def limited(latency=0.02, **config):
    """A robot of two axes that goes where it is told and whose chunks say to move at 1 unit / s."""
    setting = Setting(latency, safety=config.pop("safety", LIMITED), **config)
    setting.robot.values = lambda now: {"pos": setting.robot.sent[-1][2] if setting.robot.sent else np.zeros(2)}
    setting.planner.actions = lambda request: np.tile(
        (request.time - 1000 + np.arange(15) / HZ)[:, None], (1, 2)
    )  # the time since the beginning
    return setting


def velocities(setting):
    return np.diff(setting.robot.actions[:, 0]) / DT


def test_its_time_is_over():
    setting = Setting(0.02).run(2.0)
    assert setting.robot.times[-1] == pytest.approx(1002.0)
    assert setting.robot.stopped == 1
    assert setting.listener.stopped[0].reason == "its time is over"
    assert setting.listener.sources()[-1] == "stop"
    assert setting.loop.state == "idle"


def test_a_stop_brakes_within_the_limits_and_then_tells_the_robot():
    setting = limited()
    setting.world.at(1002.01, lambda: setting.loop.stop("enough"))
    setting.run(60.0)
    speed = velocities(setting)
    at = np.searchsorted(setting.robot.times, 1002.05 - 1e-6) - 1
    assert speed[at - 1] == pytest.approx(1.0)
    assert np.abs(np.diff(speed)).max() <= 10.0 * DT + 1e-9
    assert speed[at] == pytest.approx(0.5), "within one period"
    assert speed[-1] == pytest.approx(0.0, abs=1e-9)
    assert setting.robot.times[-1] < 1002.3
    assert set(setting.listener.sources()[-2:]) == {"stop"}
    assert (setting.robot.stopped, setting.listener.stopped[0].reason) == (1, "enough")


def test_the_first_reason_to_stop_is_the_one():
    setting = limited()
    setting.world.at(1001.0, lambda: setting.loop.stop("first"))
    setting.world.at(1001.0, lambda: setting.loop.stop("second"))
    assert setting.run(9.0).listener.stopped[0].reason == "first"
    setting.loop.stop("nobody runs")
    assert setting.run(1.0).listener.stopped[1].reason == "its time is over", "asked of no run, it stops none"


def test_a_stop_before_anything_was_sent_sends_nothing():
    setting = Setting(ready_at=2000.0)
    setting.world.at(1000.5, setting.loop.stop)
    setting.run(60.0)
    assert setting.robot.sent == []
    assert setting.robot.stopped == 1
    assert setting.listener.stopped[0].time == pytest.approx(1000.5)


def test_an_emergency_stop_wins_over_everything_until_it_is_reset():
    setting = limited()
    loop, world = setting.loop, setting.world
    states = {}

    def look(time):
        world.at(time, lambda: states.update({time: loop.state}))

    look(1000.9)
    world.at(1001.01, lambda: loop.emergency_stop("button"))
    look(1001.5)
    world.at(1002.01, loop.resume)
    look(1002.5)
    world.at(1003.01, loop.reset)
    look(1003.5)
    world.at(1004.01, loop.resume)
    look(1005.5)
    setting.run(6.0)
    assert states == {
        1000.9: "running", 1001.5: "stopped", 1002.5: "stopped", 1003.5: "stopped", 1005.5: "running"
    }  # fmt: skip
    moved = [t.time for t in setting.listener.ticks if t.source in MOVING]
    assert not any(1001.02 < time < 1004.04 for time in moved)
    assert any(time > 1004.2 for time in moved)
    stops = [i for i in setting.listener.interventions if i.kind == "emergency_stop"]
    assert stops[0].time == pytest.approx(1001.05)
    assert "button" in stops[0].message
    assert setting.planner.requests[-1].time > 1004.0


def test_an_emergency_stop_before_the_policy_is_known_is_one():
    setting = Setting(ready_at=1001.0)
    setting.world.at(1000.5, lambda: setting.loop.emergency_stop("button"))
    setting.run(3.0)
    assert setting.robot.sent == []
    assert set(setting.listener.sources()) == {"nothing"}


def test_paused_it_holds_and_goes_on_with_a_fresh_chunk():
    setting = limited()
    states = []
    setting.world.at(1001.01, setting.loop.pause)
    setting.world.at(1001.5, lambda: states.append(setting.loop.state))
    setting.world.at(1002.01, setting.loop.resume)
    setting.run(4.0)
    assert states == ["paused"]
    ticks = [t for t in setting.listener.ticks if 1001.02 < t.time < 1002.04]
    assert {t.source for t in ticks} == {"hold"}
    asked = [r.time for r in setting.planner.requests]
    assert not any(1001.02 < time < 1002.04 for time in asked)
    assert any(time == pytest.approx(1002.05) for time in asked)
    chunks = {t.chunk for t in setting.listener.ticks if t.time > 1002.1}
    assert min(chunks - {-1}) > max(t.chunk for t in setting.listener.ticks if t.time < 1001.0)
    assert np.abs(np.diff(velocities(setting))).max() <= 10 * DT + 1e-9, "braking, holding, starting again"


def test_a_chunk_that_comes_after_a_pause_began_is_not_executed():
    setting = limited(latency=0.12)
    setting.world.at(1000.85, setting.loop.pause)  # one is under way since 0.8 s
    setting.world.at(1000.9, setting.loop.resume)
    setting.run(2.0)
    assert 2 not in {t.chunk for t in setting.listener.ticks}
    assert setting.planner.requests[3].time == pytest.approx(1000.9)


def test_a_reset_begins_a_new_episode():
    setting = limited()
    setting.world.at(1001.01, setting.loop.reset)
    setting.run(2.0)
    request = next(r for r in setting.planner.requests if r.time > 1001.01)
    assert request.time == pytest.approx(1001.15)
    assert (request.obs["pos"][0] == request.obs["pos"][1]).all(), "the history begins anew"
    sources = setting.listener.sources()
    assert sources[21:24] == ["hold", "hold", "nothing"], "it comes to rest first"
    assert sources[24] in MOVING


def test_a_limit_that_stops_needs_a_resume():
    safety = SafetyConfig(low=-1.0, high=1.5, on_limit="stop")
    setting = limited(safety=safety)
    states = []
    setting.world.at(1003.0, lambda: states.append(setting.loop.state))
    setting.run(4.0)
    assert states == ["stopped"]
    assert setting.robot.actions.max() <= 1.5
    assert "position_limit" in {i.kind for i in setting.listener.interventions}
    assert setting.planner.requests[-1].time < 1002.0, "no chunks are asked for"


def test_one_loop_runs_once_at_a_time_and_again():
    setting = Setting(0.02)
    failures = []

    def again():
        for what in (setting.loop.run, setting.loop.start):
            with pytest.raises(RuntimeError, match="a robot has one loop"):
                what()
            failures.append(what)

    setting.world.at(1000.5, again)
    setting.run(1.0)
    assert len(failures) == 2
    before = len(setting.robot.sent)
    setting.run(1.0)
    assert len(setting.robot.sent) > before + 15
    assert [e.reason for e in setting.listener.stopped] == ["its time is over"] * 2
    assert setting.robot.stopped == 2
    assert setting.listener.sources()[-2] in MOVING


def test_closing_closes_planner_and_robot():
    setting = Setting(0.02)
    with setting.loop as loop:
        loop.run(0.5, signals=False)
    assert (setting.planner.closed, setting.robot.closed) == (1, 1)


def test_a_robot_that_fails_to_stop_is_told():
    setting = Setting(0.02)

    def stop():
        raise OSError("no brakes")

    setting.robot.stop = stop
    setting.run(0.5)
    assert setting.listener.faults[-1].message == "stop: OSError: no brakes"
    assert len(setting.listener.stopped) == 1


def test_what_comes_next_for_those_who_command_in_advance():
    """A trajectory controller is given the whole future: what the loop would command, limits kept."""
    setting = limited()
    seen = []

    class Trajectory(type(setting.listener)):
        def on_chunk(self, event):
            seen.append((len(setting.robot.sent), setting.loop.following(20), setting.loop.following(20, dt=0.1)))

    setting.loop.subscribe(Trajectory())
    assert setting.loop.following(3) is None
    setting.run(2.0)
    sent = setting.robot.actions
    assert len(seen) >= 4
    for begin, future, sparse in seen[1:4]:
        assert len(future) > 8
        same = min(len(future), 7)
        assert future[:same] == pytest.approx(sent[begin : begin + same])
        assert sparse[:3] == pytest.approx(future[:5:2])


def test_whatever_ends_the_loop_the_robot_is_brought_to_rest_within_the_limits():
    setting = limited()

    class Ends(type(setting.listener)):
        def on_tick(self, event):
            if event.index == 40:
                raise KeyboardInterrupt

    setting.loop.subscribe(Ends())
    with pytest.raises(KeyboardInterrupt):
        setting.run(9.0)
    speed = velocities(setting)
    assert speed[37] == pytest.approx(1.0)
    assert speed[-2:] == pytest.approx([0.5, 0.0])
    assert np.diff(setting.robot.times) == pytest.approx(DT)
    assert setting.robot.stopped == 1
    assert "KeyboardInterrupt" in setting.listener.stopped[0].reason
