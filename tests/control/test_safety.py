"""The safety layer: what is sent instead of what is wanted, and what is said about it."""

import signal
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limits_judge import outside

from diffpolicy_spec.control import Observation, SafetyConfig, hold_action
from diffpolicy_spec.control.safety import Command, Safety

HZ = 20.0


def kinds(command: Command) -> list[str]:
    return [one.kind for one in command.interventions]


def reading(time: float, **values: Any) -> Observation:
    return Observation(time, {key: np.asarray(value) for key, value in values.items()})


def driven(safety: Safety, wanted: Any, periods: range) -> list[Command]:
    return [safety.command(None if wanted is None else np.asarray(wanted), n / HZ) for n in periods]


# The beginning.


def test_nothing_is_sent_before_there_is_an_action() -> None:
    safety = Safety(SafetyConfig(velocity=1), 2, HZ)
    assert safety.state == "ready"
    for n in range(3):
        command = safety.command(None, n / HZ)
        assert (command.action, command.source, command.interventions) == (None, "nothing", ())
    first = safety.command(np.array([5.0, 5.0]), 0.15)
    assert first.action is not None
    assert first.action.tolist() == [5, 5]
    assert kinds(first) == ["unchecked_start"]
    assert safety.state == "running"


def test_the_first_command_starts_where_the_robot_is() -> None:
    safety = Safety(SafetyConfig(velocity=1, position_from="q", position_index=[1, 2]), 2, HZ)
    early = safety.command(np.zeros(2), 0.0)
    assert early.action is None
    assert kinds(early) == ["wrong_observation"]
    assert safety.see(reading(9.0, q=[7.0, 3.0, 4.0]), 0.04) == []
    assert safety.usable
    first = safety.command(np.zeros(2), 0.05)
    assert first.action == pytest.approx([2.95, 3.95])
    assert kinds(first) == ["velocity_limit"] * 2


def test_a_robot_that_stands_outside_is_told_and_only_brought_back() -> None:
    safety = Safety(SafetyConfig(low=-1, high=1, velocity=1, position_from="q", names=["lift", "turn"]), 2, HZ)
    safety.see(reading(0.0, q=[1.5, 0.0]), 0.0)
    first = safety.command(np.array([2.0, 0.01]), 0.0)
    assert first.interventions[0].message == "lift stands at 1.5, outside -1 to 1: only back"
    assert first.interventions[0].kind == "position_limit"
    path = [first.action[0], *(one.action[0] for one in driven(safety, [2.0, 0.01], range(1, 20)))]  # type: ignore
    assert path[0] == pytest.approx(1.45)
    assert (np.diff(path) <= 0).all()
    assert path[-1] == 1


# What is no action.


@pytest.mark.parametrize(
    ("wanted", "kind"),
    [
        ([np.nan, 0.1], "nonfinite_action"),
        ([0.1, np.inf], "nonfinite_action"),
        ([1e300, 0.1], "nonfinite_action"),
        ([0.1, 0.1, 0.1], "wrong_action"),
        ([[0.1, 0.1]], "wrong_action"),
        ("open", "wrong_action"),
        ([{}, 1], "wrong_action"),
    ],
)
def test_what_is_no_action_is_replaced_by_the_safety_action(wanted: Any, kind: str) -> None:
    safety = Safety(SafetyConfig(low=-1, high=1), 2, HZ)
    safety.command(np.array([0.5, 0.25]), 0.0)
    for n in range(1, 45):
        command = safety.command(wanted, n / HZ)
        assert command.action is not None
        assert command.action.tolist() == [0.5, 0.25]
        assert command.source == "hold"
        # Told at once, then once a second; counted each time.
        assert kinds(command) == ([kind] if (n - 1) % 20 == 0 else [])
    assert command.interventions == ()
    assert safety.counts == {(kind, None): 44}
    assert [(one.kind, one.count) for one in safety._teller.untold(3.0)] == [(kind, 3)]
    assert safety.command(np.array([0.4, 0.4]), 45 / HZ).source == "wanted"


