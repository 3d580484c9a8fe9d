"""The results store: a folder of finished episodes that survives being killed at any moment.

    store.json            {"schema": "diffpolicy_spec.eval", "version": 1}
    cells/<cell id>.json  what is held fixed while seeds vary, see `Cell`
    parts/<level>-*.parquet   finished episodes, a row each

An episode is a file of its own, which appears whole or not at all. FANOUT files of a level are merged into one of the
next; merged files appear before the small ones go. A kill in between leaves episodes twice, and reading takes each
(cell, seed) once. Several processes may append to one store.
"""

from __future__ import annotations

import errno
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffpolicy_spec.atomic import write_atomically
from diffpolicy_spec.eval.cells import Cell
from diffpolicy_spec.eval.records import ChunkRecord, EpisodeRecord
from diffpolicy_spec.optional import require

__all__ = ["SCHEMA", "VERSION", "Store", "StoreError", "load_parts", "once", "schema"]

SCHEMA, VERSION = "diffpolicy_spec.eval", 1
FANOUT = 64

INTEGERS = ("batch", "calls", "evaluations", "drafted", "accepted", "rejected", "wasted", "waited", "stale", "held")
TIMES = ("latency_ms", "network_ms", "draft_ms", "verify_ms", "other_ms", "sampler_ms")


class StoreError(ValueError):
    """A folder that is no results store, or one that cannot be read or written; the message says what to do."""


def schema() -> Any:
    """The columns of a part.

    `tested_at` and `accepted_at` are (K,), summed over the episode's chunks; the other lists have one entry a chunk.
    `metrics` and `environment` are JSON.
    """
    pa = require("pyarrow", extra="eval")
    columns = {
        "cell": pa.string(), "seed": pa.int64(), "success": pa.bool_(), "max_reward": pa.float64(),
        "steps": pa.int32(), "chunks": pa.int32(), "metrics": pa.string(), "actions_sha": pa.string(),
        "wall_s": pa.float64(), "environment": pa.string(),
        "tested_at": pa.list_(pa.int32()), "accepted_at": pa.list_(pa.int32()),
        "call": pa.list_(pa.int64()), "deadline_missed": pa.list_(pa.bool_()),
        **{name: pa.list_(pa.int32()) for name in INTEGERS},
        **{name: pa.list_(pa.float64()) for name in TIMES},
    }  # fmt: skip
    return pa.schema(list(columns.items()), metadata={"schema": SCHEMA, "version": str(VERSION)})


