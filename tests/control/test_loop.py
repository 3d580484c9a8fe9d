"""The control loop in a world whose time passes when it sleeps: every run is the same."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_world import DT, HZ, INFO, TA, Listener, P, Setting

from diffpolicy_spec.control import Failure, Plan, SafetyConfig, next_actions

# Receding horizon


@pytest.mark.parametrize("meanwhile", ["continue", "hold"])
@pytest.mark.parametrize("waited", [0, 1, 3, 7, 8, 10, 13])
def test_it_executes_what_next_actions_says(waited, meanwhile):
    """With chunks that take w steps the robot gets what the evaluation's slow world executes, action for action."""
    setting = Setting(0.0 if waited == 0 else (waited - 0.5) * DT, meanwhile=meanwhile).run(10.0)
    assert setting.planner.requests[0].time == pytest.approx(1000.0)
    step, before, since, last, expected = 0, None, 0, None, []
    while len(expected) < 150:
        number = 0 if before is None else int(before[0, 0]) + 1
        chunk = np.stack([np.full(P, float(number)), 1000 + (step + np.arange(P)) * DT], axis=1)
        if before is None:  # the first is awaited: what is too late of it is not executed
            actions = chunk[waited : max(TA, waited + 1)]
            expected += actions.tolist()
            since = waited + len(actions)
        else:
            result = next_actions(chunk, TA, waited=waited, before=before, since=since, last=last, meanwhile=meanwhile)
            expected += result.actions.tolist()
            since = len(result.actions)
        step, before, last = step + since, chunk, np.array(expected[-1])
    assert setting.robot.actions[:150] == pytest.approx(np.array(expected[:150]))


@pytest.mark.parametrize("late", [0.0, 0.02, 0.12])
def test_every_action_is_executed_at_its_time(late):
    """The actions are the times they belong at."""
    setting = Setting(late, lead_ms=20).run(5.0)
    for when, _, action in setting.robot.sent[:-1]:  # the last one is the stop's
        assert abs(action[1] - (when + 0.02)) <= DT / 2 + 1e-6


def test_a_loop_faster_than_the_policy_interpolates():
    setting = Setting(0.07, control_hz=100.0, policy_hz=20.0, interpolation="linear", lead_ms=5).run(4.0)
    sent = setting.robot.actions[:-1, 1]
    times = setting.robot.times[:-1] + 0.005
    assert len(sent) > 390
    assert sent == pytest.approx(times, abs=1e-6)
    assert [r.time - 1000 for r in setting.planner.requests] == pytest.approx(0.4 * np.arange(10), abs=0.011)
    stacked = setting.planner.requests[3].obs["pos"]
    assert np.diff(stacked[:, 0]) == pytest.approx([0.05])


def test_history_is_the_policys_oldest_first():
    setting = Setting().run(2.0)
    first, second = setting.planner.requests[:2]
    assert first.obs["pos"][:, 0].tolist() == [1000.0, 1000.0], "the first is repeated"
    assert second.obs["pos"][:, 0] == pytest.approx([1000.35, 1000.4])
    assert second.time == pytest.approx(1000.4)


def test_commands_are_for_times_on_the_robots_clock():
    setting = Setting(0.03, offset=-12345.0, lead_ms=40).run(2.0)
    for when, time, _ in setting.robot.sent:
        assert time == pytest.approx(when - 12345.0 + 0.04)


# The beginning


def test_nothing_is_sent_before_the_policy_is_ready_and_its_first_chunk_is_there():
    setting = Setting(0.07, ready_at=1001.0).run(3.0)
    ticks = setting.listener.ticks
    assert [t.source for t in ticks[:22]] == ["nothing"] * 22
    assert ticks[22].source == "chunk"
    assert (ticks[22].chunk, ticks[22].step) == (0, 2.0)
    assert setting.robot.times[0] == pytest.approx(1001.1)
    assert setting.planner.started == 1
    (started,) = setting.listener.started
    assert (started.control_hz, started.info) == (HZ, None)
    assert setting.loop.info is INFO


def test_ticks_say_what_was_sent():
    setting = Setting(0.12).run(2.0)
    for tick, (_, _, action) in zip(setting.listener.ticks[3:], setting.robot.sent, strict=True):
        assert tick.action.tolist() == action.tolist()
        if tick.source in ("chunk", "old_chunk"):
            assert action[0] == tick.chunk
            assert tick.observation_age_ms == pytest.approx(50 * tick.step, abs=1e-3)
    assert [t.index for t in setting.listener.ticks] == list(range(len(setting.listener.ticks)))
    sources = setting.listener.sources()
    # While the next one is made, three steps of it, the one before goes on.
    assert sources[3:8] == ["chunk"] * 5
    assert sources[8:19] == ["old_chunk"] * 3 + ["chunk"] * 5 + ["old_chunk"] * 3


