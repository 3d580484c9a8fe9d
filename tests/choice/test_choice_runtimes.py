"""The runtime is chosen with the sampler: what is tried, and that the quicker one is found."""

import dataclasses
import warnings

import pytest
import torch
from known_policy import STEPS, Known, moments
from tiny_policy import tiny_policy

from diffpolicy_spec import SamplerConfig, load_policy
from diffpolicy_spec.choice.candidates import FAMILIES
from diffpolicy_spec.choice.choose import choose
from diffpolicy_spec.choice.fingerprint import fingerprint
from diffpolicy_spec.choice.record import read_choices, write_choices
from diffpolicy_spec.choice.runtimes import described, runtimes, thread_counts
from diffpolicy_spec.runtime import RuntimeConfig

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ONE, TWO = RuntimeConfig(threads=1), RuntimeConfig(threads=2)
SOME = tuple(family for family in FAMILIES if family.name in ("nearest", "picard"))


@pytest.fixture(autouse=True)
def _as_if(monkeypatch):
    """Torch says how many threads it was told to use, and goes on with one: others may need the cores."""
    count = [1]
    monkeypatch.setattr(torch, "set_num_threads", lambda n: count.__setitem__(0, n))
    monkeypatch.setattr(torch, "get_num_threads", lambda: count[0])


class ByThreads(Known):
    """A network whose calls take `factor` times as long with two threads; below 0 it fails there."""

    def __init__(self, factor, call=0.003, row=0.0):
        super().__init__(0.1, call, row)
        self.factor = factor

    def seconds(self, rows):
        two = torch.get_num_threads() == 2
        if two and self.factor < 0:
            raise RuntimeError("no such operation with two threads")
        return super().seconds(rows) * (self.factor if two else 1)


def search(network, tried, **changes):
    policy = tiny_policy()
    policy.network = network
    few = {"num_inference_steps": STEPS, "families": SOME, "timed": 4, "probes": 1, "contenders": 1, "finalists": 2}
    return policy, choose(policy, moments(), tried=tried, **few | changes)


def under(choice, runtime):
    return [row for row in choice.candidates if row["runtime"] == dataclasses.asdict(runtime)]


@pytest.mark.usefixtures("known_time")
def test_the_quicker_runtime_is_chosen_and_bound_by_auto(tmp_path):
    policy, choice = search(ByThreads(0.4, call=0.008), (ONE, TWO))
    assert torch.get_num_threads() == 1  # as before
    assert choice.runtime == TWO
    assert choice.config.runtime == TWO
    assert choice.method == "speculative"
    # The sequential sampler it was held against had the quicker runtime, too.
    last = choice.candidates[-1]
    assert (last["method"], last["runtime"]["threads"]) == ("sequential", 2)
    assert choice.sequential_ms == pytest.approx(STEPS * 0.4 * 8, rel=0.01)
    # Every size under the first runtime, the best under the other; rounds do not depend on it.
    there = [row for row in under(choice, TWO) if row["method"] != "sequential"]
    assert len(there) == 1
    here = next(row for row in under(choice, ONE) if row["options"] == there[0]["options"])
    assert (here["calls"], here["rows"]) == (there[0]["calls"], there[0]["rows"])
    assert there[0]["predicted_ms"] == pytest.approx(0.4 * here["predicted_ms"], rel=0.01)
    cost = choice.call_cost_ms
    assert list(cost) == ["eager, 1 thread", "eager, 2 threads"]
    assert cost["eager, 2 threads"]["8"] == pytest.approx(0.4 * 8, rel=0.01)
    # Stored, read, and bound with its runtime.
    write_choices([choice], tmp_path)
    assert read_choices(tmp_path)[0].runtime == TWO
    policy.choices = read_choices(tmp_path)
    bound = policy.bind(SamplerConfig("auto", STEPS))
    assert bound.config.runtime == TWO
    policy.predict_action(moments(1).obs, sampler=bound)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("known_time")
def test_a_hopeless_runtime_is_looked_at_no_further():
    _, choice = search(ByThreads(3.0), (ONE, TWO))
    assert choice.runtime == ONE
    assert "eager, 2 threads" in choice.call_cost_ms
    assert not under(choice, TWO)


@pytest.mark.usefixtures("known_time")
def test_a_runtime_that_does_not_run_is_left_out():
    with pytest.warns(UserWarning, match="eager, 2 threads is left out: .*no such operation"):
        _, choice = search(ByThreads(-1.0), (ONE, TWO))
    assert list(choice.call_cost_ms) == ["eager, 1 thread"]
    with pytest.raises(RuntimeError, match="no such operation"):
        search(ByThreads(-1.0), (TWO, ONE))
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("known_time")
def test_nothing_slower_than_the_sequential_sampler_under_its_best_runtime_is_picked():
    """Every row costs as much as a call, with one thread nearly twice as much."""
    _, choice = search(ByThreads(0.6, call=0.0, row=0.001), (ONE, TWO))
    assert choice.config == SamplerConfig("ddpm", STEPS, runtime=TWO)


