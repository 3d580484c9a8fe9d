"""Statistics against values known from elsewhere or worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffpolicy_spec.eval.records import ChunkRecord, EpisodeRecord, load_chunks, load_episodes, save_chunks
from diffpolicy_spec.eval.statistics import latencies, summarize, wilson_interval


def chunk(**changes):
    base = ChunkRecord(
        seed=100000, chunk=0, call=0, batch=1, latency_ms=20.0, network_ms=15.0, draft_ms=2.0, verify_ms=1.0,
        other_ms=2.0, sampler_ms=19.0, calls=2, evaluations=7, drafted=5, accepted=2, rejected=1, wasted=3,
        tested_at=(1, 1, 1, 0), accepted_at=(1, 1, 0, 0),
    )  # fmt: skip
    return replace(base, **changes)


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
    s = summarize(episodes, chunks, (9, 6, 3, 0), reference_steps=100, reference_latency_ms=300.0)
    assert (s.episodes, s.successes, s.success_rate, s.chunks) == (2, 1, 0.5, 2)
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


def test_batched_call_counts_once():
    chunks = [chunk(call=0, batch=2), chunk(seed=100001, call=0, batch=2), chunk(call=1, latency_ms=50.0)]
    assert latencies(chunks).tolist() == [20.0, 50.0]
    assert summarize([], chunks, (3, 2, 1, 0), reference_steps=4).latency.p50 == pytest.approx(35.0)


def test_what_is_not_defined_is_none():
    s = summarize([], [], (3, 2), reference_steps=100)
    assert s.latency is s.shares is s.calls_mean is s.acceptance_rate is s.overhead is s.success_rate is None
    sequential = chunk(drafted=0, accepted=0, rejected=0, wasted=0, tested_at=(0,) * 4, accepted_at=(0,) * 4)
    s = summarize([], [sequential], (3, 2, 1, 0), reference_steps=100)
    assert s.acceptance is s.acceptance_rate is s.rejection_waste is s.wall_clock_speedup is None


def test_records_survive_the_disk(tmp_path):
    chunks = [chunk(), chunk(chunk=1, call=1, latency_ms=np.pi)]
    save_chunks(tmp_path / "chunks.npz", chunks, (9, 6, 3, 0))
    assert load_chunks(tmp_path / "chunks.npz") == (chunks, [9, 6, 3, 0])
    episodes = [EpisodeRecord(5, True, 1.0, 60, 8), EpisodeRecord(6, False, 0.0, 400, 50)]
    (tmp_path / "episodes.jsonl").write_text("".join(e.to_json() + "\n" for e in episodes))
    assert load_episodes(tmp_path / "episodes.jsonl") == episodes


def test_no_chunks_survive_the_disk(tmp_path):
    save_chunks(tmp_path / "chunks.npz", [], (3, 2))
    assert load_chunks(tmp_path / "chunks.npz") == ([], [3, 2])


def test_foreign_npz_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="lacks seed, chunk"):
        load_chunks(tmp_path / "other.npz")