def test_chunks_say_what_came():
    setting = Setting(0.12, deadline_ms=200).run(2.0)
    chunk = setting.listener.chunks[1]
    assert chunk.latency_ms == pytest.approx(150)  # found by the period after
    assert chunk.observation_age_ms == pytest.approx(150)
    assert (chunk.id, chunk.exact, chunk.deadline_ms, chunk.deadline_missed) == (1, True, 200, False)
    assert (chunk.stale, chunk.usable, chunk.frozen) == (3, 12, 0)
    assert chunk.actions.shape == (P, 2)


# Deadlines


def test_chunks_that_miss_their_deadline_are_counted_and_told_once():
    setting = Setting(lambda n: 0.28 if 2 <= n < 5 else 0.02, deadline_ms=100).run(5.0)
    assert [c.deadline_missed for c in setting.listener.chunks[:7]] == [False] * 2 + [True] * 3 + [False] * 2
    faults = [f for f in setting.listener.faults if f.kind == "deadline_missed"]
    assert [f.recovered for f in faults] == [False, True]
    assert "deadline is 100 ms" in faults[0].message
    # Asked for at 0.8 s: told in the period after the deadline. Over with the chunk of 2.0 s.
    assert faults[0].time == pytest.approx(1000.95)
    assert faults[1].time == pytest.approx(1002.05)
    assert all(r.deadline is None for r in setting.planner.requests), "chunks stay exact"
    assert setting.listener.sources()[2:-1].count("hold") == 0, "the old chunk goes on"


def test_chunks_to_be_finished_in_time_are_marked_and_counted():
    setting = Setting(0.1, deadline_ms=100, on_deadline="finish")
    make = setting.planner.make
    setting.planner.make = lambda request: Plan(request.id, make(request).actions, exact=request.id % 2 == 0)
    setting.run(3.0)
    for request in setting.planner.requests:
        assert request.deadline == pytest.approx(request.time + 0.1)
    chunks = setting.listener.chunks
    assert [c.exact for c in chunks[:4]] == [True, False, True, False]
    assert [c.deadline_missed for c in chunks[:4]] == [False, True, False, True]
    assert "finished by DDIM" in next(f.message for f in setting.listener.faults)


# Real-time chunking


@pytest.mark.parametrize("steps", [None, 5])
def test_what_is_frozen_is_what_is_executed_meanwhile(steps):
    setting = Setting(0.12, freeze=True, freeze_steps=steps).run(4.0)
    first, *others = setting.planner.requests
    assert first.committed is None
    for request in others:
        assert len(request.committed) == (steps or 4)  # 0.15 s are 3 steps, and one
        begin = round((request.time - setting.robot.times[0]) / DT)
        assert request.committed[:3] == pytest.approx(setting.robot.actions[begin : begin + 3])
    assert [c.frozen for c in setting.listener.chunks] == [0] + [steps or 4] * (len(setting.listener.chunks) - 1)


# What goes wrong with the planner


def test_a_chunk_that_never_comes_is_asked_for_again_when_it_could_not_be_used():
    setting = Setting(lambda n: None if n in (2, 3) else 0.02).run(6.0)
    times = [r.time - 1000 for r in setting.planner.requests]
    # 15 actions are of use for 14.5 steps.
    assert times[:6] == pytest.approx([0, 0.4, 0.8, 1.55, 2.3, 2.7])
    faults = [(f.kind, f.recovered) for f in setting.listener.faults]
    assert faults == [("late_inference", False), ("late_inference", True)]
    sources = setting.listener.sources()
    held = [n for n, source in enumerate(sources) if source == "hold"]
    assert held == list(range(23, 47)), "from the last action of the second chunk to the next chunk"


def test_a_chunk_of_which_nothing_is_left_is_dropped():
    setting = Setting(lambda n: 0.9 if n == 1 else 0.02).run(4.0)
    late = next(c for c in setting.listener.chunks if c.id == 1)
    assert (late.stale, late.usable) == (P, 0)
    assert 1 not in {t.chunk for t in setting.listener.ticks}
    assert setting.listener.kinds() == ["late_inference"]


