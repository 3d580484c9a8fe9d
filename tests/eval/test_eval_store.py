"""The results store: every finished episode, once, whatever happens to the writer."""

import errno
import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from diffpolicy_spec.eval import store as store_module
from diffpolicy_spec.eval.cells import Cell
from diffpolicy_spec.eval.episode_table import read_stores
from diffpolicy_spec.eval.records import ChunkRecord, EpisodeRecord
from diffpolicy_spec.eval.store import Store, StoreError

CELL = Cell(
    task="lift", policy="lift", policy_fingerprint="0123456789abcdef", sampler="asd",
    sampler_config={"method": "speculative", "options": {"window": 4}}, runtime={"mode": "eager"}, exact=True,
    verifies=True, reference=False, reference_steps=4, timesteps=(3, 2, 1, 0), action_repr="absolute_rot6d",
    n_action_steps=8, control_freq=20, max_steps=400,
)  # fmt: skip
HERE = {"device": "cpu", "versions": {"torch": "2"}, "commit": None}


def chunk(seed, i):
    values = dict.fromkeys(("batch", "calls", "evaluations", "drafted", "accepted", "rejected", "wasted"), i)
    times = {f"{name}_ms": 0.5 * i + seed for name in ("latency", "network", "draft", "verify", "other", "sampler")}
    return ChunkRecord(
        seed=seed, chunk=i, call=1000 * seed + i, tested_at=(1, 2, 3, i), accepted_at=(0, 1, 2, 0), **values, **times
    )


def episode(seed, chunks=3, **changes):
    return replace(
        EpisodeRecord(seed, seed % 2 == 0, float(seed % 2 == 0), 10 + seed, chunks, {}, f"{seed:016x}"), **changes
    )


def append(store, seed, chunks=3, **changes):
    store.append(CELL.id, episode(seed, chunks, **changes), [chunk(seed, i) for i in range(chunks)], HERE)


def test_what_is_appended_is_read_again(tmp_path):
    store = Store.open(tmp_path / "store")
    assert store.declare(CELL) == CELL.id
    for seed in (5, 3, 4):
        append(store, seed, chunks=seed, metrics={"p_1": 1.0, "p_2": float(seed == 3)} if seed != 4 else {})
    results = read_stores([tmp_path / "store"])
    assert results.cells == {CELL.id: CELL}
    table = results.episodes(CELL.id)
    assert table.seed.tolist() == [3, 4, 5]
    assert table.success.tolist() == [False, True, False]
    assert table.steps.tolist() == [13, 14, 15]
    assert table.actions_sha.tolist() == [f"{s:016x}" for s in (3, 4, 5)]
    np.testing.assert_array_equal(table.metrics["p_2"], [1.0, np.nan, 0.0])
    assert table.environments == (HERE,)
    assert table.chunks.episode.tolist() == [0] * 3 + [1] * 4 + [2] * 5
    assert table.chunks["latency_ms"].tolist() == [0.5 * i + s for s in (3, 4, 5) for i in range(s)]
    assert table.chunks["evaluations"].tolist() == [i for s in (3, 4, 5) for i in range(s)]
    assert table.tested_at.tolist() == [12, 24, 36, 3 + 6 + 10]
    assert table.accepted_at.tolist() == [0, 12, 24, 0]


def test_an_episode_without_chunks_and_an_empty_cell(tmp_path):
    store = Store.open(tmp_path)
    store.declare(CELL)
    store.declare(other := replace(CELL, sampler="ddpm100"))
    append(store, 1, chunks=0)
    results = read_stores([tmp_path])
    assert len(results.episodes(CELL.id)) == 1
    assert len(results.episodes(CELL.id).chunks) == 0
    assert len(results.episodes(other.id)) == 0
    assert results.episodes(other.id).tested_at.tolist() == [0, 0, 0, 0]


def test_small_parts_are_merged_and_nothing_counts_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "FANOUT", 4)
    store = Store.open(tmp_path)
    store.declare(CELL)
    kept = {}
    for seed in range(21):
        append(store, seed)
        kept |= {p: p.read_bytes() for p in (tmp_path / "parts").iterdir()}
    names = sorted(p.name[0] for p in (tmp_path / "parts").iterdir())
    assert names == ["0", "1", "2"]  # 21 = 16 + 4 + 1
    for path, content in kept.items():  # as if killed before any of the small ones was removed
        path.write_bytes(content)
    table = read_stores([tmp_path]).episodes(CELL.id)
    assert table.seed.tolist() == list(range(21))
    assert len(table.chunks) == 63


