"""What workers of the tests make chunks with: functions that a worker can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from diffpolicy_spec.control import Failure, Plan, PlanCost, PlanRequest, PolicyInfo
from diffpolicy_spec.control.planning.maker import FunctionMaker

INFO = PolicyInfo({"x": 3}, {}, 2, 8, 16, 4, 1, policy="made up")


def chunk(request: PlanRequest) -> Plan:
    """Actions that tell what was asked: the mean of the newest observation."""
    return Plan(request.id, np.full((15, 4), float(np.mean(request.obs["x"][-1]))), cost=PlanCost(calls=os.getpid()))


def plain():
    return FunctionMaker(chunk, INFO)


def with_images():
    """Sums of what it sees, so that nothing can get lost on the way."""

    def make(request):
        seen = [float(np.asarray(value, np.float64).sum()) for value in request.obs.values()]
        return Plan(request.id, np.array([seen]))

    return FunctionMaker(make, INFO)


def obedient():
    """Does what the observation says: 1 waits 0.3 s, 2 hangs, 3 raises, 4 dies, 5 is killed."""

    def make(request):
        order = int(request.obs["x"][-1, 0])
        if order == 1:
            time.sleep(0.3)
        if order == 2:
            time.sleep(3600)
        if order == 3:
            raise ValueError("the policy\nhas no idea")
        if order == 4:
            os._exit(3)
        if order == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return chunk(request)

    return FunctionMaker(make, INFO)


def broken():
    raise ValueError("there is no policy here")


def broken_once(mark: str):
    """Fails the first time it is called, in whatever process."""
    if not Path(mark).exists():
        Path(mark).touch()
        raise ValueError("not yet")
    return plain()


def broken_while(mark: str):
    """Obedient, but not while there is a file `mark`; it removes it."""
    if Path(mark).exists():
        Path(mark).unlink()
        raise ValueError("not now")
    return obedient()


def slow_start():
    time.sleep(3600)


class Teller(FunctionMaker):
    """Has something to tell that is not a chunk."""

    def __init__(self) -> None:
        super().__init__(chunk, INFO)
        self._told = False

    def poll(self):
        if self._told:
            return ()
        self._told = True
        self.info = PolicyInfo({"x": 3}, {}, 2, 8, 16, 4, 1, policy="another")
        return (Failure("policy_swapped", "made up -> another"),)


def threads():
    """Chunks that tell how the worker runs: priority, torch's threads, whether Ctrl-C is ignored."""
    import torch

    def make(request):
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        told = [os.nice(0), int(os.environ["OMP_NUM_THREADS"]), float(ignored), os.getpgid(0) == os.getpid()]
        return Plan(request.id, np.array([told], float), cost=PlanCost(calls=torch.get_num_threads()))

    return FunctionMaker(make, INFO)