def test_a_limit_is_told_by_axis_with_how_often() -> None:
    safety = Safety(SafetyConfig(high=1, names=["x", "y"]), 2, HZ)
    told = [one for command in driven(safety, [0.5, 3], range(50)) for one in command.interventions]
    assert [(one.kind, one.axis, one.count) for one in told] == [("position_limit", 1, 1)] + [
        ("position_limit", 1, 20)
    ] * 2
    assert told[0].message == "y: 3 was wanted, 1 sent"
    assert safety.counts[("position_limit", 1)] == 50


# Observations.


def test_observations_that_are_none_are_not_to_be_used() -> None:
    safety = Safety(SafetyConfig(position_from="q"), 2, HZ)
    for bad, kind in [
        (reading(0.0, q=[0.0, np.nan]), "nonfinite_observation"),
        (reading(0.0, q=[0.0, 0.0], front=np.full((3, 4, 4), np.inf)), "nonfinite_observation"),
        (reading(0.0, q=np.array(["a", "b"])), "nonfinite_observation"),
        (reading(0.0, p=[0.0, 0.0]), "wrong_observation"),
        (reading(0.0, q=[0.0]), "wrong_observation"),
        (reading(0.0, q=[[0.0, 0.0]]), "wrong_observation"),
    ]:
        before = safety.counts[kind, None]
        told = safety.see(bad, 0.0)
        assert not safety.usable
        assert safety.counts[kind, None] == before + 1
        assert [one.kind for one in told] == ([] if before else [kind])
    assert safety.see(reading(1.0, q=[0.0, 0.0], front=np.zeros((3, 4, 4), np.uint8)), 0.0) == []
    assert safety.usable


def test_old_observations_bring_the_safety_action_until_there_is_a_new_one() -> None:
    safety = Safety(SafetyConfig(velocity=1, max_observation_age_ms=200), 1, HZ)
    safety.see(reading(50.0, q=[0.0]), 0.0)
    safety.command(np.zeros(1), 0.0)
    sources, told = [], []
    for n in range(1, 12):
        if n in (6, 9):  # the same reading again is no new one
            safety.see(reading(50.0 if n == 6 else 51.0, q=[0.0]), n / HZ)
        command = safety.command(np.array([0.01 * n]), n / HZ)
        sources.append(command.source)
        told += kinds(command)
    assert sources == ["wanted"] * 4 + ["hold"] * 4 + ["wanted"] * 3
    assert "stale_observation" in told


# Safety actions.


def test_hold_is_what_the_evaluation_holds_with() -> None:
    rng = np.random.default_rng(0)
    for action_repr, size in [("absolute_rot6d", 20), ("absolute", 14), ("delta", 14), ("raw", 5)]:
        safety = Safety(SafetyConfig(), size, HZ, action_repr=action_repr)
        last = rng.uniform(-1, 1, size)
        safety.command(last, 0.0)
        held = safety.command(None, 0.05)
        assert (held.source, kinds(held)) == ("hold", ["no_chunk"])
        np.testing.assert_array_equal(held.action, hold_action(last, action_repr))
    velocities = Safety(SafetyConfig(kind="velocity"), 3, HZ)
    velocities.command(np.ones(3), 0.0)
    held = velocities.command(None, 0.05)
    np.testing.assert_array_equal(held.action, hold_action(np.ones(3), "raw", zero_holds=True))


def test_a_hold_after_a_fast_motion_brakes_first() -> None:
    safety = Safety(SafetyConfig(velocity=1, acceleration=2), 1, HZ)
    path = [0.0]
    for n in range(20):
        path.append(safety.command(np.array([10.0]) if n else np.zeros(1), n / HZ).action[0])  # type: ignore[index]
    speed = (path[-1] - path[-2]) * HZ
    for n in range(20, 40):
        path.append(safety.command(None, n / HZ).action[0])  # type: ignore[index]
    assert speed == pytest.approx(1)
    assert path[-1] - path[20] == pytest.approx(1 / 4, abs=0.03)  # v^2 / 2 A
    assert np.abs(np.diff(path, 2)).max() <= 2 / HZ**2 * (1 + 1e-9)
    assert path[-1] == path[-2]


def test_zero_is_approached_within_the_limits() -> None:
    safety = Safety(SafetyConfig(low=-1, high=1, velocity=1, action="zero"), 1, HZ)
    safety.command(np.array([0.5]), 0.0)
    path = [command.action[0] for command in driven(safety, None, range(1, 12))]  # type: ignore[index]
    assert path[:3] == pytest.approx([0.45, 0.4, 0.35])
    assert path[-1] == 0
    assert safety.command(np.array([0.01]), 12 / HZ).source == "wanted"


