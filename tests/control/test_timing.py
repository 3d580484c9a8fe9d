"""Chunks that take time, on a grid of control steps."""

import numpy as np
import pytest

from diffpolicy_spec.control import Slice, hold_action, next_actions, steps_waited

BEFORE = np.arange(15.0)[:, None]  # its observation was taken at step 0
CHUNK = 100 + np.arange(15.0)[:, None]  # and this one's at step 8


def executed(waited, meanwhile="continue", since=8, hold=np.copy, before=BEFORE, chunk=CHUNK):
    return next_actions(
        chunk, 8, waited=waited, before=before, since=since, last=before[since - 1], hold=hold, meanwhile=meanwhile
    )


def of(result: Slice):
    return result.actions[:, 0].tolist()


def test_without_delay_it_is_the_receding_horizon():
    first = next_actions(CHUNK, 8)
    assert of(first) == list(range(100, 108))
    assert (first.waited, first.stale, first.held, first.deadline_missed) == (0, 0, 0, False)


def test_late_actions_are_dropped_and_the_old_chunk_goes_on():
    result = executed(3)
    # Every step executes the action planned for it: 8, 9, 10 by the old chunk, the later ones by the new.
    assert of(result) == [8, 9, 10, 103, 104, 105, 106, 107]
    assert (result.waited, result.stale, result.held, result.deadline_missed) == (3, 3, 0, False)


def test_holding_repeats_the_last_action():
    result = executed(3, "hold")
    assert of(result) == [7, 7, 7, 103, 104, 105, 106, 107]
    assert (result.stale, result.held, result.deadline_missed) == (3, 3, True)


@pytest.mark.parametrize(
    ("waited", "actions", "stale", "held"),
    [
        (8, [8, 9, 10, 11, 12, 13, 14, 14, 108], 8, 1),  # the old plan has 7 more
        (14, [8, 9, 10, 11, 12, 13, 14, *[14] * 7, 114], 14, 7),
        (20, [8, 9, 10, 11, 12, 13, 14, *[14] * 13, 114], 15, 13),  # all too late: the newest one
    ],
)
def test_chunks_later_than_the_period(waited, actions, stale, held):
    result = executed(waited)
    assert of(result) == actions
    assert (result.stale, result.held, result.deadline_missed) == (stale, held, True)


def test_the_old_chunk_is_read_from_where_its_time_is():
    assert of(executed(2, since=10)) == [10, 11, 102, 103, 104, 105, 106, 107]
    assert of(executed(2, since=14)) == [14, 14, 102, 103, 104, 105, 106, 107]


def test_over_an_episode_every_step_executes_what_was_planned_for_it():
    """The action at step k is the newest plan's for step k, whatever the (continued) delays are."""
    rng = np.random.default_rng(0)
    step, before, since, last, log = 0, None, 0, None, []
    for number in range(50):
        chunk = 1000 * number + step + np.arange(15.0)[:, None]
        waited = 0 if number == 0 else int(rng.integers(0, 7))
        result = next_actions(chunk, 8, waited=waited, before=before, since=since, last=last)
        assert not result.held
        log += result.actions[:, 0].tolist()
        step, before, since, last = step + len(result.actions), chunk, len(result.actions), result.actions[-1]
    assert [value % 1000 for value in log] == list(range(step))


def test_what_holds():
    last = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0])
    assert hold_action(last, "absolute").tolist() == last.tolist()
    assert hold_action(last, "delta").tolist() == [0, 0, 0, 0, 0, 0, 1]
    two = np.concatenate([last, -last])
    assert hold_action(two, "delta")[[6, 13]].tolist() == [1, -1]
    assert not hold_action(last, "raw", zero_holds=True).any()
    result = executed(3, "hold", hold=lambda action: 0 * action)
    assert of(result)[:3] == [0, 0, 0]


@pytest.mark.parametrize(
    ("latency", "hz", "steps"), [(0, 20, 0), (1, 20, 1), (50, 20, 1), (50.1, 20, 2), (318, 50, 16), (100, 10, 1)]
)
def test_steps_that_pass(latency, hz, steps):
    assert steps_waited(latency, hz) == steps


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match="latency"):
        steps_waited(-1, 20)
    with pytest.raises(ValueError, match="control_hz"):
        steps_waited(1, 0)
    with pytest.raises(ValueError, match="continue, hold"):
        executed(1, "panic")
    with pytest.raises(ValueError, match="the world must wait"):
        next_actions(CHUNK, 8, waited=1)
    with pytest.raises(ValueError, match="16 of 15"):
        next_actions(CHUNK, 16)
