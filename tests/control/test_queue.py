"""Chunks in time: never an action at another time than its own."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpolicy_spec.control import ControlConfig
from diffpolicy_spec.control.blending import Candidate, blend
from diffpolicy_spec.control.queue import Chunk, ChunkQueue, action_at, invalid_actions

P, DT = 15, 0.05


def chunk(number, time, count=P):
    """Its actions are (id, the time they belong at)."""
    return Chunk(number, time, np.stack([np.full(count, float(number)), time + DT * np.arange(count)], axis=1))


def queue(**config):
    return ChunkQueue(ControlConfig(control_hz=20.0, **config))


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1e5), st.floats(-3, 20))
def test_the_nearest_action_is_at_most_half_a_step_from_its_time(start, place):
    found = action_at(np.arange(P, dtype=float)[:, None], place, "nearest")
    if found is None:
        assert place < -0.5 or place >= P - 0.5 - 2e-6
    else:
        assert abs(found[0][0] - place) <= 0.5 + 2e-6
        assert found[1] == found[0][0]


@settings(max_examples=200, deadline=None)
@given(st.floats(-3, 20))
def test_between_two_steps_it_is_linear(place):
    found = action_at(3 * np.arange(P, dtype=float)[:, None] + 1, place, "linear")
    if found is None:
        assert place < -0.5 or place >= P - 0.5 - 2e-6
    else:
        inside = min(max(place, 0), P - 1)
        assert found[0][0] == pytest.approx(3 * inside + 1)
        assert found[1] == pytest.approx(inside)


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
def test_a_chunk_of_one_action(interpolation):
    assert action_at(np.array([[7.0]]), 0.2, interpolation)[0].tolist() == [7]
    assert action_at(np.array([[7.0]]), 0.6, interpolation) is None


@settings(max_examples=150, deadline=None)
@given(
    interpolation=st.sampled_from(["nearest", "linear"]),
    blending=st.sampled_from(["newest", "crossfade", "ensemble"]),
    hz=st.sampled_from([10.0, 20.0, 100.0]),
    arrivals=st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1.2)), max_size=12),
    phase=st.floats(0, 0.05),
)
def test_whatever_comes_when_an_action_is_executed_at_its_time(interpolation, blending, hz, arrivals, phase):
    """Chunks of observations of any time, with any delay, so in any order: the action of every period is one for it."""
    made = ChunkQueue(ControlConfig(control_hz=hz, policy_hz=20.0, interpolation=interpolation, blend=blending))
    coming = sorted((step * DT + late, i, step * DT) for i, (step, late) in enumerate(arrivals))
    newest = -math.inf
    for n in range(round(5 * hz)):
        now = phase + n / hz
        while coming and coming[0][0] <= now:
            _, number, observed = coming.pop(0)
            stale = made.put(chunk(number, observed), now, 1 / hz)
            last = observed + DT * (P - 1)
            if observed <= newest or now > last + DT / 2 + 1e-6:
                assert stale == P
            else:
                newest = observed
                assert stale == pytest.approx(max(now - observed, 0) / DT, abs=0.5 + 1e-5)
        made.forget_before(now)
        wanted = made.wanted(now)
        covered = newest - DT / 2 <= now <= newest + DT * (P - 0.5) - 1e-6
        if covered:
            assert wanted is not None
        if wanted is not None:
            # Nearest: half a step; linear: exactly, but for the half step beyond an end; blends are between those.
            slack = 0.5 * DT
            assert abs(wanted.action[1] - now) <= slack + 1e-6
            inside = wanted.time <= now <= wanted.time + DT * (P - 1)
            if interpolation == "linear" and inside and blending == "newest":
                assert wanted.action[1] == pytest.approx(now)
            assert wanted.time + wanted.step * DT == pytest.approx(now, abs=slack + 1e-6)
    assert len(made) <= 1 or made.wanted(now) is not None


def test_a_chunk_of_an_older_observation_is_dropped():
    made = queue()
    assert made.put(chunk(1, 1.0), 1.1, DT) == 2
    assert made.put(chunk(0, 0.5), 1.1, DT) == P
    assert made.put(chunk(2, 1.0), 1.1, DT) == P
    assert made.wanted(1.2).chunk == 1


def test_nothing_is_wanted_beyond_the_last_action():
    made = queue()
    made.put(chunk(0, 0.0), 0.1, DT)
    assert made.wanted(0.7).action.tolist() == [0, 0.7000000000000001]
    assert made.wanted(0.75) is None
    made.forget_before(0.75)
    assert len(made) == 0


def test_the_older_chunk_goes_on_where_the_newer_one_has_nothing():
    made = queue()
    made.put(chunk(0, 0.0), 0.1, DT)
    made.put(chunk(1, 0.4), 0.45, DT)
    assert made.wanted(0.3).chunk == 0
    assert made.wanted(0.4).chunk == 1


def test_times_just_between_two_steps_do_not_flicker():
    made = queue()
    made.put(chunk(0, 1000.025), 1000.05, DT)
    steps = [made.wanted(1000.05 + n * 0.05).step for n in range(10)]
    assert steps == list(range(1, 11))


def test_crossfade_is_continuous_and_ends():
    made = queue(blend="crossfade", blend_steps=4)
    zero, one = np.zeros((P, 1)), np.ones((P, 1))
    made.put(Chunk(0, 0.0, zero), 0.0, DT)
    made.put(Chunk(1, 0.2, one), 0.3, DT)
    assert [made.wanted(0.3 + i * DT).action[0] for i in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    made.put(Chunk(2, 0.3, 3 * one), 0.35, DT)  # while it goes on
    assert made.wanted(0.35).action[0] == pytest.approx(0.5 + 0.25 * (3 - 0.5))


def test_ensemble_weighs_as_act_does():
    rows = [Candidate(np.array([float(i)]), 1.0) for i in range(3)]
    weights = np.exp(-0.5 * np.arange(3))
    got = blend(rows, "ensemble", fade=1.0, decay=0.5)
    assert got[0] == pytest.approx((weights * np.arange(3)).sum() / weights.sum())
    assert blend(rows, "newest", fade=1.0, decay=0.5)[0] == 2
    assert blend(rows, "ensemble", fade=1.0, decay=0.0)[0] == pytest.approx(1.0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(-1, 2)), min_size=1, max_size=6),
    st.sampled_from(["newest", "crossfade", "ensemble"]),
)
def test_a_blend_is_between_what_is_blended(parts, how):
    rows = [Candidate(np.array([value]), age) for value, age in parts]
    got = blend(rows, how, fade=0.2, decay=0.1)[0]
    values = [value for value, _ in parts]
    assert min(values) - 1e-9 <= got <= max(values) + 1e-9
    assert [row.action[0] for row in rows] == values, "what is blended stays as it is"


def test_the_future_of_the_queue():
    made = queue()
    assert made.following(0.0, 3, DT) is None
    made.put(chunk(0, 0.0), 0.0, DT)
    assert made.following(0.6, 9, DT)[:, 1] == pytest.approx([0.6, 0.65, 0.7])


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        ([[1.0]], "not an array"),
        (np.zeros((P, 3)), r"shape \(15, 3\), not \(15, 2\)"),
        (np.zeros((P, 2), complex), "not an array of numbers"),
        (np.full((P, 2), np.nan), "30 of its 30 numbers are not finite"),
        (np.where(np.arange(30).reshape(P, 2) == 3, np.inf, 0.0), "1 of its 30"),
        (None, "not an array"),
    ],
)
def test_chunks_that_cannot_be_used_say_why(actions, said):
    with pytest.raises(AssertionError, match=said):
        assert invalid_actions(actions, 2, P) is None, invalid_actions(actions, 2, P)


def test_chunks_that_can():
    assert invalid_actions(np.zeros((P, 2), np.float32), 2, P) is None
