"""Statistics against values known from elsewhere or worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from diffpolicy_spec.eval.cells import Cell
from diffpolicy_spec.eval.episode_table import ChunkTable, EpisodeTable, Results
from diffpolicy_spec.eval.intervals import wilson_interval
from diffpolicy_spec.eval.latency import latencies, latency
from diffpolicy_spec.eval.records import ChunkRecord, EpisodeRecord
from diffpolicy_spec.eval.store import INTEGERS, TIMES
from diffpolicy_spec.eval.summary import Mean, reference_of, summarize, summarize_all

CELL = Cell(
    task="lift", policy="lift", policy_fingerprint="0" * 16, sampler="asd", sampler_config={},
    runtime={"mode": "eager"}, exact=True, verifies=True, reference=False, reference_steps=100,
    timesteps=(9, 6, 3, 0), action_repr="raw", n_action_steps=8, control_freq=20.0, max_steps=400,
)  # fmt: skip
HERE = {"device": "cpu", "processor": "x", "num_threads": 1}


def chunk(**changes):
    base = ChunkRecord(
        seed=100000, chunk=0, call=0, batch=1, latency_ms=20.0, network_ms=15.0, draft_ms=2.0, verify_ms=1.0,
        other_ms=2.0, sampler_ms=19.0, calls=2, evaluations=7, drafted=5, accepted=2, rejected=1, wasted=3,
        tested_at=(1, 1, 1, 0), accepted_at=(1, 1, 0, 0),
    )  # fmt: skip
    return replace(base, **changes)


def table(chunks, episodes=(), environment=HERE, **columns):
    """An `EpisodeTable` of these records."""
    seeds = [e.seed for e in episodes]
    flat = ChunkTable(
        episode=np.array([seeds.index(c.seed) if seeds else 0 for c in chunks], dtype=np.int64),
        call=np.array([c.call for c in chunks], dtype=np.int64),
        deadline_missed=np.array([c.deadline_missed for c in chunks], dtype=bool),
        columns={name: np.array([getattr(c, name) for c in chunks], dtype=float) for name in (*INTEGERS, *TIMES)},
    )
    names = dict.fromkeys(name for e in episodes for name in e.metrics)

    def column(name, kind):
        return np.array([getattr(e, name) for e in episodes], dtype=kind)

    return EpisodeTable(
        seed=column("seed", int), success=column("success", bool), max_reward=column("max_reward", float),
        steps=column("steps", int), wall_s=column("wall_s", float), actions_sha=column("actions_sha", str),
        metrics={n: np.array([e.metrics.get(n, np.nan) for e in episodes]) for n in names},
        environment=np.zeros(len(episodes), int), environments=(environment,),
        tested_at=np.sum([c.tested_at for c in chunks] or [[0] * 4], axis=0),
        accepted_at=np.sum([c.accepted_at for c in chunks] or [[0] * 4], axis=0), chunks=flat,
    )  # fmt: skip


# Newcombe (1998), table I, and the closed form at the ends: 1 / (1 + n / z^2) from the bound.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval_known_values(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_ends():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0
    with pytest.raises(ValueError, match="between 0 and trials = 3"):
        wilson_interval(4, 3)


def test_wilson_interval_covers():
    rng = np.random.default_rng(0)
    hits = [low <= 0.8 <= high for low, high in (wilson_interval(int(k), 50) for k in rng.binomial(50, 0.8, 4000))]
    assert 0.93 < np.mean(hits) < 0.97


def test_summary_by_hand():
    chunks = [
        chunk(),
        chunk(chunk=1, call=1, latency_ms=40.0, network_ms=35.0, calls=4, evaluations=9, accepted=0, rejected=3,
              drafted=5, wasted=5, tested_at=(1, 1, 1, 0), accepted_at=(0, 0, 0, 0)),
    ]  # fmt: skip
    episodes = [EpisodeRecord(100000, True, 1.0, 11, 2), EpisodeRecord(100001, False, 0.0, 400, 50)]
    s = summarize(CELL, table(chunks, episodes), reference_latency_ms=300.0)
    assert (s.episodes, s.successes, s.success_rate, s.chunks, s.policy_calls) == (2, 1, 0.5, 2, 2)
    assert s.steps_mean == pytest.approx(205.5)
    assert (s.latency.p50, s.latency.max, s.latency.mean) == pytest.approx((30.0, 40.0, 30.0))
    assert s.calls_mean == pytest.approx(3.0)
    assert s.rows_mean == pytest.approx(8.0)
    assert s.algorithmic_speedup == pytest.approx(100 / 3)
    assert s.wall_clock_speedup == pytest.approx(10.0)
    assert s.acceptance_rate == pytest.approx(2 / 6)
    assert s.rejection_waste == pytest.approx(8 / 16)
    assert s.overhead == pytest.approx(1 - 50 / 60)
    assert s.acceptance.tested == (2, 2, 2, 0)
    assert s.acceptance.accepted == (1, 1, 0, 0)
    assert (s.score, s.metrics, s.real_time) == (None, {}, None)


def test_percentiles_and_jitter():
    found = latency(np.arange(101.0))
    assert (found.p50, found.p90, found.p95, found.p99, found.max) == (50, 90, 95, 99, 100)
    assert found.deviation == pytest.approx(np.sqrt((101**2 - 1) / 12))
    assert found.spread == 49
    assert latency(np.zeros(0)) is None


def test_batched_call_counts_once():
    chunks = [chunk(call=0, batch=2), chunk(seed=100001, call=0, batch=2), chunk(call=1, latency_ms=50.0)]
    both = [EpisodeRecord(seed, True, 1.0, 8, 2) for seed in (100000, 100001)]
    found = table(chunks, both)
    assert latencies(found.chunks).tolist() == [20.0, 50.0]
    s = summarize(CELL, found)
    assert (s.latency.p50, s.policy_calls, s.batch_mean) == pytest.approx((35.0, 2, 1.5))
    assert s.shares.network == pytest.approx(15.0)


def test_late_in_lockstep_is_longer_than_the_actions_of_a_chunk():
    """8 actions at 20 Hz last 400 ms, one lasts 50 ms."""
    chunks = [chunk(call=i, latency_ms=ms) for i, ms in enumerate((30.0, 60.0, 399.0, 401.0))]
    found = summarize(CELL, table(chunks)).deadlines
    assert (found.limit_ms, found.control_hz, found.missed, found.over_period) == (400.0, 20.0, 0.25, 0.75)


def test_late_in_real_time_is_what_was_recorded():
    real = replace(CELL, mode="realtime", control_hz=50.0, latency="measured", meanwhile="hold")
    chunks = [chunk(waited=2, stale=2), chunk(call=1, waited=10, stale=8, held=2, deadline_missed=True)]
    s = summarize(real, table(chunks))
    assert (s.deadlines.missed, s.deadlines.limit_ms, s.deadlines.over_period) == (0.5, 160.0, 0.0)
    assert (s.real_time.waited, s.real_time.stale, s.real_time.held) == (6.0, 5.0, 1.0)
    given = replace(real, latency=30.0)
    assert summarize(given, table(chunks)).deadlines.over_period == 1.0


def test_what_is_not_defined_is_none():
    s = summarize(CELL, table([]))
    assert s.latency is s.shares is s.calls_mean is s.acceptance_rate is s.overhead is s.success_rate is None
    assert s.deadlines is s.real_time is s.score is s.steps_mean is s.batch_mean is None
    sequential = chunk(drafted=0, accepted=0, rejected=0, wasted=0, tested_at=(0,) * 4, accepted_at=(0,) * 4)
    s = summarize(CELL, table([sequential]))
    assert s.acceptance is s.acceptance_rate is s.rejection_waste is s.wall_clock_speedup is None
    # Inside a captured graph nothing is timed.
    s = summarize(CELL, table([chunk(network_ms=float("nan"))]))
    assert s.shares is s.overhead is None
    assert s.latency.p50 == 20.0


def test_score_and_further_results():
    scores = [0.2, 0.9, 1.0, 0.7]
    episodes = [EpisodeRecord(i, i == 2, r, 5, 0, {"p_1": float(i > 0), "x": 2.0 + i}) for i, r in enumerate(scores)]
    s = summarize(CELL, table([], episodes))
    expected = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    assert (s.score.mean, s.score.low, s.score.high) == pytest.approx((0.7, expected.low, 1.0))
    assert s.metrics["p_1"] == Mean(0.75, *wilson_interval(3, 4))
    assert s.metrics["x"].mean == 3.5
    assert s.metrics["x"].low < 2.5


def test_speedup_is_against_the_same_task_policy_mode_and_machine():
    episode = [EpisodeRecord(1, True, 1.0, 8, 1)]
    fast = chunk(seed=1, latency_ms=50.0)
    reference = replace(CELL, sampler="ddpm100", reference=True, verifies=False)
    cells = {
        "same": CELL,
        "reference": reference,
        "task": replace(CELL, task="can"),
        "weights": replace(CELL, policy_fingerprint="1" * 16),
        "mode": replace(CELL, mode="realtime", control_hz=20.0, latency="measured", meanwhile="hold"),
        "machine": replace(CELL, sampler="picard"),
    }
    tables = {key: table([fast], episode) for key in cells}
    tables["reference"] = table([chunk(seed=1, latency_ms=400.0)], episode)
    tables["machine"] = table([fast], episode, environment={**HERE, "device": "cuda"})
    results = Results(cells, tables)
    found = {key: s.wall_clock_speedup for key, s in summarize_all(results).items()}
    assert found == {"same": 8.0, "reference": 1.0, "task": None, "weights": None, "mode": None, "machine": None}
    assert reference_of(results, "machine") == "reference"  # seeds do compare


def test_reference_in_the_same_runtime_is_preferred():
    episode = [EpisodeRecord(1, True, 1.0, 8, 1)]
    slow = replace(CELL, sampler="ddpm100", reference=True)
    cells = {"slow": slow, "graphs": replace(slow, runtime={"mode": "graphs"}), "asd": CELL,
             "asd_graphs": replace(CELL, runtime={"mode": "graphs"})}  # fmt: skip
    results = Results(cells, {key: table([chunk(seed=1)], episode) for key in cells})
    assert [reference_of(results, key) for key in ("asd", "asd_graphs", "graphs")] == ["slow", "graphs", "graphs"]
