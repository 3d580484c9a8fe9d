"""Rows shared out over devices of one process: the same numbers as on one. On CUDA where there is."""

import pytest
import torch
from torch import nn

from diffpolicy_spec import Schedule, draw_noise, sample_speculative
from diffpolicy_spec.runtime.replicas import Replicas, replicate
from diffpolicy_spec.runtime.split import Split, SplitTimes, measure_split

CHUNK, C = (8, 3), 5


class Net(nn.Module):
    """Rows (T, Da) with a condition; features are twice as wide as the condition."""

    def __init__(self):
        super().__init__()
        self.read, self.mix = nn.Linear(C, 2 * C), nn.Linear(2 * C + 24, 24)
        self.sizes = []

    def features(self, condition):
        return self.read(condition)

    def forward(self, x, t, features):
        self.sizes.append(len(x))
        rows = torch.cat([x.flatten(1), features * t[:, None] / 100], dim=1)
        return torch.tanh(self.mix(rows)).view_as(x)


def rows(n, chains=3, device="cpu"):
    source = torch.Generator().manual_seed(n)
    x = torch.randn(n, *CHUNK, generator=source)
    t, chain = torch.randint(100, (n,), generator=source), torch.randint(chains, (n,), generator=source)
    return x.to(device), t.to(device), chain.to(device)


def make(parts=2, **split):
    return replicate(Net(), ["cpu"] * parts, lambda m: m, split=Split(**split))


@pytest.mark.parametrize(
    ("n", "parts", "speeds", "sizes"),
    [
        (7, 3, None, [3, 2, 2]),
        (2, 3, None, [1, 1, 0]),
        (0, 2, None, [0, 0]),
        (9, 2, (2.0, 1.0), [6, 3]),
        (10, 3, (1.0, 0.1, 1.0), [5, 0, 5]),
    ],
)
def test_sizes(n, parts, speeds, sizes):
    assert Split(speeds=speeds).sizes(n, parts) == sizes


def test_every_row_is_in_one_part():
    split = Split(speeds=(3.0, 1.0, 2.5, 0.7))
    for n in range(200):
        sizes = split.sizes(n, 4)
        assert sum(sizes) == n
        assert min(sizes) >= 0


@pytest.mark.parametrize("n", [1, 2, 3, 17])
@pytest.mark.parametrize("speeds", [None, (1.0, 3.0, 1.0)])
def test_values_are_those_of_one_device(n, speeds):
    replicas = make(3, from_rows=1, speeds=speeds)
    replicas.load(torch.randn(3, C))
    torch.testing.assert_close(replicas(*rows(n)), replicas.alone(*rows(n)), rtol=1e-5, atol=1e-6)


def test_parts_are_contiguous_and_small_calls_stay():
    nets = [Net(), Net()]
    replicas = Replicas(nets, ["cpu", "cpu"], split=Split(from_rows=4))
    replicas.load(torch.randn(3, C))
    for n in (3, 5):
        replicas(*rows(n))
    assert [net.sizes for net in nets] == [[3, 3], [2]]
    never = Replicas(nets, ["cpu", "cpu"], split=Split(from_rows=None))
    never.load(torch.randn(3, C))
    never(*rows(100))
    assert nets[1].sizes == [2]


def test_a_new_condition_reaches_every_device():
    replicas = make(2)
    before, after = torch.randn(3, C), torch.randn(3, C)
    replicas.load(before)
    first = replicas(*rows(6))
    replicas.load(after)
    second = replicas(*rows(6))
    assert (first - second).flatten(1).abs().amax(1).min() > 1e-4
    torch.testing.assert_close(second, replicas.alone(*rows(6)), rtol=1e-5, atol=1e-6)


def test_weights_changed_in_place_reach_the_copies():
    net, condition = Net(), torch.randn(3, C)
    replicas = replicate(net, ["cpu", "cpu"], lambda m: m)
    replicas.load(condition)
    before = replicas(*rows(6))
    net.load_state_dict(Net().state_dict())
    replicas.load(condition)
    after = replicas(*rows(6))
    torch.testing.assert_close(after, replicas.alone(*rows(6)), rtol=1e-5, atol=1e-6)
    assert (after - before).flatten(1).abs().amax(1).min() > 1e-4
    with torch.no_grad():
        net.mix.bias.data = torch.ones_like(net.mix.bias)  # replaced, not written to
    replicas.load(condition)
    torch.testing.assert_close(replicas(*rows(6)), replicas.alone(*rows(6)), rtol=1e-5, atol=1e-6)


def test_a_sample_is_the_same():
    schedule = Schedule.from_diffusers({"num_train_timesteps": 30, "beta_schedule": "squaredcos_cap_v2"})
    replicas = make(3)
    replicas.load(torch.randn(3, C))
    noise = draw_noise((3, *CHUNK), schedule, torch.Generator().manual_seed(1))
    ours, theirs = (
        sample_speculative(d, schedule, noise, generator=torch.Generator().manual_seed(2))
        for d in (replicas, replicas.alone)
    )
    torch.testing.assert_close(ours.x0, theirs.x0, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.stats.calls, theirs.stats.calls)


def test_rows_before_a_condition():
    with pytest.raises(RuntimeError, match=r"call load\(condition\) first"):
        make()(*rows(4))


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="2 networks for 1 devices"):
        Replicas([Net(), Net()], ["cpu"])
    with pytest.raises(ValueError, match="3 speeds for 2 devices"):
        make(2, speeds=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="at least 1"):
        Split(from_rows=0)
    with pytest.raises(ValueError, match="positive and finite"):
        Split(speeds=(1.0, 0.0))


@pytest.mark.parametrize(
    ("alone", "split", "pays"),
    [
        ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), None),
        ((1.0, 2.0, 4.0), (1.5, 1.5, 2.0), 8),
        ((1.0, 2.0, 4.0), (0.5, 2.5, 2.0), 16),  # only from where on it always pays
        ((1.0, 1.0, 1.0), (0.99, 0.99, 0.99), None),  # too little
        ((1.0, 1.0, 1.0), (0.5, 0.5, 0.5), 2),
    ],
)
def test_break_even(alone, split, pays):
    assert SplitTimes((2, 8, 16), alone, split).from_rows == pays


def test_measured_break_even():
    from time import sleep

    def alone(x, t, chain):
        sleep(1e-3 * len(x))
        return x

    def split(x, t, chain):
        sleep(4e-3 + 0.5e-3 * len(x))
        return x

    times = measure_split(alone, split, CHUNK, torch.device("cpu"), rows=(16, 2, 4), repeats=3)
    assert times.rows == (2, 4, 16)
    assert times.from_rows == 16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("n", [2, 3, 64])
def test_cuda_values_are_those_of_one_device(n):
    """All GPUs there are; a single one is used twice, on different streams."""
    count = torch.cuda.device_count()
    devices = [f"cuda:{i}" for i in range(count)] if count > 1 else ["cuda:0", "cuda:0"]
    replicas = replicate(Net().cuda(0), devices, lambda m: m)
    for seed in range(20):
        replicas.load(torch.randn(3, C, generator=torch.Generator().manual_seed(seed)).cuda(0))
        given = rows(n, device="cuda:0")
        torch.testing.assert_close(replicas(*given), replicas.alone(*given), rtol=1e-4, atol=1e-5)
