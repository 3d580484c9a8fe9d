"""Planners with policies: real checkpoints in real processes, replaced while they are used."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from tiny_policy import obs_for, tiny_policy

from diffpolicy_spec.control import Failure, Plan, PlanRequest, PolicyInfo
from diffpolicy_spec.control.planning import InlinePlanner, ProcessPlanner
from diffpolicy_spec.control.planning.desk import Desk

DDIM = {"method": "ddim", "num_inference_steps": 6}
INFO = PolicyInfo({"x": 3}, {}, 2, 8, 16, 4, 1)


def request(number: int, config=None, **options) -> PlanRequest:
    config = config or tiny_policy().config
    obs = {key: value[0] for key, value in obs_for(config, 1).items()}
    return PlanRequest(number, obs, time.monotonic(), **options)


def answers(planner, count: int = 1, seconds: float = 60.0) -> list:
    end, found = time.monotonic() + seconds, []
    while len(found) < count:
        assert time.monotonic() < end, f"only {found}"
        found.extend(planner.poll())
        time.sleep(0.002)
    return found


def ready(planner, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not planner.ready:
        assert time.monotonic() < end, planner.poll()
        time.sleep(0.002)


@pytest.fixture
def path(tmp_path):
    tiny_policy(0).save(tmp_path / "policy")
    return tmp_path / "policy"


def test_a_checkpoint_replaced_while_it_is_used(path):
    """By a better one, by one with other shapes, by half a file: chunks come all the while."""
    with ProcessPlanner(path, sampler=DDIM, warm_up=1) as planner:
        ready(planner)
        first, pid, number = planner.info.policy, planner.pid, 0

        def chunks_until_told() -> Failure:
            nonlocal number
            end = time.monotonic() + 30
            while time.monotonic() < end:
                planner.submit(request(number))
                found = answers(planner)
                told = [answer for answer in found if isinstance(answer, Failure)]
                if len(found) == len(told):
                    found += answers(planner)
                (plan,) = [answer for answer in found if isinstance(answer, Plan)]
                assert plan.id == number
                number += 1
                if told:
                    return told[0]
            pytest.fail("nothing was told")

        tiny_policy(1).save(path)
        swapped = chunks_until_told()
        assert (swapped.kind, swapped.id) == ("policy_swapped", None)
        assert f"{first} -> {planner.info.policy}" in swapped.message
        planner.submit(request(number))
        assert answers(planner)[0].policy == planner.info.policy != first
        number += 1

        tiny_policy(2, action_dim=20).save(path)
        refused = chunks_until_told()
        assert refused.kind == "policy_refused"
        assert "action_dim: 20 instead of 10" in refused.message

        tiny_policy(3).save(path)
        assert chunks_until_told().kind == "policy_swapped"
        third = planner.info.policy
        model = path / "model.safetensors"
        model.write_bytes(model.read_bytes()[:1000])
        refused = chunks_until_told()
        assert refused.kind == "policy_refused"
        assert "model.safetensors" in refused.message
        assert planner.info.policy == third
        assert planner.pid == pid


def test_a_policy_that_raises_is_told(path):
    with ProcessPlanner(path, sampler=DDIM, warm_up=0) as planner:
        ready(planner)
        bad = request(0)
        planner.submit(PlanRequest(0, {**bad.obs, "object": np.full((2, 10), np.nan)}, 0.0))
        (failed,) = answers(planner)
        assert (failed.kind, failed.id) == ("worker_failed", 0)
        assert "observation 'object' holds NaN" in failed.message
        planner.submit(request(1))
        assert [type(answer) for answer in answers(planner, 2)] == [Failure, Plan]


def test_a_checkpoint_that_is_not_there_is_told_and_taken_when_it_comes(tmp_path):
    with ProcessPlanner(tmp_path / "policy", sampler=DDIM, warm_up=1) as planner:
        (failed,) = answers(planner)
        assert failed.kind == "worker_failed"
        assert "neither an existing path nor a shipped policy" in failed.message
        tiny_policy(0).save(tmp_path / "policy")
        ready(planner)
        assert planner.info.horizon == 16


def test_the_shipped_policy():
    """Exact chunks, chunks with a deadline, and chunks that continue what is being executed."""
    with ProcessPlanner("lift", committed=True) as planner:
        assert planner.info is None
        ready(planner)
        info = planner.info
        assert (info.horizon, info.action_dim, info.first) == (16, 10, 1)
        assert info.policy.startswith("lift ")
        rng = np.random.default_rng(0)
        obs = {key: np.tile(rng.normal(scale=0.05, size=d), (2, 1)) for key, d in info.obs_dims.items()}
        asked = PlanRequest(0, obs, time.monotonic(), seed=1)
        plans = []
        for number, options in enumerate(({}, {}, {"deadline": math.inf}, {"deadline": time.monotonic()})):
            planner.submit(PlanRequest(number, obs, time.monotonic(), seed=1, **options))
            plans += answers(planner)
        exact, again, in_time, late = plans
        assert exact.actions.shape == (15, 10)
        # Of the same noise, drafted otherwise: the first chunk from nothing, those with its seed as well.
        np.testing.assert_allclose(again.actions, exact.actions, atol=1e-6)
        np.testing.assert_allclose(in_time.actions, exact.actions, atol=1e-6)
        assert [plan.exact for plan in plans] == [True, True, True, False]
        assert late.cost.calls == 4
        assert np.abs(late.actions - exact.actions).max() < 2
        planner.submit(PlanRequest(9, asked.obs, time.monotonic(), committed=exact.actions[4:8]))
        (continued,) = answers(planner)
        np.testing.assert_allclose(continued.actions[:4], exact.actions[4:8], atol=1e-4)


def test_the_loops_process_needs_no_torch(path):
    code = f"""
