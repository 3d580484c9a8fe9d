"""The control loop in a world whose time passes when it sleeps: every run is the same."""

import numpy as np
import pytest
from loop_world import HZ, P, TA, Setting

from diffpolicy_spec.control import next_actions

DT = 1 / HZ


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
