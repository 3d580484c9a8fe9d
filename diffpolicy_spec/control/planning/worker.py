"""The process that makes chunks for a `ProcessPlanner`: what runs in it, and how it is started.

What is said between the two, pickled (`framing`): first the planner, the function that makes the `Maker`; then the
worker, ("ready", PolicyInfo) or ("broken", why). From then on the planner, PlanRequests, one at a time; the worker,
("plan", Plan), ("failed", id, why), ("told", Failure, PolicyInfo).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from diffpolicy_spec.control.planning.framing import receive, send
from diffpolicy_spec.control.planning.maker import Maker, message_of

__all__ = ["load_maker", "main", "start_worker"]

_IDLE_S = 0.1  # between two looks at what else has happened
_PR_SET_PDEATHSIG = 1

# No module of the user's program is imported, so programs need no `if __name__ == "__main__"`.
_CODE = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); fd, nice, sys.path[:] = "
    "int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]; "
    "from diffpolicy_spec.control.planning.worker import main; main(fd, nice)"
)


def start_worker(num_threads: int, nice: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A worker and the socket to it. The worker ends when the socket is closed, or with the thread that started it.

    Args:
        num_threads: of its computations on a CPU.
        nice: how much it steps back where there is too much to do, 0 to 19.

    Raises:
        OSError: there is no room for another process.
    """
    ours, theirs = socket.socketpair()
    threads = {name: str(num_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _CODE, str(theirs.fileno()), str(nice), *sys.path],
            stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env=os.environ | threads,
            process_group=0,  # Ctrl-C in a terminal is for the robot's program, which decides
        )  # fmt: skip
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, ours


def load_maker(num_threads: int, **settings: Any) -> Maker:
    """`policies.maker.open_policy`, in the worker: this is where torch is imported."""
    import torch

    from diffpolicy_spec.policies.maker import open_policy

    torch.set_num_threads(num_threads)
    return open_policy(**settings)


def main(fd: int, nice: int) -> None:
    """Make chunks until the planner is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "sched_setscheduler"):  # a loop that is scheduled before all others hands that down
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    _end_with_parent()
    planner = socket.socket(fileno=fd)
    threading.Thread(target=_end_with_planner, args=(fd,), daemon=True).start()
    os.nice(nice)
    try:
        make: Callable[[], Maker] = receive(planner)
        try:
            maker = make()
        except Exception as error:
            send(planner, ("broken", message_of(error)))
            return
        send(planner, ("ready", maker.info))
        _serve(planner, maker)
    except (EOFError, OSError):
        return  # the planner is gone


def _serve(planner: socket.socket, maker: Maker) -> None:
    ear = select.poll()
    ear.register(planner, select.POLLIN)
    while True:
        if ear.poll(1e3 * _IDLE_S):
            request = receive(planner)
            try:
                answer: Sequence[Any] = ("plan", maker.make(request))
            except Exception as error:
                answer = ("failed", request.id, message_of(error))
            send(planner, answer)
        for failure in maker.poll():
            send(planner, ("told", failure, maker.info))


def _end_with_planner(fd: int) -> None:
    """The planner has closed its end, or its process is gone: end, whatever is being computed."""
    poll = select.poll()
    poll.register(fd, 0)  # being hung up is always told
    poll.poll()
    os._exit(0)


def _end_with_parent() -> None:
    """End if the parent does, even where another process has inherited its end of the socket. Linux only."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
