"""ProcessPlanner with real processes: killed, hung, failing, slow, orphaned."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import planning_makers as makers
import pytest

from diffpolicy_spec.control import Failure, Plan, PlanRequest
from diffpolicy_spec.control.planning import ProcessPlanner


def request(number: int, order: float = 0.0, **options) -> PlanRequest:
    obs = {"x": np.full((2, 3), order)}
    return PlanRequest(number, options.pop("obs", obs), time.monotonic(), **options)


def until(what, seconds: float = 60.0):
    """What `what` returns as soon as that is something."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)
    return found


def ready(planner: ProcessPlanner) -> None:
    until(lambda: planner.ready)


def answers(planner: ProcessPlanner, count: int, seconds: float = 60.0) -> list:
    found: list = []
    until(lambda: found.extend(planner.poll()) or len(found) >= count, seconds)
    return found


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
def make():
    made = []

    def planner(maker, **options) -> ProcessPlanner:
        made.append(ProcessPlanner(make=maker, **options))
        made[-1].start()
        ready(made[-1])
        return made[-1]

    yield planner
    for one in made:
        one.close()


def test_chunks_come_from_another_process(make):
    planner = make(makers.plain)
    planner.start()  # once more changes nothing
    assert planner.info == makers.INFO
    for number in range(20):
        planner.submit(request(number, number))
        (plan,) = answers(planner, 1)
        assert isinstance(plan, Plan)
        assert plan.id == number
        assert (plan.actions == number).all()
        assert plan.cost.calls == planner.pid != os.getpid()
    assert planner.poll() == ()


def test_images_arrive_whole(make):
    planner = make(makers.with_images)
    rng = np.random.default_rng(0)
    obs = {
        "x": rng.normal(size=(2, 3)),
        "uint8": rng.integers(0, 256, size=(2, 3, 480, 640), dtype=np.uint8),
        "float": rng.random((2, 3, 84, 84), dtype=np.float32),
        "strided": rng.random((2, 84, 84, 3), dtype=np.float32).transpose(0, 3, 1, 2),
        "empty": np.zeros((2, 0)),
    }
    for number in range(3):
        planner.submit(request(number, obs=obs))
        (plan,) = answers(planner, 1)
        np.testing.assert_allclose(plan.actions[0], [np.asarray(v, np.float64).sum() for v in obs.values()])


def test_submit_and_poll_never_wait(make):
    """Nor while the worker is busy or stopped, whatever is handed over."""
    planner = make(makers.obedient)
    images = {"x": np.ones((2, 3)), "image": np.zeros((2, 3, 1000, 1000), np.uint8)}
    os.kill(planner.pid, signal.SIGSTOP)
    took = []
    for number in range(50):
        begin = time.perf_counter()
        planner.submit(request(number, obs=images))
        planner.poll()
        took.append(time.perf_counter() - begin)
    os.kill(planner.pid, signal.SIGCONT)
    assert sorted(took)[45] < 0.01
    until(lambda: any(isinstance(a, Plan) and a.id == 49 for a in planner.poll()))


def test_the_newest_request_wins(make):
    planner = make(makers.obedient)
    for number in range(5):
        planner.submit(request(number, 1.0))
        if number == 0:
            until(lambda: planner._desk.under_way)
    found = answers(planner, 5)
    assert sorted(a.id for a in found) == list(range(5))
    assert [a.id for a in found if isinstance(a, Plan)] == [0, 4]
    late = [a for a in found if isinstance(a, Failure)]
    assert {a.kind for a in late} == {"late_inference"}
    assert "overtaken by request 2" in late[0].message


@pytest.mark.parametrize(("order", "told"), [(4, "ended by itself with code 3"), (5, "was killed by SIGKILL")])
def test_a_worker_that_dies_is_started_anew(make, order: int, told: str):
    planner = make(makers.obedient)
    before = planner.pid
    planner.submit(request(0, order))
    (lost,) = answers(planner, 1)
    assert lost.kind == "worker_died"
    assert lost.id == 0
    assert told in lost.message
    assert "another one is started in 0.2 s" in lost.message
    assert not planner.ready
    planner.submit(request(1))
    (refused,) = answers(planner, 1)
    assert (refused.kind, refused.id, refused.recovered) == ("worker_died", 1, False)
    (back,) = answers(planner, 1)
    assert (back.kind, back.id, back.recovered) == ("worker_died", None, True)
    assert planner.ready
    assert planner.pid != before
    assert gone(before)
    planner.submit(request(2, 7))
    (plan,) = answers(planner, 1)
    assert (plan.actions == 7).all()


def test_killed_from_outside_with_requests_in_flight(make):
    planner = make(makers.obedient)
    planner.submit(request(0, 1.0))
    until(lambda: planner._desk.under_way)
    planner.submit(request(1, 1.0))
    os.kill(planner.pid, signal.SIGKILL)
    lost = answers(planner, 2)
    assert {a.id for a in lost} == {0, 1}
    assert {a.kind for a in lost} == {"worker_died"}
    assert answers(planner, 1)[0].recovered


