"""The sampler's thread: who waits, who is first, what is taken back, and what happens when the sampler fails."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
from policy_servers import observation, served_policy, until

from diffpolicy_spec.policies.engine import Engine
from diffpolicy_spec.policies.info import policy_info
from diffpolicy_spec.server.engine_thread import EngineThread
from diffpolicy_spec.server.jobs import Job
from diffpolicy_spec.server.observations import RequestError


class Held:
    """An engine whose step waits for us, or fails."""

    def __init__(self, policy) -> None:
        self._engine = Engine(policy, max_chains=4)
        self.go, self.stepping = threading.Event(), threading.Event()
        self.go.set()
        self.fail: Exception | None = None
        self.begun: list[int | None] = []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def submit(self, obs, **more):
        self.begun.append(more["seed"])
        return self._engine.submit(obs, **more)

    def step(self):
        self.stepping.set()
        assert self.go.wait(20)
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        return self._engine.step()


class Running:
    """An engine's thread, and its engines."""

    def __init__(self, **options) -> None:
        self.made: list[Held] = []
        policy = served_policy()

        def make(policy):
            self.made.append(Held(policy))
            return self.made[-1]

        self.thread = EngineThread(
            make, policy, policy_info(policy), **({"max_chains": 1, "max_waiting": 3} | options)
        )
        self.thread.start(60)

    def ask(self, seed: int = 0, **more) -> tuple[Job, Future]:
        future: Future = Future()
        job = Job(more.pop("obs", observation()), future.set_result, seed=seed, **more)
        self.thread.submit(job)
        return job, future

    def hold(self) -> None:
        """The next step waits, with a first job under way."""
        engine = self.made[-1]
        engine.stepping.clear()
        engine.go.clear()
        self.first = self.ask(seed=100)
        assert engine.stepping.wait(10)

    def release(self) -> None:
        self.made[-1].go.set()


@pytest.fixture
def running():
    one = Running()
    yield one
    one.release()
    one.thread.stop()


def test_a_chunk_comes_back_with_how_long_it_took(running):
    _, future = running.ask(seed=1)
    outcome = future.result(10)
    assert outcome.error is None
    assert outcome.finished.action_pred.shape == (16, 10)
    assert outcome.queue_ms >= 0
    assert outcome.sampling_ms > 0
    assert outcome.policy == running.thread.info.policy


def test_more_than_may_wait_are_refused(running):
    running.hold()
    for seed in range(3):
        running.ask(seed)
    assert (running.thread.waiting, running.thread.under_way) == (3, 1)
    with pytest.raises(RequestError, match="3 requests wait already") as refused:
        running.ask()
    assert refused.value.kind == "queue_full"


def test_who_has_to_be_first_is_first(running):
    running.hold()
    now = time.monotonic()
    answers = [running.ask(seed, deadline=deadline)[1] for seed, deadline in enumerate((None, now + 90, now + 60))]
    running.release()
    for future in answers:
        assert future.result(10).error is None
    assert running.made[0].begun == [100, 2, 1, 0]


def test_a_client_that_wants_much_at_once_does_not_keep_the_others_waiting():
    running = Running(max_chains=1, max_waiting=10)
    running.hold()
    for seed in range(4):
        running.ask(seed, client="greedy", deadline=0.0)
    jobs = [running.ask(seed, client=client) for seed, client in ((10, "arm"), (11, "leg"))]
    taken = running.thread._taken(4)
    assert [job.seed for job in taken] == [0, 10, 11, 1]
    assert [job for job, _ in jobs] == taken[1:3]
    running.release()
    running.thread.stop()


def test_jobs_are_taken_back_while_they_wait_and_while_they_are_under_way(running):
    running.hold()
    job, future = running.ask(seed=1)
    error = RequestError("cancelled", "nobody wants it")
    assert running.thread.withdraw(job, error, begun=False)
    assert future.result(0).error is error
    assert not running.thread.withdraw(job, error)
    first, first_future = running.first
    assert not running.thread.withdraw(first, error, begun=False)
    assert running.thread.withdraw(first, error)
    assert first_future.result(0).error is error
    running.release()
    until(lambda: running.thread.under_way == 0)
    assert running.ask(seed=2)[1].result(10).error is None
    assert running.made[0].begun == [100, 2]


