"""Worker processes: the same episodes whoever runs them, and what happens when one is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from spread_runs import Listener, all_jobs, alone, prepared

from diffpolicy_spec.envs.config import EnvConfig
from diffpolicy_spec.eval.errors import EpisodeLostError, RunError
from diffpolicy_spec.eval.processes import DeadPeerError, Peer
from diffpolicy_spec.eval.rollout import run_episodes
from diffpolicy_spec.eval.spread import Spread, run_jobs
from diffpolicy_spec.eval.subscribers import Recorder
from diffpolicy_spec.eval.workers import make_environment, run_on_processes
from diffpolicy_spec.eval.worlds import Begun, Executed, LocalWorld, Lost, ProcessWorld, Start
from diffpolicy_spec.samplers import SamplerConfig

SEEDS = (100000, 100001, 100002)
ENV = (EnvConfig("lift", "absolute_rot6d"), False)


@pytest.fixture(scope="module")
def settings(checkpoint, tmp_path_factory):
    with prepared(checkpoint, tmp_path_factory.mktemp("workers") / "out") as settings:
        yield settings


@pytest.fixture(scope="module")
def jobs(settings):
    return all_jobs(settings)


@pytest.fixture(scope="module")
def locally(settings):
    return alone(settings)


@pytest.mark.parametrize("num_workers", [2, 3])
def test_any_number_of_workers_runs_the_same_episodes(settings, jobs, locally, num_workers):
    listener = Listener()
    run_jobs(settings.worker, settings.works, jobs, listener, Spread(num_workers=num_workers))
    assert listener.episodes() == locally
    assert len(set(listener.calls())) == len(listener.calls())
    assert not multiprocessing.active_children()


def test_what_a_killed_worker_was_at_goes_to_another(settings, jobs, locally):
    killed = []

    def kill_one(_):
        if len(killed) < 2:
            victim = multiprocessing.active_children()[0]
            killed.append(victim.pid)
            os.kill(victim.pid, signal.SIGKILL)

    listener = Listener(when_finished=kill_one)
    run_on_processes(settings.works, jobs, listener, 2)
    assert len(killed) == 2
    assert len(listener.done) == len(jobs)
    assert listener.episodes() == locally


def test_an_episode_that_kills_every_worker_is_named(settings, jobs):
    def kill_all(_):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(EpisodeLostError, match=r"3 processes died over the episode with seed 100000, .* SIGKILL"):
        run_on_processes(settings.works, jobs, Listener(when_dealt=kill_all), 1)
    assert not multiprocessing.active_children()


def test_a_checkpoint_that_changes_during_a_run_is_noticed(settings, jobs):
    from dataclasses import replace

    works = {k: replace(w, cell=replace(w.cell, policy_fingerprint="0" * 16)) for k, w in settings.works.items()}
    with pytest.raises(RunError, match=r"has other weights here than when the run was prepared"):
        run_on_processes(works, jobs[:1], Listener(), 1)


def test_environments_in_processes_do_what_those_of_this_process_do(policy, envs):
    sampler = policy.bind(SamplerConfig("speculative"))
    records = []
    for world in (LocalWorld(envs), ProcessWorld(make_environment, *ENV, size=2)):
        recorder = Recorder()
        run_episodes(policy, sampler, world, SEEDS, subscribers=[recorder], max_steps=12)
        records.append(recorder)
        if isinstance(world, ProcessWorld):
            world.close()
    local, apart = ({e.seed: (e.actions_sha, e.steps, e.max_reward) for e in r.episodes} for r in records)
    assert local == apart


def test_an_environment_whose_process_is_killed_is_replaced():
    world = ProcessWorld(make_environment, *ENV, size=2)
    try:
        begun = world.reset({0: Start(7), 1: Start(8)})
        assert all(isinstance(answer, Begun) for answer in begun.values())
        observation = begun[0].observation
        action = np.concatenate([observation["robot0_eef_pos"], [1, 0, 0, 0, -1, 0, -1]])
        os.kill(world.peers[1].process.pid, signal.SIGKILL)
        answers = world.execute({0: np.stack([action] * 3), 1: np.stack([action] * 3)})
        assert isinstance(answers[0], Executed)
        assert len(answers[0].observations) == len(answers[0].rewards) == 3
        assert answers[1] == Lost("was killed by SIGKILL, perhaps for want of memory")
        again = world.reset({1: Start(8)})[1]
        for key, value in begun[1].observation.items():
            np.testing.assert_array_equal(again.observation[key], value)
    finally:
        world.close()
    assert not multiprocessing.active_children()


def make_answer(base):
    def answer(request):
        if request == "fail":
            raise ValueError("what is wrong")
        if request == "unsendable":
            return lambda: None
        if request == "end":
            os._exit(7)
        return base + request

    return answer


def test_what_goes_wrong_in_a_process_is_told_here():
    peer = Peer(make_answer, 10, name="test")
    try:
        for request, answer in ((1, 11), (2, 12)):
            peer.ask(request)
            assert peer.answer() == answer
        peer.ask("fail")
        with pytest.raises(ValueError, match="what is wrong") as caught:
            peer.answer()
        assert "in answer" in str(caught.value.__cause__)  # the traceback from there
        peer.ask("unsendable")
        with pytest.raises(RuntimeError, match="while sending"):
            peer.answer()
        peer.ask("end")
        with pytest.raises(DeadPeerError, match="ended with code 7"):
            peer.answer()
        peer.ask(1)  # a dead one shows when it is asked for the answer
        with pytest.raises(DeadPeerError):
            peer.answer()
    finally:
        peer.kill()
        peer.kill()


def test_a_killed_process_is_gone_at_once():
    peer = Peer(make_answer, 1, name="test")
    started = time.monotonic()
    peer.kill()
    assert time.monotonic() - started < 5
    assert peer.process.exitcode == -signal.SIGKILL