def test_an_idle_worker_that_is_killed_is_told(make):
    planner = make(makers.plain)
    os.kill(planner.pid, signal.SIGKILL)
    lost, back = answers(planner, 2)
    assert (lost.kind, lost.id, lost.recovered) == ("worker_died", None, False)
    assert back.recovered


def test_the_pause_between_workers_grows_and_is_forgotten(make):
    planner = make(makers.obedient)
    pauses = []
    for number in range(3):
        planner.submit(request(number, 5))
        (lost,) = [a for a in answers(planner, 1) if a.id is not None]
        pauses.append(lost.message.rpartition("started in ")[2])
        ready(planner)
        planner.poll()
    assert pauses == ["0.2 s", "0.4 s", "0.8 s"]
    planner.submit(request(10))
    answers(planner, 1)
    planner.submit(request(11, 5))
    assert "0.2 s" in answers(planner, 1)[0].message


def test_a_worker_that_raises_lives_on(make):
    planner = make(makers.obedient)
    pid = planner.pid
    for number in range(2):
        planner.submit(request(number, 3))
        (failed,) = answers(planner, 1)
        assert (failed.kind, failed.id) == ("worker_failed", number)
        assert "ValueError: the policy has no idea" in failed.message
    planner.submit(request(2))
    over, plan = answers(planner, 2)
    assert (over.kind, over.recovered) == ("worker_failed", True)
    assert isinstance(plan, Plan)
    assert planner.pid == pid


@pytest.mark.parametrize("how", ["computes for ever", "is stopped"])
def test_a_worker_that_hangs_is_killed_and_started_anew(make, how: str):
    planner = make(makers.obedient, hang_s=0.5)
    pid = planner.pid
    if how == "is stopped":
        os.kill(pid, signal.SIGSTOP)
    planner.submit(request(0, 2 if how == "computes for ever" else 0))
    begin = time.monotonic()
    (lost,) = answers(planner, 1)
    assert 0.4 < time.monotonic() - begin < 5
    assert (lost.kind, lost.id) == ("worker_died", 0)
    assert "no answer" in lost.message
    assert answers(planner, 1)[0].recovered
    assert gone(pid)
    planner.submit(request(1))
    assert isinstance(answers(planner, 1)[0], Plan)


def test_a_worker_that_cannot_begin_is_tried_again(tmp_path):
    with ProcessPlanner(make=partial(makers.broken_once, str(tmp_path / "mark"))) as planner:
        planner.submit(request(0))
        loading, failed, back = answers(planner, 3)
        assert (loading.kind, loading.id) == ("late_inference", 0)
        assert "still being loaded" in loading.message
        assert (failed.kind, failed.id, failed.recovered) == ("worker_failed", None, False)
        assert "ValueError: not yet" in failed.message
        assert (back.kind, back.recovered) == ("worker_failed", True)
        assert planner.ready
        assert planner.info == makers.INFO


def test_all_that_was_told_is_told_to_be_over(make, tmp_path):
    planner = make(partial(makers.broken_while, str(tmp_path / "mark")))
    (tmp_path / "mark").touch()
    planner.submit(request(0, 5))
    died, failed, *over = answers(planner, 4)
    assert (died.kind, died.id) == ("worker_died", 0)
    assert (failed.kind, failed.id) == ("worker_failed", None)
    assert "not now" in failed.message
    assert [(f.kind, f.recovered) for f in over] == [("worker_died", True), ("worker_failed", True)]


def test_a_worker_that_does_not_get_ready_is_killed():
    with ProcessPlanner(make=makers.slow_start, start_s=0.5) as planner:
        pid = until(lambda: planner.pid)
        (failed,) = answers(planner, 1)
        assert failed.kind == "worker_failed"
        assert "not ready" in failed.message
        assert planner.info is None
        until(lambda: gone(pid))


def test_what_a_maker_tells_is_told(make):
    planner = make(makers.Teller)
    (told,) = answers(planner, 1)
    assert (told.kind, told.id) == ("policy_swapped", None)
    assert planner.info.policy == "another"


def test_how_the_worker_runs(make):
    planner = make(makers.threads, nice=7, num_threads=1)
    planner.submit(request(0))
    (plan,) = answers(planner, 1)
    assert plan.actions[0].tolist() == [os.nice(0) + 7, 1, 1, 1]
    assert plan.cost.calls == 1


def test_how_the_loop_is_scheduled_is_not_handed_down():
    """A planner that a real-time thread starts: its worker must not compete with that thread."""
    planner = ProcessPlanner(make=makers.threads)

    def start() -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        planner.start()
        ready(planner)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(60)
    try:
        assert os.sched_getscheduler(planner.pid) == os.SCHED_OTHER
    finally:
        planner.close()