@pytest.mark.parametrize(
    "bad", [np.full((P, 2), np.nan), np.zeros((P, 3)), np.zeros(2), None, np.zeros((P, 2), object), [[0.0, 0.0]] * P]
)
def test_a_chunk_that_is_none_is_dropped_and_asked_for_again(bad):
    setting = Setting(0.02)
    make = setting.planner.make
    setting.planner.make = lambda request: Plan(request.id, bad) if 3 <= request.id < 6 else make(request)
    setting.run(5.0)
    assert setting.listener.kinds() == ["invalid_chunk"]
    assert setting.listener.kinds(recovered=True) == ["invalid_chunk"]
    assert setting.loop.fault_counts == {"invalid_chunk": 3}
    assert not {3, 4, 5} & {t.chunk for t in setting.listener.ticks}
    assert set(setting.listener.sources()[1:-1]) == {"chunk", "old_chunk"}, "the old one goes on"


def test_a_planner_that_fails_is_told_of_and_asked_again():
    setting = Setting(lambda n: None if n == 2 else 0.02)
    world, planner = setting.world, setting.planner
    world.at(1000.9, lambda: planner.fail("worker_died", "killed by signal 9", id=2))
    world.at(1000.9, lambda: setattr(planner, "ready_at", 1002.0))
    world.at(1002.0, lambda: planner.fail("worker_died", "a new one is ready", recovered=True))
    setting.run(4.0)
    faults = [(f.kind, f.message, f.recovered) for f in setting.listener.faults]
    assert faults == [
        ("worker_died", "killed by signal 9", False),
        ("worker_died", "a new one is ready", True),
    ]
    assert setting.planner.requests[3].time == pytest.approx(1002.0)
    sources = setting.listener.sources()
    # The chunk of 0.4 s has actions up to 1.1 s; the one asked for at 2.0 s is found at 2.05 s.
    assert [n for n, source in enumerate(sources) if source == "hold"] == list(range(23, 41))


def test_a_planner_that_says_nothing_of_its_recovery_has_recovered_with_its_next_chunk():
    setting = Setting(0.02)
    setting.world.at(1001.0, lambda: setting.planner.fail("server_unreachable", "refused"))
    setting.world.at(1001.0, lambda: setting.planner.fail("of my own", "what"))
    setting.run(3.0)
    assert setting.listener.kinds() == ["server_unreachable", "worker_failed"]
    over = [f for f in setting.listener.faults if f.recovered]
    assert [f.time for f in over] == pytest.approx([1001.25] * 2)


def test_failures_before_the_policy_is_known_are_told():
    setting = Setting(ready_at=2000.0)
    setting.world.at(1000.2, lambda: setting.planner.fail("server_unreachable", "refused"))
    setting.run(1.0)
    assert setting.listener.kinds() == ["server_unreachable"]
    assert setting.loop.faults == ("server_unreachable",)
    assert setting.robot.sent == []


def test_a_swapped_checkpoint_is_told():
    setting = Setting(0.02)
    setting.world.at(1001.0, lambda: setting.planner.fail("policy_swapped", "now lift 2f3a"))
    setting.run(3.0)
    assert [(f.kind, f.recovered) for f in setting.listener.faults] == [
        ("policy_swapped", False), ("policy_swapped", True)
    ]  # fmt: skip


# What goes wrong with subscribers and settings


def test_a_subscriber_that_raises_is_told_of_once():
    setting = Setting(0.02)

    class Bad(Listener):
        def on_tick(self, event):
            self.ticks.append(event)
            raise OSError("disk full")

    bad = Bad()
    setting.loop.subscribe(bad)
    setting.run(2.0)
    assert len(bad.ticks) == 1
    (told,) = [f for f in setting.listener.faults if not f.recovered]
    assert (told.kind, told.message) == ("subscriber_failed", "Bad is not told any more: OSError: disk full")
    assert len(setting.listener.ticks) == 41


def test_a_slow_subscriber_costs_periods_that_are_skipped_and_counted():
    setting = Setting(0.02)

    class Slow(Listener):
        def on_tick(self, event):
            if event.index in (10, 20):
                setting.world.sleep(0.23 if event.index == 10 else 0.06)

    setting.loop.subscribe(Slow())
    setting.run(2.0)
    indices = [t.index for t in setting.listener.ticks]
    assert indices[9:13] == [9, 10, 15, 16], "0.23 s are 4.6 periods: the fifth has its first half to begin in"
    assert 21 in indices
    late = {t.index: t.jitter_ms for t in setting.listener.ticks if t.jitter_ms > 1e-6}
    assert late == {21: pytest.approx(10.0)}
    assert setting.loop.fault_counts == {"loop_overrun": 4}
    assert np.diff(setting.robot.times).min() > DT / 2