def test_what_the_policy_cannot_use_is_told_and_nothing_else_suffers(running):
    bad = observation() | {"object": np.full((2, 10), np.nan)}
    errors = [running.ask(obs=obs)[1].result(10).error for obs in (bad, {}, observation() | {"object": np.zeros(3)})]
    assert [error.kind for error in errors] == ["bad_observation"] * 3
    wrong = running.ask(committed=np.zeros((2, 3)))[1].result(10).error
    assert wrong.kind == "bad_request"
    assert running.ask()[1].result(10).error is None


def test_a_sampler_that_fails_loses_what_it_had_and_is_made_anew():
    running, failed = Running(max_chains=2), threading.Event()
    running.thread.on_failure = failed.set
    running.hold()
    running.made[0].fail = RuntimeError("the device is gone")
    running.release()
    error = running.first[1].result(10).error
    assert error.kind == "internal"
    assert "the device is gone" in str(error)
    assert failed.wait(10)
    assert running.ask()[1].result(10).error is None
    assert len(running.made) == 2
    assert running.thread.failures == 0
    running.thread.stop()


def test_a_network_that_always_fails_is_told_and_one_observation_that_breaks_it_is_not(running):
    """A device that is gone raises in the network's call, which costs the engine nothing but its chunks."""
    networks = running.made[0]._lanes[0].pool.chains.networks
    honest, failed = networks.denoise, []
    running.thread.on_failure = lambda: failed.append(1)

    def gone(x, t, chain):
        raise RuntimeError("the device is gone")

    for denoise, failures in ((gone, 3), (lambda x, t, chain: honest(x, t, chain) * np.nan, 3), (honest, 0)):
        networks.denoise = denoise
        for _ in range(3):
            assert (running.ask()[1].result(10).error is None) == (denoise is honest)
        until(lambda failures=failures: running.thread.failures == failures)
    assert len(failed) == 3


def test_a_chunk_that_is_not_finite_is_never_given(running):
    engine = running.made[0]
    step = engine._engine.step

    def spoilt():
        done = step()
        for one in done:
            one.action_pred[3, 2] = np.nan
        return done

    engine._engine.step = spoilt
    assert "not finite" in str(running.ask()[1].result(10).error)


def test_another_policy_begins_with_the_next_job_and_those_under_way_end_with_theirs(running):
    running.hold()
    _, waiting = running.ask(seed=5)
    policy = served_policy(3)
    done = running.thread.swap(policy, policy_info(policy))
    running.release()
    done.result(10)
    before, after = running.first[1].result(10).policy, waiting.result(10).policy
    assert before == policy_info(served_policy()).policy
    assert after == policy_info(policy).policy
    other = served_policy(horizon=8, n_action_steps=4)
    with pytest.raises(ValueError, match="start another server"):
        running.thread.swap(other, policy_info(other)).result(10)
    assert running.ask()[1].result(10).policy == after


def test_jobs_that_are_left_at_the_end_are_told(running):
    running.hold()
    _, waiting = running.ask()
    threading.Timer(0.2, running.release).start()
    running.thread.stop()
    assert {future.result(10).error.kind for future in (waiting,)} == {"draining"}
    with pytest.raises(RequestError, match="going down"):
        running.ask()


def test_a_policy_for_a_thread_that_has_ended_is_refused(running):
    running.thread.stop()
    with pytest.raises(RuntimeError, match="has ended"):
        running.thread.swap(served_policy(1), running.thread.info).result(10)


def test_what_goes_wrong_at_the_start_is_raised_there():
    policy = served_policy()

    def make(policy):
        raise ValueError("no such sampler")

    thread = EngineThread(make, policy, policy_info(policy), max_chains=1, max_waiting=1)
    with pytest.raises(ValueError, match="no such sampler"):
        thread.start(10)


def test_it_says_for_how_long_nothing_has_moved(running):
    assert running.thread.stalled_s() == 0
    running.hold()
    until(lambda: running.thread.stalled_s() > 0.05)