def test_the_safety_action_stop_stays_until_resume() -> None:
    safety = Safety(SafetyConfig(velocity=1, acceleration=2, action="stop"), 1, HZ)
    driven(safety, [0.0], range(1))
    moving = driven(safety, [10.0], range(1, 15))[-1]
    first = safety.command(None, 15 / HZ)
    assert (first.source, kinds(first)) == ("stop", ["no_chunk", "stop"])
    assert (safety.state, safety.at_rest) == ("stopped", False)
    assert first.action > moving.action  # type: ignore[operator]
    last = driven(safety, [10.0], range(16, 40))[-1]
    assert (last.source, safety.state, safety.at_rest) == ("stop", "stopped", True)
    safety.resume()
    assert safety.state == "running"
    assert safety.command(np.array([10.0]), 2.0).source == "wanted"


def test_a_limit_may_be_a_reason_to_stop() -> None:
    safety = Safety(SafetyConfig(high=1, velocity=1, acceleration=4, on_limit="stop", names=["x"]), 1, HZ)
    path = [0.0]
    for n in range(60):
        command = safety.command(np.array([0.001 * n**2]), n / HZ)
        path.append(command.action[0])  # type: ignore[index]
        if command.source == "stop":
            break
    assert safety.reason == "x ran into its velocity limit"
    assert set(kinds(command)) == {"velocity_limit", "stop"}
    path += [one.action[0] for one in driven(safety, [0.0], range(n + 1, n + 40))]  # type: ignore[index]
    assert outside(np.array(path)[1:, None], 1 / HZ, {"low": -np.inf, "high": 1.0, "velocity": 1.0, "acceleration": 4.0,
                                                      "jerk": np.inf}) == []  # fmt: skip
    assert path[-1] == path[-2]


# Stops.


def test_an_emergency_stop_wins_over_everything() -> None:
    safety = Safety(SafetyConfig(velocity=1, acceleration=4), 1, HZ)
    driven(safety, [0.0], range(1))
    driven(safety, [5.0], range(1, 10))
    thread = threading.Thread(target=safety.emergency_stop, args=("the red button",))
    thread.start()
    thread.join()
    command = safety.command(np.array([5.0]), 0.5)
    assert (command.source, kinds(command), safety.state) == ("stop", ["emergency_stop"], "stopped")
    assert command.interventions[0].message == "the red button"
    assert safety.fallback(0.55, "watchdog", "").source == "stop"
    driven(safety, [5.0], range(12, 40))
    assert safety.at_rest
    assert safety.counts["emergency_stop", None] == 1
    with pytest.raises(RuntimeError, match=r"the red button.*reset first"):
        safety.resume()
    safety.stop("another stop takes nothing away")
    safety.reset()
    assert (safety.state, safety.reason) == ("stopped", "emergency stop: the red button")
    assert safety.command(np.array([5.0]), 3.0).action is None
    safety.resume()
    assert safety.state == "ready"
    assert safety.command(np.array([5.0]), 3.05).source == "wanted"


