"""benchmarks/runtime.py: what it counts, how it composes, and that it runs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffpolicy_spec.choice.cost import CallCost
from diffpolicy_spec.choice.rounds import Rounds
from diffpolicy_spec.policies.unet import ConditionalUnet1D
from diffpolicy_spec.runtime import RuntimeConfig

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
LINEAR = CallCost((1, 2, 100), (2.0, 3.0, 101.0))  # c(n) = 1 + n


@pytest.fixture(scope="module", autouse=True)
def _programs():
    """The programs import each other by name, as when they are run."""
    threads = torch.get_num_threads()
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))
    torch.set_num_threads(threads)


def program(name: str):
    return importlib.import_module(name)


class TwoParts(torch.nn.Module):
    """A call needs `every`, a chunk `cond_encoder`."""

    def __init__(self) -> None:
        super().__init__()
        self.every, self.cond_encoder = torch.nn.Linear(10, 10), torch.nn.Sequential(torch.nn.Linear(7, 10))

    def forward(self, x, t, condition):
        return self.every(x) + self.cond_encoder(condition)[:, None]


def test_work_is_what_every_call_needs():
    work = program("runtime_floors").work_of(TwoParts(), (16, 10), torch.zeros(1, 7))
    assert work.weights == 10 * 10 + 10
    assert work.flops == 2 * 16 * 10 * 10


def test_work_of_the_unet_is_its_convolutions():
    """By formula: 2 L_out C_in C_out k of every convolution (transposed: L_in), but for FiLM and timestep."""
    network = ConditionalUnet1D(3, 4, diffusion_step_embed_dim=8, down_dims=(8, 16), n_groups=4)
    flops = 0

    def count(module, given, out):
        nonlocal flops
        length = (given[0] if isinstance(module, torch.nn.ConvTranspose1d) else out).shape[-1]
        flops += 2 * length * module.weight.numel()

    for module in network.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
            module.register_forward_hook(count)
    work = program("runtime_floors").work_of(network, (8, 3), torch.zeros(1, 4))
    assert work.flops == flops > 0
    assert work.weights < sum(p.numel() for p in network.parameters())


def test_the_floor_is_the_slower_of_reading_and_multiplying():
    floors = program("runtime_floors")
    machine, work = floors.Machine(100.0, {"float32": 10.0, "bfloat16": 10.0}), floors.Work(weights=50, flops=5.0)
    assert work.floor(machine, 1, "float32") == 2.0  # 200 bytes; 5 FLOPs take half a second
    assert work.floor(machine, 1, "bfloat16") == 1.0
    assert work.floor(machine, 8, "float32") == 4.0


def rounds_of(*rows: int) -> Rounds:
    start = np.cumsum([0, *rows[:-1]])
    return Rounds(np.zeros(len(rows), dtype=np.int64), start, np.array(rows), np.array(rows), sum(rows))


def drawn(seconds: float, network: float, rounds: Rounds):
    """One chunk with as much time in the network; NaN: captured."""
    sample = type("Told", (), {})()
    sample.stats = type("Told", (), {})()
    sample.stats.time = type("Told", (), {"network": network})()
    return program("runtime_chunks").Drawn([seconds], [sample], [rounds])


def test_a_composed_chunk_is_its_rounds_at_another_price_and_what_was_outside_the_network():
    composed, chunks = program("runtime_composed"), program("runtime_chunks")
    contender = chunks.Contender("nearest", 9, None)
    eager = composed.Searched(contender, drawn(50.0, 47.0, rounds_of(9, 1)), "eager")
    assert eager.seconds(LINEAR, LINEAR) == pytest.approx([(10 + 2) + 3])
    # Padded to 1, 8, 9 rows; captured, so that the network's time is what its calls cost the trained policy.
    other = CallCost((1, 2, 100), (4.0, 6.0, 202.0))
    static = composed.Searched(contender, drawn(50.0, float("nan"), rounds_of(9, 5)), "graphs")
    assert static.outside(LINEAR) == pytest.approx([50 - (10 + 9)])
    assert static.seconds(other, LINEAR) == pytest.approx([(20 + 18) + 31])


def test_the_best_are_one_of_a_family():
    composed, chunks = program("runtime_composed"), program("runtime_chunks")
    found = [
        composed.Searched(chunks.Contender(name, window, None), drawn(seconds, 0.0, rounds_of(1)), "eager")
        for name, window, seconds in [("a", 1, 3.0), ("a", 2, 1.0), ("b", 1, 2.0), (chunks.SEQUENTIAL, None, 0.5)]
    ]
    best = composed.best_of(found, LINEAR, LINEAR, 5)
    assert [s.contender.label for s in best] == ["a, window 2", "b, window 1"]


def test_rounds_and_times_of_the_trained_policy_are_complete():
    """Chunks of one contender under two runtimes: the same calls, rows that cover the chain, parts that add up."""
    chunks = program("runtime_chunks")
    trained = chunks.Trained(torch.device("cpu"))
    contender = chunks.Contender("ours", 32, chunks.SamplerConfig(options={"window": 32}))
    (eager,) = trained.in_turns([contender], RuntimeConfig(), range(2), watch=True, warm_up=0)
    (static,) = trained.in_turns([contender], RuntimeConfig("static"), range(2), warm_up=0)
    for seen, one, other in zip(eager.rounds, eager.samples, static.samples, strict=True):
        assert seen.committed.sum() == 100
        assert seen.rows.sum() == one.stats.evaluations == other.stats.evaluations
    row = chunks.chunk_row(contender, static, [], "static", LINEAR)
    assert row["parts_known"]
    assert 0 < row["network_ms"] <= row["p50_ms"] <= row["p99_ms"]
    assert 0 < row["overhead"] < 1


def test_batches_are_counted_in_chunks_a_second():
    chunks = program("runtime_chunks")
    trained = chunks.Trained(torch.device("cpu"))
    contender = chunks.Contender(chunks.DDIM, None, chunks.SamplerConfig("ddim", 10, 0.0))
    row = chunks.batch_row(trained, contender, RuntimeConfig("static"), 3, 1)
    assert (row["calls"], row["rows"]) == (10, 10)
    assert row["chunks_per_second"] == pytest.approx(3 / (row["ms"] / 1e3))


def test_the_program_runs_and_writes_what_it_measured(tmp_path, monkeypatch):
    composed, main, parts, networks = (program(f"runtime{name}") for name in ("_composed", "", "_parts", "_networks"))
    names = [networks.TRAINED, "tiny"]
    monkeypatch.setitem(networks.NETWORKS, "tiny", lambda: ConditionalUnet1D(10, 4, 16, (16, 32)))
    monkeypatch.setattr(composed, "SEARCHED", ("nearest",))
    monkeypatch.setattr(parts, "contenders", lambda ours, all_of_them=parts.contenders: all_of_them(ours)[:2])
    monkeypatch.setattr(parts, "eager_only", list)
    monkeypatch.setattr(main, "QUICK", main.Plan(0.02, 0.05, 1, 1, (50,), (50,), ((1, 1),), 1))
    command = ["runtime.py", "--quick", "--modes", "static", "--rows", "1", "2", "50", "--networks"]
    monkeypatch.setattr(sys, "argv", [*command, *names, "--output", str(tmp_path / "runtime")])
    main.main()
    found, text = json.loads((tmp_path / "runtime.json").read_text()), (tmp_path / "runtime.md").read_text()
    assert {"device", "driver", "torch", "threads", "commit"} <= set(found["environment"])
    assert {row["network"] for row in found["calls"]} == {row["network"] for row in found["composed"]} == set(names)
    assert {row["runtime"]["mode"] for row in found["chunks"] + found["batches"]} == {"eager", "static"}
    sequential = [row for row in found["composed"] if row["sampler"] == "DDPM-100"]
    assert len(sequential) == 4
    assert all(row["calls"] == row["rows"] == 100 and row["measured_ms"] > 0 for row in sequential)
    assert {row["window"] for row in found["composed"] if row["exact"]} <= {None, 50, "by step"}
    for table in text.split("### ")[1:]:  # as many cells in every line
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1, table