import sys, time
import numpy as np
from diffpolicy_spec.control import PlanRequest
from diffpolicy_spec.control.planning import InlinePlanner, ProcessPlanner
with ProcessPlanner({str(path)!r}, sampler={DDIM!r}, warm_up=1) as planner:
    while not planner.ready:
        time.sleep(0.01)
    obs = {{key: np.zeros((2, d)) for key, d in planner.info.obs_dims.items()}}
    planner.submit(PlanRequest(0, obs, time.monotonic()))
    while not (found := planner.poll()):
        time.sleep(0.001)
    print(found[0].actions.shape, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split("\n")[0] == "(15, 10) False"


def test_inline_planners_take_policies():
    policy = tiny_policy()
    with InlinePlanner(policy, sampler=policy.bind(), warm_up=1) as planner:
        ready(planner)
        assert planner.info.horizon == 16
        planner.submit(request(0, policy.config, seed=1))
        (plan,) = answers(planner)
        assert plan.exact
        planner.submit(request(1, policy.config, deadline=time.monotonic(), finish_steps=2))
        (late,) = answers(planner)
        assert (late.exact, late.cost.calls) == (False, 2)


def test_inline_planners_take_watched_policies(path):
    from diffpolicy_spec import SamplerConfig
    from diffpolicy_spec.policies.reload import WatchedPolicy

    watched = WatchedPolicy(path, sampler=SamplerConfig("ddim", 6), settle=0.0)
    with InlinePlanner(watched) as planner:
        ready(planner)
        tiny_policy(1).save(path)
        (told,) = answers(planner)
        assert told.kind == "policy_swapped"
        assert planner.info == watched.info


ENDS_WHILE_A_CHUNK_IS_MADE = """
import threading, time, torch
from diffpolicy_spec.control import Plan, PlanRequest, PolicyInfo
from diffpolicy_spec.control.planning import InlinePlanner

busy = threading.Event()

def make(request):
    busy.set()
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        torch.randn(300, 300) @ torch.randn(300, 300)

planner = InlinePlanner(make, info=PolicyInfo({"x": 3}, {}, 2, 8, 16, 4, 1))
planner.start()
while not planner.ready:
    time.sleep(0.01)
planner.submit(PlanRequest(1, {}, 0.0))
busy.wait()
"""


def test_a_program_may_end_while_a_chunk_is_made_inline():
    """torch aborts a process that ends under one of its threads."""
    ended = subprocess.run([sys.executable, "-c", ENDS_WHILE_A_CHUNK_IS_MADE], capture_output=True, timeout=60)
    assert ended.returncode == 0, ended.stderr.decode()


def test_inline_planners_take_functions():
    def make(asked: PlanRequest) -> Plan:
        if asked.id == 1:
            raise RuntimeError("no idea")
        return Plan(asked.id, np.zeros((15, 4)))

    with InlinePlanner(make, info=INFO) as planner:
        ready(planner)
        assert planner.info is INFO
        for number in range(3):
            planner.submit(PlanRequest(number, {}, 0.0))
            found = answers(planner, 2 if number == 2 else 1)
        assert [type(answer) for answer in found] == [Failure, Plan]
        assert found[0].recovered
    assert not planner.ready
    with pytest.raises(ValueError, match="info"):
        InlinePlanner(make)


def test_an_inline_planner_whose_policy_is_broken_says_so():
    import torch

    policy = tiny_policy()
    with torch.no_grad():
        next(policy.network.parameters()).fill_(torch.nan)
    with InlinePlanner(policy) as planner:
        (failed,) = answers(planner)
        assert failed.kind == "worker_failed"
        assert "NaN" in failed.message
        planner.submit(PlanRequest(0, {}, 0.0))
        assert answers(planner)[0].id == 0
        assert not planner.ready


def test_every_request_is_answered_once():
    """Requests from one thread, answers from another, the door opened and shut in between."""
    desk = Desk()
    desk.unlock()
    found: list = []

    def work() -> None:
        while not desk.ended:
            taken = desk.take(0.01)
            if taken is not None:
                desk.answer(Plan(taken.id + (taken.id % 7 == 0), np.zeros((1, 1))))  # of another one: dropped
                desk.answer(Plan(taken.id, np.zeros((1, 1))))

    thread = threading.Thread(target=work)
    thread.start()
    for number in range(2000):
        desk.submit(PlanRequest(number, {}, 0.0))
        if number % 50 == 0:
            desk.lock("worker_died", "gone")
        if number % 50 == 10:
            desk.unlock()
        if number % 3 == 0:
            found += desk.poll()
    while desk.under_way or desk._waiting:
        time.sleep(0.001)
    desk.end()
    thread.join(5)
    found += desk.poll()
    assert sorted(answer.id for answer in found) == list(range(2000))
    kinds = {answer.kind for answer in found if isinstance(answer, Failure)}
    assert kinds <= {"worker_died", "late_inference"}