def test_a_configuration_that_does_not_fit_the_policy_sends_nothing():
    setting = Setting(safety=SafetyConfig(velocity=[1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="velocity: 3 numbers given for 2 axes"):
        setting.run(1.0)
    setting_of_steps = Setting(n_action_steps=16)
    with pytest.raises(ValueError, match="n_action_steps is 16"):
        setting_of_steps.run(1.0)
    for one in (setting, setting_of_steps):
        assert one.robot.sent == []
        assert one.robot.stopped == 1
        assert "ValueError" in one.listener.stopped[0].reason
        assert one.loop.state == "idle"


def test_another_policy_is_used_if_it_fits():
    setting = Setting(0.02)
    infos = [INFO]
    type(setting.planner).info, kept = property(lambda self: infos[-1]), type(setting.planner).info
    try:
        other = replace(INFO, policy="newer weights")
        setting.world.at(1001.0, lambda: infos.append(other))
        setting.world.at(1002.0, lambda: infos.append(replace(INFO, action_dim=7)))
        setting.world.at(1003.5, lambda: infos.append(other))
        setting.run(5.0)
    finally:
        type(setting.planner).info = kept
    assert setting.loop.info is other
    faults = [(f.kind, f.recovered) for f in setting.listener.faults]
    assert faults == [("policy_mismatch", False), ("policy_mismatch", True)]
    assert "action_dim is 7, was 2" in setting.listener.faults[0].message
    assert not any(1002.0 < r.time < 1003.45 for r in setting.planner.requests)
    assert setting.listener.sources()[-2] in ("chunk", "old_chunk")


@pytest.mark.parametrize("method", ["poll", "submit"])
def test_a_planner_that_raises_is_told_of_and_the_robot_is_commanded(method):
    setting = Setting(0.02)
    works = getattr(setting.planner, method)

    def fails(*args):
        if 1001.0 < setting.world.now < 1002.0:
            raise OSError("pipe")
        return works(*args)

    setattr(setting.planner, method, fails)
    setting.run(4.0)
    faults = [f.recovered for f in setting.listener.faults if f.kind == "worker_failed"]
    assert faults == [False, True]
    assert "OSError: pipe" in setting.listener.faults[0].message
    assert np.diff(setting.robot.times) == pytest.approx(DT)
    assert setting.listener.sources()[-2] in ("chunk", "old_chunk")


def test_a_chunk_does_not_end_what_the_robot_complains_of():
    setting = Setting(0.02)
    said = [Failure("connection_lost", "no connection to the arm")]
    setting.robot.failures = lambda: [said.pop()] if said and setting.world.now > 1001.0 else []
    setting.world.at(1003.0, lambda: said.append(Failure("connection_lost", "connected", recovered=True)))
    setting.run(5.0)
    lost = [(f.recovered, f.message) for f in setting.listener.faults if f.kind == "connection_lost"]
    assert lost == [(False, "no connection to the arm"), (True, "connected")]


# Anything at all


@settings(max_examples=60, deadline=None)
@given(
    latencies=st.lists(st.one_of(st.none(), st.floats(0, 1.2)), min_size=1, max_size=12),
    lost=st.floats(0, 0.5),
    jumps=st.lists(st.tuples(st.floats(0.1, 7.9), st.floats(-100, 100)), max_size=2),
    settings_=st.fixed_dictionaries({
        "control_hz": st.sampled_from([10.0, 20.0, 50.0]), "policy_hz": st.just(20.0),
        "interpolation": st.sampled_from(["nearest", "linear"]),
        "blend": st.sampled_from(["newest", "crossfade", "ensemble"]), "lead_ms": st.sampled_from([0.0, 30.0]),
        "n_action_steps": st.sampled_from([1, 4, 8, 15]), "freeze": st.booleans(),
        "meanwhile": st.sampled_from(["continue", "hold"]),
    }),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_whatever_comes_when_there_is_a_command_each_period_and_no_action_at_a_wrong_time(
    latencies, lost, jumps, settings_, seed
):
    rng = np.random.default_rng(seed)
    setting = Setting(lambda n: latencies[n % len(latencies)], **settings_)
    read = setting.robot.read
    setting.robot.read = lambda: None if rng.random() < lost else read()
    for time, offset in jumps:
        setting.world.at(1000 + time, lambda offset=offset: setattr(setting.robot, "offset", offset))
    setting.run(8.0)
    ticks = setting.listener.ticks
    assert [t.index for t in ticks] == list(range(len(ticks)))
    sent = [t for t in ticks if t.source != "nothing"]
    assert sent == ticks[len(ticks) - len(sent) :], "from the first command on there is one each period"
    for tick in ticks:
        if tick.source in ("chunk", "old_chunk"):
            assert abs(tick.action[1] - tick.time - 1e-3 * settings_["lead_ms"]) <= DT / 2 + 1e-6
    assert len(setting.planner.requests) <= len(ticks)
