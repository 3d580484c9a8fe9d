"""A store's episodes as columns: arrays over episodes and, flat, over all their chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.eval.cells import Cell
from diffpolicy_spec.eval.store import INTEGERS, TIMES, Store, StoreError, load_parts, once
from diffpolicy_spec.optional import require

__all__ = ["ChunkTable", "EpisodeTable", "Results", "read_stores"]


@dataclass(frozen=True)
class ChunkTable:
    """C chunks, in the order of their episodes; see `ChunkRecord` for what the columns mean.

    Attributes:
        episode: (C,) row of the chunk's episode.
        call: (C,) number of the policy call; chunks of one batched call share it.
        deadline_missed: (C,) bool.
        columns: the other fields by name, (C,) each.
    """

    episode: NDArray[np.int64]
    call: NDArray[np.int64]
    deadline_missed: NDArray[np.bool_]
    columns: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.episode)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def first_of_call(self) -> NDArray[np.int64]:
        """One chunk of each policy call: rows into this table. Times are the whole call's."""
        return np.sort(np.unique(self.call, return_index=True)[1])


@dataclass(frozen=True)
class EpisodeTable:
    """E episodes of one cell, by rising seed; see `EpisodeRecord`.

    Attributes:
        seed, success, max_reward, steps, wall_s: (E,).
        actions_sha: (E,) hex digits.
        metrics: name -> (E,), NaN where an episode has none.
        environment: (E,) index into `environments`.
        environments: what the episodes ran on, plain data.
        tested_at, accepted_at: (K,) tests by denoising step, and tests passed, over all chunks.
        chunks: all their chunks.
    """

    seed: NDArray[np.int64]
    success: NDArray[np.bool_]
    max_reward: NDArray[np.float64]
    steps: NDArray[np.int64]
    wall_s: NDArray[np.float64]
    actions_sha: NDArray[np.str_]
    metrics: dict[str, NDArray[np.float64]]
    environment: NDArray[np.int64]
    environments: tuple[dict[str, Any], ...]
    tested_at: NDArray[np.int64]
    accepted_at: NDArray[np.int64]
    chunks: ChunkTable

    def __len__(self) -> int:
        return len(self.seed)


@dataclass(frozen=True)
class Results:
    """What stores hold.

    Attributes:
        cells: by id; a cell may have no finished episode yet.
        tables: the episodes of each cell.
    """

    cells: dict[str, Cell]
    tables: dict[str, EpisodeTable]

    def episodes(self, cell: str) -> EpisodeTable:
        """The episodes of a cell."""
        return self.tables[cell]


def read_stores(paths: Sequence[str | Path]) -> Results:
    """Everything in some stores; an episode that several hold counts once.

    Raises:
        StoreError: no store at a path, a damaged one, or episodes of a cell that is not described.
    """
    pa, pc = require("pyarrow", extra="eval"), require("pyarrow.compute", extra="eval")
    stores = [Store.open(path, create=False) for path in paths]
    cells = {key: cell for store in stores for key, cell in store.cells().items()}
    table = once(pa.concat_tables([load_parts(store.path) for store in stores])).combine_chunks()
    unknown = sorted(set(pc.unique(table["cell"]).to_pylist()) - set(cells))
    if unknown:
        raise StoreError(f"episodes of cells {', '.join(unknown)} are there, but not their cells/<id>.json")
    tables = {
        key: _episodes(table.filter(pc.equal(table["cell"], key)).sort_by("seed").combine_chunks(), cell)
        for key, cell in cells.items()
    }
    return Results(cells, tables)


def _episodes(table: Any, cell: Cell) -> EpisodeTable:
    def column(name: str) -> NDArray[Any]:
        return table[name].to_numpy()

    lengths = column("chunks").astype(np.int64)

    def flat(name: str) -> NDArray[Any]:
        return np.asarray(table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False))

    def pooled(name: str) -> NDArray[np.int64]:
        values, steps = flat(name), len(cell.timesteps)
        return values.reshape(-1, steps).sum(axis=0) if len(values) else np.zeros(steps, np.int64)

    encoded = table["environment"].combine_chunks().dictionary_encode()
    environments = tuple(json.loads(text) for text in encoded.dictionary.to_pylist())
    return EpisodeTable(
        seed=column("seed"),
        success=column("success").astype(bool),
        max_reward=column("max_reward"),
        steps=column("steps").astype(np.int64),
        wall_s=column("wall_s"),
        actions_sha=column("actions_sha").astype(str),
        metrics=_metrics(table["metrics"].to_pylist()),
        environment=encoded.indices.to_numpy().astype(np.int64),
        environments=environments,
        tested_at=pooled("tested_at"),
        accepted_at=pooled("accepted_at"),
        chunks=ChunkTable(
            episode=np.repeat(np.arange(len(lengths)), lengths),
            call=flat("call"),
            deadline_missed=flat("deadline_missed").astype(bool),
            columns={name: flat(name) for name in (*INTEGERS, *TIMES)},
        ),
    )


def _metrics(texts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    rows = [json.loads(text) if text else {} for text in texts]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, np.nan) for row in rows], dtype=np.float64) for name in names}