class Store:
    """A store, open for appending and reading; `Store.open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._environment: dict[int, tuple[Any, str]] = {}

    @classmethod
    def open(cls, path: str | Path, *, create: bool = True) -> Store:
        """The store in a folder, begun if the folder is missing or empty.

        Raises:
            StoreError: the folder holds something else, or a store of another version; or there is none and `create`
                is False.
            OSError: the folder cannot be made.
        """
        path = Path(path)
        about = path / "store.json"
        if not about.exists():
            if path.is_dir() and any(p.name not in ("cells", "parts") for p in path.iterdir() if p.name[0] != "."):
                raise StoreError(f"{path} holds other files and no results store: choose another folder")
            if not create:
                raise StoreError(f"there is no results store in {path}: give the `store` folder of a dps-eval output")
            for folder in ("cells", "parts"):
                (path / folder).mkdir(parents=True, exist_ok=True)
            text = json.dumps({"schema": SCHEMA, "version": VERSION})
            write_atomically(about, lambda temporary: temporary.write_text(text))
        _check_version(about)
        return cls(path)

    def declare(self, cell: Cell) -> str:
        """File a cell, once; returns its id."""
        path = self.path / "cells" / f"{cell.id}.json"
        if not path.exists():
            text = json.dumps({"schema": SCHEMA, "version": VERSION, **cell.to_dict()}, indent=1)
            write_atomically(path, lambda temporary: temporary.write_text(text))
        return cell.id

    def cells(self) -> dict[str, Cell]:
        """Every cell by its id, in the order in which they were declared.

        Raises:
            StoreError: a file that is not a cell.
        """
        found = {}
        for path in sorted((self.path / "cells").glob("*.json"), key=lambda p: (p.stat().st_mtime_ns, p.name)):
            try:
                data = json.loads(path.read_text())
                cell = Cell.from_dict({k: v for k, v in data.items() if k not in ("schema", "version")})
            except (ValueError, AttributeError) as error:
                raise StoreError(f"{path} is damaged ({error}): remove it, then run the evaluation again") from error
            found[cell.id] = cell
        return found

    def append(
        self, cell: str, episode: EpisodeRecord, chunks: Sequence[ChunkRecord], environment: Mapping[str, Any]
    ) -> None:
        """Keep a finished episode; when this returns it is on the disk.

        Args:
            cell: id of a declared cell.
            chunks: the episode's, in their order.
            environment: versions, device, threads, commit, configuration: plain data.

        Raises:
            StoreError: the disk is full or cannot be written; what was there before is untouched.
        """
        pa = require("pyarrow", extra="eval")
        row = {**asdict(episode), "cell": cell, "metrics": json.dumps(episode.metrics) if episode.metrics else ""}
        row["environment"] = self._as_json(environment)
        row |= {name: [getattr(c, name) for c in chunks] for name in ("call", "deadline_missed", *INTEGERS, *TIMES)}
        for name in ("tested_at", "accepted_at"):
            row[name] = [sum(column) for column in zip(*(getattr(c, name) for c in chunks), strict=True)]
        try:
            self._write(0, pa.Table.from_pylist([row], schema=schema()))
            self._merge(0)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "the disk is full: make room" if full else f"{error}: see to it"
            raise StoreError(
                f"cannot write to {self.path}: {what}, then run the same command again; "
                "the episodes finished before are safe"
            ) from error

    def _as_json(self, environment: Mapping[str, Any]) -> str:
        # The same mapping for every episode of a run.
        known = self._environment.get(id(environment))
        if known is None or known[0] is not environment:
            known = self._environment[id(environment)] = (environment, json.dumps(environment, sort_keys=True))
        return known[1]

    def _write(self, level: int, table: Any) -> None:
        parquet = require("pyarrow.parquet", extra="eval")
        path = self.path / "parts" / f"{level}-{uuid.uuid4().hex}.parquet"
        write_atomically(path, lambda temporary: parquet.write_table(table, temporary, compression="zstd"))

    def _merge(self, level: int) -> None:
        """Make one file of a level's, once there are FANOUT; goes on upwards."""
        parquet = require("pyarrow.parquet", extra="eval")
        pa = require("pyarrow", extra="eval")
        paths = sorted((self.path / "parts").glob(f"{level}-*.parquet"))
        if len(paths) < FANOUT:
            return
        try:
            tables = [parquet.read_table(path) for path in paths]
        except FileNotFoundError:  # another process is merging them
            return
        self._write(level + 1, pa.concat_tables(tables))
        for path in paths:
            path.unlink(missing_ok=True)
        self._merge(level + 1)


def load_parts(path: Path, columns: Sequence[str] | None = None) -> Any:
    """All finished episodes of the store at `path` as a pyarrow table, each (cell, seed) once.

    Raises:
        StoreError: a file that cannot be read.
    """
    parquet = require("pyarrow.parquet", extra="eval")
    pa = require("pyarrow", extra="eval")
    wanted = None if columns is None else list(dict.fromkeys([*columns, "cell", "seed"]))
    empty = schema() if wanted is None else pa.schema([schema().field(name) for name in wanted])
    for _ in range(100):
        paths = sorted((path / "parts").glob("*-*.parquet"))
        tables = []
        try:
            for part in paths:
                try:
                    tables.append(parquet.read_table(part, columns=wanted))
                except (pa.ArrowInvalid, OSError) as error:
                    if isinstance(error, FileNotFoundError):
                        raise
                    raise StoreError(f"{part} is damaged ({error}): remove it and run the evaluation again") from error
        except FileNotFoundError:  # merged meanwhile
            continue
        table = pa.concat_tables([empty.empty_table(), *(t.cast(empty) for t in tables)])
        return once(table)
    raise StoreError(f"{path} changes faster than it can be read: wait until the evaluation is over")


def once(table: Any) -> Any:
    """The table's first row of each (cell, seed)."""
    pa = require("pyarrow", extra="eval")
    keys = table.select(["cell", "seed"]).append_column("row", pa.array(range(len(table)), pa.int64()))
    rows = keys.group_by(["cell", "seed"], use_threads=False).aggregate([("row", "min")])["row_min"]
    return table if len(rows) == len(table) else table.take(rows.sort())


def _check_version(about: Path) -> None:
    try:
        data = json.loads(about.read_text())
        name, version = data["schema"], data["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{about} is not a results store's: choose another folder") from error
    if name != SCHEMA or version != VERSION:
        raise StoreError(
            f"{about.parent} is a store of schema {name} version {version}, this package reads {SCHEMA} "
            f"version {VERSION}: use the release that wrote it, or another folder"
        )
