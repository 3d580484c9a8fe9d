"""The filter: whatever is wanted, limits hold, a stop ends inside, and what is allowed is reached."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limits_judge import outside

from diffpolicy_spec.control import SafetyConfig
from diffpolicy_spec.control.safety import LimitFilter, Limits, Motion
from diffpolicy_spec.control.safety.braking import brake, stop

HZ = st.sampled_from([10.0, 20.0, 50.0, 100.0, 200.0])
SIZE = 3


def some(low: float, high: float) -> st.SearchStrategy[float | None]:
    return st.none() | st.floats(low, high)


@st.composite
def configs(draw: st.DrawFn, kind: str = "position") -> SafetyConfig:
    low = draw(some(-2, -0.1))
    high = draw(some(0.1, 2))
    return SafetyConfig(
        kind=kind,
        low=low,
        high=high,
        velocity=draw(some(0.05, 5)),
        acceleration=draw(some(0.1, 50)),
        jerk=draw(some(1, 1000)),
        position_from=None if kind == "position" else "q",
    )


def judged(config: SafetyConfig) -> dict[str, np.ndarray]:
    unlimited = {"low": -np.inf, "high": np.inf, "velocity": np.inf, "acceleration": np.inf, "jerk": np.inf}
    given = {name: getattr(config, name) for name in unlimited}
    return {name: np.full(SIZE, unlimited[name] if value is None else value) for name, value in given.items()}


wild = st.floats(-3, 3) | st.sampled_from([1e12, -1e12, 1e6, -1e6, 0.0, 1e-9]) | st.floats(-1e-3, 1e-3)


@settings(max_examples=80, deadline=None)
@given(configs(), HZ,
       st.lists(st.tuples(st.lists(wild, min_size=SIZE, max_size=SIZE), st.integers(1, 6), st.booleans()), max_size=12),
       st.booleans())  # fmt: skip
def test_whatever_is_wanted_positions_stay_within_the_limits_and_a_stop_ends_inside(
    config: SafetyConfig, hz: float, wanted: list[Any], steep: bool
) -> None:
    limits = Limits.of(config, SIZE, hz)
    limit = LimitFilter(limits)
    motion = Motion.at_rest(np.zeros(SIZE))
    sent = [motion.position]
    for target, periods, braking in wanted:
        for _ in range(periods * (8 if steep else 1)):
            motion, action = limit.brake(motion) if braking else limit.step(motion, np.array(target))
            sent.append(action)
    from_here = len(sent)
    for _ in range(3000):
        motion, action = limit.brake(motion)
        sent.append(action)
        if motion.stands() and np.array_equal(sent[-1], sent[-2]):
            break
    assert motion.stands(), (motion, len(sent) - from_here)
    assert outside(np.array(sent), 1 / hz, judged(config)) == []


@settings(max_examples=80, deadline=None)
@given(configs("velocity"), HZ, st.sampled_from(["velocity", "delta"]),
       st.lists(st.tuples(st.lists(wild, min_size=SIZE, max_size=SIZE), st.integers(1, 40)), max_size=8))  # fmt: skip
def test_commanded_velocities_and_differences_keep_the_same_limits(
    config: SafetyConfig, hz: float, kind: str, wanted: list[Any]
) -> None:
    config = SafetyConfig(**{**vars(config), "kind": kind})
    limit = LimitFilter(Limits.of(config, SIZE, hz))
    motion = Motion.at_rest(np.zeros(SIZE))
    position, sent = np.zeros(SIZE), [np.zeros(SIZE)]
    for target, periods in wanted:
        for _ in range(periods):
            motion, action = limit.step(motion, np.array(target) * (1 / hz if kind == "delta" else 1))
            position = position + (action if kind == "delta" else action / hz)
            sent.append(position)
    limits = judged(config)
    # Positions are added up here and there in another order.
    limits["low"], limits["high"] = limits["low"] - 1e-9, limits["high"] + 1e-9
    assert outside(np.array(sent), 1 / hz, limits) == []


@settings(max_examples=60, deadline=None)
@given(configs(), HZ, st.lists(st.lists(wild, min_size=SIZE, max_size=SIZE), max_size=6), st.floats(-0.09, 0.09),
       st.floats(-0.02, 0.02))  # fmt: skip
def test_what_is_within_the_limits_is_reached_and_then_followed_exactly(
    config: SafetyConfig, hz: float, before: list[list[float]], target: float, speed: float
) -> None:
    # Rates low enough to need minutes from where `before` led are another test's.
    limit = LimitFilter(Limits.of(config, SIZE, hz))
    motion = Motion.at_rest(np.zeros(SIZE))
    for wanted in before:
        motion, _ = limit.step(motion, np.clip(wanted, -3, 3))
    goal, periods = np.full(SIZE, target), 0
    while periods < 200 * hz:
        motion, action = limit.step(motion, goal)
        periods += 1
        if motion.following.all() and np.abs(motion.velocity).max() < 1e-9:
            break
    assert np.array_equal(action, goal), (periods, motion)
    for _ in range(5):
        motion, action = limit.step(motion, goal)
        assert np.array_equal(action, goal)
    # And a motion that goes on, slowly enough for every configuration, is caught up with.
    speed = speed if config.velocity is None or abs(speed) < config.velocity else 0.0
    caught = False
    for n in range(round(4 * hz)):
        wanted = goal + speed * n / hz * min(1.0, 0.05 / (abs(speed) * 4 + 1e-9))
        if (np.abs(wanted) > 0.1).any():
            break
        motion, action = limit.step(motion, wanted)
        caught = bool(motion.following.all())
        if caught:
            assert np.array_equal(action, wanted)
    assert caught


def test_commands_within_the_limits_are_sent_to_the_last_bit() -> None:
    limit = LimitFilter(Limits.of(SafetyConfig(low=-1, high=1, velocity=2, acceleration=9, jerk=80), 1, 50))
    t = np.arange(-150, 400)[:, None] / 50
    s = np.clip((t + 3) / 3, 0, 1)
    wanted = 0.4 * np.sin(3 * t) * s**4 * (35 - 84 * s + 70 * s**2 - 20 * s**3)
    motion = Motion.at_rest(wanted[0])
    for row in wanted:
        motion, action = limit.step(motion, row)
        assert action[0] == row[0]
        assert motion.cause[0] == -1


def test_a_jump_is_reached_as_fast_as_the_limits_allow_without_passing_it() -> None:
    """0.5 at 1 /s, 5 /s^2, 50 /s^3: 0.5 / 1 + 1 / 5 + 5 / 50 = 0.8 s in continuous time."""
    limit = LimitFilter(Limits.of(SafetyConfig(velocity=1, acceleration=5, jerk=50), 1, 100))
    motion, goal = Motion.at_rest(np.zeros(1)), np.array([0.5])
    sent = []
    while len(sent) < 500 and (not motion.stands() or not sent or sent[-1] != 0.5):
        motion, action = limit.step(motion, goal)
        sent.append(float(action[0]))
    assert 0.78 <= len(sent) / 100 <= 0.84
    assert max(sent) <= 0.5 + 1e-9


def test_racing_at_a_limit_it_stops_there_and_comes_back() -> None:
    limit = LimitFilter(Limits.of(SafetyConfig(low=-1, high=1, velocity=2, acceleration=8, jerk=100), 1, 100))
    motion = Motion.at_rest(np.zeros(1))
    for _ in range(200):
        motion, action = limit.step(motion, np.array([7.0]))
    assert action[0] == pytest.approx(1, abs=1e-6)
    assert motion.cause[0] == 0
    for _ in range(300):
        motion, action = limit.step(motion, np.array([-0.25]))
    assert action[0] == -0.25
    assert motion.cause[0] == -1


def test_an_axis_that_stands_outside_may_only_come_back() -> None:
    limit = LimitFilter(Limits.of(SafetyConfig(low=-1, high=1, velocity=1), 2, 10))
    motion = Motion.at_rest(np.array([1.5, 1.5]))
    held, action = limit.brake(motion)
    assert action.tolist() == [1.5, 1.5]
    motion, action = limit.step(held, np.array([3.0, 0.0]))
    assert action == pytest.approx([1.4, 1.4])
    seen = [action]
    for _ in range(20):
        motion, action = limit.step(motion, np.array([3.0, 0.0]))
        seen.append(action)
    assert (np.diff(np.array(seen), axis=0) <= 0).all()
    assert action == pytest.approx([1, 0])


def test_a_commanded_velocity_is_given_up_in_time_before_the_position_limit() -> None:
    config = SafetyConfig(kind="velocity", low=-1, high=1, velocity=1, acceleration=2, position_from="q")
    limit = LimitFilter(Limits.of(config, 1, 100))
    motion, speeds = Motion.at_rest(np.zeros(1)), []
    for _ in range(300):
        motion, action = limit.step(motion, np.array([1.0]))
        speeds.append(float(action[0]))
    assert max(speeds) == pytest.approx(1)
    assert motion.position[0] == pytest.approx(1, abs=1e-4)
    assert abs(speeds[-1]) < 1e-6
    assert motion.cause[0] == 0


@pytest.mark.parametrize("hz", [10, 200])
def test_a_stop_in_closed_form_is_the_one_that_braking_makes(hz: int) -> None:
    rng = np.random.default_rng(hz)
    h = 1 / hz
    limit = 10 ** rng.uniform(0, 2, 200)
    q = 10 ** rng.uniform(1, 3, 200) * h
    v, a = rng.normal(size=200) * 10 ** rng.uniform(-2, 0, 200) * limit, np.clip(rng.normal(size=200), -1, 1) * limit
    whole = stop(v, a, q, limit, h)
    p, path, speeds = np.zeros(200), [np.zeros(200)], [v]
    for _ in range(whole.periods):
        after = brake(v, a, q, limit, h)
        assert (np.abs(after - a) <= q * (1 + 1e-9)).all()
        assert (np.abs(after) <= limit * (1 + 1e-9)).all()
        a, v = after, v + h * after
        p = p + h * v
        path.append(p)
        speeds.append(v)
    assert np.abs(v).max() < 1e-8
    for found, true in [
        (whole.highest, np.max(path, axis=0)), (whole.lowest, np.min(path, axis=0)),
        (whole.fastest, np.max(speeds, axis=0)), (whole.slowest, np.min(speeds, axis=0)),
    ]:  # fmt: skip
        np.testing.assert_allclose(found, true, atol=1e-7, rtol=1e-9)


def test_no_stop_is_faster() -> None:
    """Against a linear program over all accelerations, for stops of up to 12 periods."""
    scipy = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(1)
    h, limit, q = 0.1, np.array([1.0]), np.array([0.4])
    for _ in range(20):
        v, a = rng.uniform(-0.25, 0.25, 1), rng.uniform(-1, 1, 1)
        n, speed, acceleration = 0, v.copy(), a.copy()
        while abs(speed[0]) > 1e-9 or abs(acceleration[0]) > 1e-9:
            acceleration = brake(speed, acceleration, q, limit, h)
            speed = speed + h * acceleration
            n += 1
        # With one period less: a_0 = a, a_i to choose, |a_i - a_{i-1}| <= q, a_m = 0, v + h sum a_i = 0.
        m = n - 1
        if m < 1:
            continue
        differences = np.eye(m) - np.eye(m, k=-1)
        first = np.concatenate([a, np.zeros(m - 1)])
        found = scipy.linprog(
            np.zeros(m),
            A_ub=np.concatenate([differences, -differences]),
            b_ub=np.concatenate([q + first, q - first]) - 1e-7,
            A_eq=np.stack([np.full(m, h), np.eye(m)[-1]]),
            b_eq=[-v[0], 0.0],
            bounds=[(-1, 1)] * m,
        )
        assert not found.success, (v, a, n)