def test_an_emergency_stop_from_a_signal_handler_in_the_middle_of_a_command() -> None:
    safety = Safety(SafetyConfig(velocity=1, acceleration=4, jerk=50), 10, HZ)
    before = signal.signal(signal.SIGALRM, lambda *_: safety.emergency_stop("signal"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        for n in range(100_000):
            command = safety.command(np.full(10, np.sin(n)), n / HZ)
            if command.source == "stop":
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert safety.reason == "signal"


def test_after_a_stop_it_goes_on_from_where_the_robot_is() -> None:
    safety = Safety(SafetyConfig(velocity=1, position_from="q"), 1, HZ)
    safety.see(reading(0.0, q=[0.0]), 0.0)
    driven(safety, [0.0], range(1))
    safety.stop("lunch")
    driven(safety, [0.0], range(1, 5))
    safety.see(reading(0.2, q=[0.3]), 0.2)  # pushed by hand
    assert safety.command(np.zeros(1), 5 / HZ).action == 0
    safety.resume()
    assert safety.command(np.zeros(1), 6 / HZ).action == pytest.approx(0.25)


# Time.


def test_a_second_command_in_a_period_is_none_and_skipped_periods_are_rest() -> None:
    safety = Safety(SafetyConfig(velocity=1, acceleration=2), 1, HZ)
    driven(safety, [0.0], range(1))
    moving = driven(safety, [10.0], range(1, 30))
    again = safety.command(np.array([10.0]), 29.4 / HZ)
    assert (again.action, again.source) == (None, "nothing")
    last = moving[-1].action[0]  # type: ignore[index]
    skipped = safety.command(np.array([10.0]), 31 / HZ).action[0]  # type: ignore[index]
    assert skipped - last == pytest.approx(2 / HZ**2)
    # Less than half a period early or late is the same period.
    assert safety.command(np.array([10.0]), 32.4 / HZ).action[0] - skipped == pytest.approx(4 / HZ**2)  # type: ignore


def test_a_velocity_goes_on_in_skipped_periods_and_the_position_says_where_to() -> None:
    config = SafetyConfig(kind="velocity", low=-1, high=1, velocity=1, acceleration=2, position_from="q")
    safety = Safety(config, 1, HZ)
    position, speed, n = 0.0, 0.0, 0
    rng = np.random.default_rng(3)
    for _ in range(200):
        skipped = int(rng.choice([1, 1, 1, 2]))
        for _ in range(skipped):  # a perfect robot
            position += speed / HZ
        n += skipped
        safety.see(reading(n / HZ, q=[position]), n / HZ)
        speed = safety.command(np.array([3.0]), n / HZ).action[0]  # type: ignore[index]
        assert abs(speed) <= 1 + 1e-9
    # Periods without a command are a surprise a stop cannot have counted with; it gives in, and comes back.
    assert position <= 1 + 0.06
    assert abs(speed) < 0.2


def test_after_a_long_silence_it_begins_where_the_robot_is() -> None:
    safety = Safety(SafetyConfig(velocity=1, position_from="q", watchdog_ms=100), 1, HZ)
    safety.see(reading(0.0, q=[0.0]), 0.0)
    driven(safety, [0.0], range(2))
    safety.see(reading(9.0, q=[2.0]), 9.0)
    assert safety.command(np.zeros(1), 9.0).action == pytest.approx(1.95)


# Looking ahead.


def test_a_preview_is_what_will_be_sent_and_changes_nothing() -> None:
    config = SafetyConfig(low=-1, high=1, velocity=1, acceleration=5, jerk=100)
    one, other = Safety(config, 2, HZ), Safety(config, 2, HZ)
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(40, 2))
    wanted[25] = np.nan
    for n in range(10):
        one.command(wanted[n], n / HZ)
        other.command(wanted[n], n / HZ)
    counts = one.counts
    shown = one.preview(wanted[10:], 10 / HZ)
    assert one.counts == counts
    sent = [other.command(wanted[n], n / HZ).action for n in range(10, 40)]
    np.testing.assert_array_equal(shown, sent)
    np.testing.assert_array_equal(shown, [one.command(wanted[n], n / HZ).action for n in range(10, 40)])
    assert one.preview(wanted[:0], 2.0).shape == (0, 2)


def test_a_preview_before_the_first_command_begins_where_the_robot_is() -> None:
    safety = Safety(SafetyConfig(velocity=1, position_from="q"), 1, HZ)
    assert safety.preview(np.zeros((3, 1)), 0.0).shape == (0, 1)
    safety.see(reading(0.0, q=[0.2]), 0.0)
    assert safety.preview(np.zeros((3, 1)), 0.0)[:, 0] == pytest.approx([0.15, 0.1, 0.05])
    assert safety.preview(np.full((3, 1), np.nan), 0.0).shape == (0, 1)
    assert safety.state == "ready"
    safety.stop("x")
    assert safety.preview(np.zeros((3, 1)), 0.0).shape == (0, 1)


def test_a_preview_with_a_step_of_its_own_keeps_the_limits_too() -> None:
    safety = Safety(SafetyConfig(velocity=1), 1, 100)
    safety.command(np.zeros(1), 0.0)
    shown = safety.preview(np.full((5, 1), 9.0), 0.01, dt=0.1)
    assert shown[:, 0] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    safety.stop("x")
    assert safety.preview(np.full((3, 1), 9.0), 0.02)[:, 0].tolist() == [0, 0, 0]


# Whatever comes.

anything = st.one_of(
    st.none(),
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=2, max_size=2),
    st.lists(st.floats(-3, 3), min_size=2, max_size=2),
    st.lists(st.floats(-3, 3), max_size=4),
)
orders = st.sampled_from(["", "", "", "", "", "stop", "emergency", "resume", "nan", "skip", "twice"])


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["hold", "zero", "stop"]), st.sampled_from(["clamp", "stop"]),
       st.lists(st.tuples(anything, orders, st.integers(1, 12)), max_size=20))  # fmt: skip