@pytest.mark.usefixtures("known_time")
def test_padding_is_paid_for():
    """Rounds of two rows are padded to eight, because the last round has twelve: dear where rows are."""
    static = RuntimeConfig("static", threads=1)
    wide = dataclasses.replace(SOME[0], shapes=({"window": [2] * (STEPS - 1) + [STEPS]},))
    _, choice = search(ByThreads(1.0, call=0.001, row=0.001), (ONE, static), families=(wide,))
    (here,), (there,) = ([row for row in under(choice, r) if row["name"] == "nearest"] for r in (ONE, static))
    assert there["rows"] == here["rows"]  # those that count
    assert there["predicted_ms"] > 1.5 * here["predicted_ms"]
    assert there["measured_ms"] > 1.5 * here["measured_ms"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_are_tried_on_a_gpu():
    policy, graphs = tiny_policy().to("cuda"), RuntimeConfig("graphs")
    choice = choose(
        policy, moments(), tried=(RuntimeConfig(), graphs), families=SOME, num_inference_steps=STEPS, timed=4, probes=1
    )
    assert list(choice.call_cost_ms) == ["eager", "graphs"]
    assert choice.call_cost_ms["graphs"]["1"] < choice.call_cost_ms["eager"]["1"]
    assert under(choice, graphs)
    assert choice.runtime == graphs
    policy.choices = (choice,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = policy.predict_action(moments(1).obs, sampler=policy.bind(SamplerConfig("auto", STEPS)))
    assert bool(torch.isfinite(out.action).all())


def test_what_is_tried_unasked():
    assert {r.mode for r in runtimes(CPU)} == {"eager"}
    assert runtimes(CPU)[0] == ONE
    assert thread_counts(1) == [1]
    assert thread_counts(2) == [1, 2]
    assert thread_counts(12) == [1, 2, 4, 8, 12]
    tried = runtimes(GPU)
    assert tried[0] == RuntimeConfig()
    assert {RuntimeConfig("graphs"), RuntimeConfig("compiled_graphs")} <= set(tried)


def test_runtimes_that_are_asked_for():
    tried = runtimes(CPU, [{"mode": "static"}, {"threads": 4, "rounds": 2}], threads=[1, 3], dtypes=[None, "bfloat16"])
    assert tried == (
        RuntimeConfig("static", threads=1), RuntimeConfig("static", threads=3),
        RuntimeConfig("static", dtype="bfloat16", threads=1), RuntimeConfig("static", dtype="bfloat16", threads=3),
        RuntimeConfig(rounds=2, threads=4), RuntimeConfig(rounds=2, dtype="bfloat16", threads=4),
    )  # fmt: skip
    assert runtimes(GPU, [{"mode": "graphs"}], threads=[1, 2]) == (RuntimeConfig("graphs"),)
    assert described(tried[2]) == "static, bfloat16, 1 thread"
    assert described(RuntimeConfig("graphs", rounds=8)) == "graphs, 8 rounds"
    assert described(RuntimeConfig(devices=("cuda:0", "cuda:1"))) == "eager, on cuda:0, cuda:1"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"given": "fast"}, "runtimes must be a list"),
        ({"given": []}, "runtimes must be a list of at least one"),
        ({"given": ["eager"]}, "an entry has some of mode, .*'eager'"),
        ({"given": [{"mod": "eager"}]}, "an entry has some of mode"),
        ({"given": [{"mode": "fast"}]}, "unknown runtime mode"),
        ({"threads": 2}, "threads must be a list"),
        ({"threads": [0]}, "threads must be at least 1"),
        ({"dtypes": "bfloat16"}, "dtypes must be a list"),
        ({"dtypes": ["int8"]}, "unknown runtime dtype"),
    ],
)
def test_what_cannot_be_tried_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        runtimes(CPU, **asked)


def test_the_fingerprint_is_of_weights_and_of_what_is_stored_for_speculation(tmp_path):
    policy = tiny_policy(speculation={"other": torch.arange(6, dtype=torch.float16)})
    seen = fingerprint(policy.network, policy.speculation)
    assert len(seen) == 16
    policy.save(tmp_path / "p")
    loaded = load_policy(tmp_path / "p")
    assert fingerprint(loaded.network, loaded.speculation) == seen
    assert fingerprint(policy.network, None) != seen
    assert fingerprint(policy.network, {"other": policy.speculation["other"] + 1}) != seen
    assert fingerprint(policy.network, {"renamed": policy.speculation["other"]}) != seen
    weight = next(policy.network.parameters())
    weight.view(-1)[0] += 1e-6
    assert fingerprint(policy.network, policy.speculation) != seen
