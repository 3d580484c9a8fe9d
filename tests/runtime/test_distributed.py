"""Rows shared out over processes, by gloo on 127.0.0.1: the same numbers as in one; failures name their rank."""

import os
import socket
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from diffpolicy_spec import Schedule, draw_noise, sample_speculative
from diffpolicy_spec.runtime.distributed import DistributedDenoise, WorkerError, pack, serve, unpack
from diffpolicy_spec.runtime.peers import join_peers
from diffpolicy_spec.runtime.split import Split

CHUNK, C = (8, 3), 5
SCHEDULE = Schedule.from_diffusers({"num_train_timesteps": 30, "beta_schedule": "squaredcos_cap_v2"})


class Net(nn.Module):
    """Rows (T, Da) with a condition; other weights for every seed. `fault` is done by the third call with rows."""

    def __init__(self, seed=0, width=24, fault=None):
        super().__init__()
        torch.manual_seed(seed)
        self.read, self.mix = nn.Linear(C, 2 * C), nn.Linear(2 * C + 24, width)
        self.fault, self.calls = fault, 0

    def features(self, condition):
        return self.read(condition)

    def forward(self, x, t, features):
        self.calls += 1
        if self.fault == "raise" and self.calls == 3:
            raise ArithmeticError("the third call")
        if self.fault == "die" and self.calls == 3:
            os._exit(3)
        if self.fault == "hang" and self.calls == 3:
            time.sleep(60)
        return torch.tanh(self.mix(torch.cat([x.flatten(1), features * t[:, None] / 100], dim=1))).view_as(x)


def rows(n):
    source = torch.Generator().manual_seed(n)
    x = torch.randn(n, *CHUNK, generator=source)
    return x, torch.randint(30, (n,), generator=source), torch.randint(3, (n,), generator=source)


def _process(rank, size, port, work, fault, width, seconds, results):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    peers = join_peers("cpu", rank=rank, size=size, address=f"tcp://127.0.0.1:{port}", seconds=seconds)
    net = Net(seed=rank, fault=fault if rank == size - 1 else None, width=width if rank == size - 1 else 24)
    if rank == 0:
        try:
            with DistributedDenoise(peers, net, net, split=Split(from_rows=1)) as denoise:
                results.put(work(denoise, net))
        except WorkerError as error:
            results.put(str(error))
    else:
        try:
            serve(peers, net, net)
        except (ArithmeticError, ValueError, WorkerError):
            return
    dist.destroy_process_group()


def run(work, size=2, *, fault=None, width=24, seconds=20.0):
    """What `work(denoise, net)` returns on rank 0, or the WorkerError's text. The last rank has the fault."""
    context = mp.get_context("forkserver")  # torch is imported once, and never forked while it runs
    context.set_forkserver_preload(["diffpolicy_spec.runtime.distributed", "pytest"])
    results = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        context.Process(target=_process, args=(r, size, port, work, fault, width, seconds, results), daemon=True)
        for r in range(size)
    ]
    for process in processes:
        process.start()
    try:
        result = results.get(timeout=60)
        for process in processes:
            process.join(0.1 if fault == "hang" else 30)
        return result, [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def _compare(denoise, net):
    """Everything that must be as in one process; run in one go, since processes are slow to start."""
    denoise.load(torch.randn(3, C))
    for n in (1, 2, 3, 17):  # fewer rows than ranks, too
        torch.testing.assert_close(denoise(*rows(n)), denoise.alone(*rows(n)), rtol=1e-5, atol=1e-6)
    before = denoise(*rows(6))
    denoise.load(torch.randn(3, C))
    second = denoise(*rows(6))
    assert (second - before).flatten(1).abs().amax(1).min() > 1e-4
    net.load_state_dict(Net(seed=7).state_dict())
    denoise.load(torch.randn(3, C))
    third = denoise(*rows(6))
    torch.testing.assert_close(third, denoise.alone(*rows(6)), rtol=1e-5, atol=1e-6)
    net.fault, net.calls = "raise", 2
    with pytest.raises(
        ArithmeticError
    ):  # rank 0's own part: the workers' answers must not be taken for the next call's
        denoise(*rows(7))
    torch.testing.assert_close(denoise(*rows(6)), third, rtol=1e-5, atol=1e-6)
    noise = draw_noise((3, *CHUNK), SCHEDULE, torch.Generator().manual_seed(1))
    ours, theirs = (
        sample_speculative(d, SCHEDULE, noise, generator=torch.Generator().manual_seed(2))
        for d in (denoise, denoise.alone)
    )
    torch.testing.assert_close(ours.x0, theirs.x0, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.stats.calls, theirs.stats.calls)
    return net.calls


@pytest.mark.parametrize("size", [2, 3])
def test_values_are_those_of_one_process(size):
    calls, codes = run(_compare, size)
    assert codes == [0] * size
    assert calls > 0


def _calls_until_it_fails(denoise, net):
    denoise.load(torch.randn(3, C))
    made = 0
    try:
        for _ in range(10):
            denoise(*rows(6))
            made += 1
    except WorkerError as error:
        try:
            denoise(*rows(6))
        except WorkerError as again:
            return made, str(error), str(again)
    return made, "", ""


def test_a_worker_that_raises():
    (made, error, again), codes = run(_calls_until_it_fails, 3, fault="raise")
    assert made == 2
    assert error == again == "rank 2 failed: ArithmeticError: the third call"
    assert codes == [0, 0, 0]  # the others were told to stop


def test_a_worker_that_dies():
    (made, error, again), codes = run(_calls_until_it_fails, 3, fault="die")
    assert made == 2
    assert error.startswith("rank 2 is gone")
    assert again == error
    assert codes == [0, 0, 3]


def test_a_worker_that_hangs():
    begin = time.monotonic()
    (made, error, _), _ = run(_calls_until_it_fails, 2, fault="hang", seconds=3.0)
    assert time.monotonic() - begin < 30
    assert made == 2
    assert error.startswith("rank 1 is gone, or has not answered in 3 s")


def _return(denoise, net):
    return "made"


def test_a_module_of_another_configuration():
    error, codes = run(_return, 3, width=25)
    assert error == "rank 2 failed: ValueError: the module has other names, dtypes or shapes than rank 0's"
    assert codes == [0, 0, 0]


def _rank_0_vanishes(denoise, net):
    denoise._workers = []  # close() tells nobody
    return "gone"


def test_rank_0_vanishes():
    said, codes = run(_rank_0_vanishes, 3)
    assert said == "gone"
    assert codes == [0, 0, 0]  # workers raised WorkerError rather than wait


def test_messages():
    x, t, chain = rows(9)
    for a, b in zip(unpack(pack(x, t, chain), CHUNK), (x, t, chain), strict=True):
        assert torch.equal(a, b)