def test_whatever_comes_in_whatever_order_the_stream_is_within_the_limits(
    action: str, on_limit: str, events: list[Any]
) -> None:
    config = SafetyConfig(low=-1, high=1.5, velocity=1, acceleration=3, jerk=40, action=action, on_limit=on_limit,
                          position_from="q")  # fmt: skip
    limits = {"low": -1.0, "high": 1.5, "velocity": 1.0, "acceleration": 3.0, "jerk": 40.0}
    safety = Safety(config, 2, HZ)
    safety.see(reading(0.0, q=[0.2, -0.3]), 0.0)
    n, stream = 0, [np.array([0.2, -0.3])]
    for wanted, order, periods in events:
        stopped = safety.state == "stopped"
        if order == "stop":
            safety.stop("asked")
        elif order == "emergency":
            safety.emergency_stop("asked")
        elif order == "resume" and safety.reason == "asked" and safety._emergency is None:
            safety.see(reading(n + 1.0, q=stream[-1]), n / HZ)
            safety.resume()
        elif order == "nan":
            safety.see(reading(n + 1.0, q=[np.nan, 0]), n / HZ)
        elif order == "skip":
            # The robot stands where it was told to, so rates begin anew.
            n += 3
            assert outside(np.array(stream), 1 / HZ, limits) == []
            stream = stream[-1:]
        elif order == "twice":
            assert safety.command(None, (n - 1) / HZ).action is None
        for _ in range(periods):
            if n % 5 == 0:
                safety.see(reading(n + 0.5, q=stream[-1]), n / HZ)
            command = safety.command(None if wanted is None else np.array(wanted), n / HZ)
            n += 1
            if command.action is None:
                assert len(stream) == 1
                continue
            stream.append(command.action)
            if stopped and order != "resume":
                assert command.source == "stop"
    assert outside(np.array(stream), 1 / HZ, limits) == []


# What cannot be.


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": ["position"]}, "kind: 1 given for 2 axes"),
        ({"low": [0, 0, 0]}, "low: 3 numbers given for 2 axes"),
        ({"low": 1, "high": 0}, "axis 0: low 1 is above high 0"),
        ({"low": float("nan")}, "low must be numbers"),
        ({"velocity": [1, 0]}, "velocity must be positive"),
        ({"jerk": -1}, "jerk must be positive"),
        ({"names": ["x"]}, "names: 1 given for 2 axes"),
        ({"kind": "velocity", "low": -1}, "axis 0 is commanded by its velocity, and low and high limit its position"),
        ({"position_index": [0, 1]}, "position_index needs position_from"),
        ({"position_from": "q", "position_index": [0]}, "position_index: 1 given for 2 axes"),
        ({"position_from": "q", "position_index": [0, -1]}, "must count from 0"),
        ({"action": "zero", "low": 0.5, "high": 1}, "the safety action zero commands position 0, which is outside"),
    ],
)
def test_settings_that_cannot_be_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Safety(SafetyConfig(**config), 2, HZ)


def test_lists_may_leave_axes_without_a_limit() -> None:
    config = SafetyConfig(kind=["position", "free"], low=[None, -1], velocity=[1, None], position_from="q",
                          position_index=[0, None])  # fmt: skip
    safety = Safety(config, 2, HZ)
    safety.see(reading(0.0, q=[0.0]), 0.0)
    command = safety.command(np.array([-9.0, -9.0]), 0.0)
    assert command.action == pytest.approx([-0.05, -1])