def test_several_stores_are_read_together(tmp_path):
    for name, seeds in (("a", (1, 2)), ("b", (2, 3))):
        store = Store.open(tmp_path / name)
        store.declare(CELL)
        for seed in seeds:
            append(store, seed)
    assert read_stores([tmp_path / "a", tmp_path / "b"]).episodes(CELL.id).seed.tolist() == [1, 2, 3]


def _write_for_ever(path, first, count):
    store_module.FANOUT = 5
    store = Store.open(path)
    store.declare(CELL)
    for seed in range(first, first + count):
        append(store, seed)
        with open(path.parent / f"acknowledged-{first}", "a") as file:
            file.write(f"{seed}\n")


def test_writers_killed_at_random_moments_lose_nothing(tmp_path):
    """Two writers at once, SIGKILLed six times; every episode that was acknowledged is there, once."""
    random.seed(3)
    context, path = multiprocessing.get_context("spawn"), tmp_path / "store"
    Store.open(path)
    for turn in range(3):
        writers = [
            context.Process(target=_write_for_ever, args=(path, 10_000 * (2 * turn + i), 10_000)) for i in range(2)
        ]
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not all(
            (tmp_path / f"acknowledged-{10_000 * (2 * turn + i)}").exists() for i in range(2)
        ):
            time.sleep(0.05)
        for writer in writers:
            time.sleep(random.uniform(0.05, 0.4))
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
    acknowledged = [int(line) for p in tmp_path.glob("acknowledged-*") for line in p.read_text().split("\n") if line]
    seeds = read_stores([path]).episodes(CELL.id).seed.tolist()
    assert len(acknowledged) > 20
    assert set(acknowledged) <= set(seeds)
    assert len(set(seeds)) == len(seeds)


def test_a_full_disk_is_named_and_loses_nothing(tmp_path, monkeypatch):
    store = Store.open(tmp_path)
    store.declare(CELL)
    append(store, 1)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("diffpolicy_spec.eval.store.write_atomically", full)
    with pytest.raises(StoreError, match=r"the disk is full.*run the same command again"):
        append(store, 2)
    monkeypatch.undo()
    append(store, 3)
    assert read_stores([tmp_path]).episodes(CELL.id).seed.tolist() == [1, 3]


def test_what_is_no_store_is_named(tmp_path):
    with pytest.raises(StoreError, match="there is no results store"):
        Store.open(tmp_path / "nothing", create=False)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="holds other files"):
        Store.open(tmp_path)
    newer = tmp_path / "newer"
    Store.open(newer)
    (newer / "store.json").write_text(json.dumps({"schema": "diffpolicy_spec.eval", "version": 99}))
    with pytest.raises(StoreError, match="version 99"):
        Store.open(newer)
    (newer / "store.json").write_text("[]")
    with pytest.raises(StoreError, match="not a results store"):
        Store.open(newer)


def test_damaged_files_are_named(tmp_path):
    store = Store.open(tmp_path)
    store.declare(CELL)
    append(store, 1)
    (part,) = (tmp_path / "parts").iterdir()
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(StoreError, match=part.name):
        read_stores([tmp_path])
    part.unlink()
    (cell,) = (tmp_path / "cells").iterdir()
    text = cell.read_text()
    cell.write_text("{}")
    with pytest.raises(StoreError, match=cell.name):
        store.cells()
    cell.write_text(text)
    append(store, 1)
    cell.unlink()
    with pytest.raises(StoreError, match=CELL.id):
        read_stores([tmp_path])


def test_a_cells_id_is_of_what_matters():
    assert replace(CELL, policy="./lift").id == CELL.id
    changes = {"sampler": "x", "policy_fingerprint": "y", "mode": "realtime", "max_steps": 9, "timesteps": (3, 1)}
    ids = {replace(CELL, **{name: value}).id for name, value in changes.items()}
    assert len(ids | {CELL.id}) == len(changes) + 1
    assert Cell.from_dict(json.loads(json.dumps(CELL.to_dict()))) == CELL
    with pytest.raises(ValueError, match="missing"):
        Cell.from_dict({"task": "lift"})