def test_without_room_for_a_worker_it_is_told_and_tried_again():
    used = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ProcessPlanner(make=makers.plain) as other:
        ready(other)
        planner = ProcessPlanner(make=makers.plain)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        try:
            planner.start()
            (failed,) = answers(planner, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        try:
            assert failed.kind == "worker_failed"
            assert "no worker process can be started" in failed.message
            ready(planner)
        finally:
            planner.close()


def test_close_is_quick_and_leaves_nothing():
    fds = len(os.listdir("/proc/self/fd"))
    planner = ProcessPlanner(make=makers.obedient)
    planner.start()
    ready(planner)
    pid = planner.pid
    planner.submit(request(0, 2))
    until(lambda: planner._desk.under_way)
    begin = time.monotonic()
    planner.close()
    assert time.monotonic() - begin < 2
    assert gone(pid)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)  # no zombie: it has been waited for
    (lost,) = planner.poll()
    assert (lost.kind, lost.id) == ("worker_failed", 0)
    planner.submit(request(1))
    assert [a.id for a in planner.poll()] == [1]
    assert not planner.ready
    assert planner.pid is None
    assert len(os.listdir("/proc/self/fd")) == fds
    assert not any(thread.is_alive() for thread in planner._threads)
    planner.close()
    with pytest.raises(RuntimeError, match="closed"):
        planner.start()


def test_close_while_the_worker_starts():
    for wait in (0.0, 0.3):
        planner = ProcessPlanner(make=makers.slow_start)
        planner.start()
        time.sleep(wait)
        begin = time.monotonic()
        planner.close()
        assert time.monotonic() - begin < 2
        assert planner.pid is None
        assert not any(thread.is_alive() for thread in planner._threads)


_PROGRAM = """
import os, sys, time
sys.path.insert(0, {here!r})
import planning_makers as makers
from diffpolicy_spec.control.planning import ProcessPlanner
planner = ProcessPlanner(make=makers.obedient)
planner.start()
while not planner.ready:
    time.sleep(0.01)
assert "torch" not in sys.modules, "torch was imported in the loop's process"
{then}
print(planner.pid, flush=True)
{after}
"""


def started(then: str = "", after: str = "time.sleep(3600)") -> tuple[subprocess.Popen, int]:
    """A program with a planner, and its worker. The program has no `if __name__ == "__main__"`."""
    code = _PROGRAM.format(here=str(Path(__file__).parent), then=then, after=after)
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell in the background has it ignored
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, preexec_fn=heard)
    line = program.stdout.readline()
    assert line, "the program failed"
    return program, int(line)


@pytest.mark.parametrize("busy", [False, True])
def test_a_worker_ends_with_its_parent(busy: bool):
    submit = """
import numpy as np
from diffpolicy_spec.control import PlanRequest
planner.submit(PlanRequest(0, {"x": np.full((2, 3), 2.0)}, 0.0))
time.sleep(0.2)
"""
    program, worker = started(submit if busy else "")
    assert not gone(worker)
    program.kill()
    program.wait()
    program.stdout.close()
    until(lambda: gone(worker), 10)


def test_a_worker_ends_though_another_process_has_its_socket():
    """A child that was forked keeps the planner's end open."""
    program, worker = started("child = os.fork()\nif child == 0:\n    time.sleep(3600)\nprint(child, flush=True)")
    child, worker = worker, int(program.stdout.readline())
    try:
        program.kill()
        program.wait()
        until(lambda: gone(worker), 10)
        assert not gone(child)
    finally:
        os.kill(child, signal.SIGKILL)
        program.stdout.close()


def test_ctrl_c_is_left_to_the_program():
    """In a terminal it goes to all processes of the program's group."""
    program, worker = started(after="""
try:
    print("waits", flush=True)
    time.sleep(3600)
except KeyboardInterrupt:
    print(planner.pid, planner.ready, flush=True)
    planner.close()
""")  # fmt: skip
    assert program.stdout.readline() == "waits\n"
    os.kill(worker, signal.SIGINT)
    os.kill(program.pid, signal.SIGINT)
    assert program.stdout.readline().split() == [str(worker), "True"]
    assert program.wait(10) == 0
    program.stdout.close()
    until(lambda: gone(worker), 10)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "checkpoint, or make"),
        ({"checkpoint": "lift", "make": makers.plain}, "checkpoint, or make"),
        ({"checkpoint": "lift", "num_threads": 0}, "num_threads"),
        ({"checkpoint": "lift", "nice": -1}, "nice"),
        ({"checkpoint": "lift", "warm_up": 1.5}, "warm_up"),
        ({"checkpoint": "lift", "finish_steps": 0}, "finish_steps"),
        ({"checkpoint": "lift", "hang_s": 0}, "hang_s"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict, told: str):
    with pytest.raises(ValueError, match=told):
        ProcessPlanner(**options)
