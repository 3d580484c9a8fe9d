"""The process that makes chunks is slow, hangs or dies, or its checkpoint is replaced, while the loop runs."""

from __future__ import annotations

import os
import signal
import time

import pytest
from faults_policy import save_policy
from faults_processes import Throttle, wait_for
from faults_running import SOON, is_over, recovered, running

from diffpolicy_spec.control.planning import ProcessPlanner


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture(scope="module")
def planner(checkpoint):
    with ProcessPlanner(checkpoint, hang_s=5.0) as planner:
        yield planner


def test_the_worker_is_killed_again_and_again(planner):
    with running(planner) as (_, _, told):
        for _ in range(2):
            pid = planner.pid
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: told.began("worker_died"), SOON, "it is not told")
            wait_for(lambda: told.ticks[-1].source == "hold", SOON, "no safety action")
            recovered(told)
            is_over(told, "worker_died")
            assert planner.pid != pid
        assert "SIGKILL" in told.began("worker_died")[0].message


def test_a_worker_that_hangs_is_replaced(planner):
    with running(planner) as (_, _, told):
        pid = planner.pid
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: told.began("worker_died"), SOON, "it is not told")
        assert "no answer for 5 s" in told.began("worker_died")[0].message
        recovered(told)
        is_over(told, "worker_died", "late_inference")
        assert planner.pid != pid


def slow_for(planner, seconds: float, on_deadline: str, period: float):
    """Inference slower than its deadline; what was told meanwhile and after."""
    with running(planner, deadline_ms=100.0, on_deadline=on_deadline) as (_, _, told):
        with Throttle(planner.pid, share=0.05, period=period):
            end = time.monotonic() + seconds
            wait_for(lambda: told.began("deadline_missed"), SOON, "it is not told")
            while time.monotonic() < end:
                time.sleep(0.05)
        recovered(told)
        is_over(told, "deadline_missed", "late_inference")
    return told


@pytest.mark.parametrize("on_deadline", ["continue", "finish"])
def test_inference_slower_than_the_deadline(planner, on_deadline):
    told = slow_for(planner, 2.0, on_deadline, period=0.4)
    late = [c for c in told.chunks if c.deadline_missed]
    assert late
    if on_deadline == "continue":
        assert all(c.exact for c in told.chunks)  # the old chunk goes on; nothing is drawn from another law
        assert "old_chunk" in {t.source for t in told.ticks}
    else:
        assert all(c.deadline_missed for c in told.chunks if not c.exact)


def test_inference_so_slow_that_no_chunk_is_of_use(planner):
    told = slow_for(planner, 4.0, "continue", period=4.0)
    assert told.began("late_inference")
    assert "hold" in {t.source for t in told.ticks}


@pytest.mark.slow
@pytest.mark.parametrize("on_deadline", ["continue", "finish"])
@pytest.mark.parametrize("period", [0.4, 2.0])
def test_inference_slower_than_the_deadline_for_10_s(planner, on_deadline, period):
    told = slow_for(planner, 10.0, on_deadline, period)
    assert sum(c.deadline_missed for c in told.chunks) >= 3


def test_the_checkpoint_is_swapped_while_running(tmp_path):
    path = save_policy(tmp_path / "tiny")
    with ProcessPlanner(path) as planner, running(planner) as (_, _, told):
        before = planner.info.policy
        save_policy(path, seed=1)
        wait_for(lambda: told.began("policy_swapped"), SOON, "the swap is not told")
        wait_for(lambda: planner.info.policy != before, SOON, "the old policy is used")
        recovered(told)
        is_over(told, "policy_swapped")
        pid, swapped = planner.pid, planner.info.policy

        save_policy(path, axes=5)  # of another robot
        wait_for(lambda: told.began("policy_refused"), SOON, "the refusal is not told")
        assert "action_dim" in told.began("policy_refused")[0].message
        recovered(told)
        weights = path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])  # cut off while it was copied
        recovered(told)
        assert planner.info.policy == swapped

        save_policy(path, seed=2)
        wait_for(lambda: planner.info.policy not in (before, swapped), SOON, "the good one is not used")
        recovered(told)
        assert planner.pid == pid
