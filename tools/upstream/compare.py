"""Policies of published sizes: what upstream computed against what this package computes, side by side.

    UPSTREAM=DIR DIR/venv/bin/python tools/upstream/compare.py          # all, and the fixtures of tests
    UPSTREAM=DIR DIR/venv/bin/python tools/upstream/compare.py published_unet_lowdim
    UPSTREAM=DIR DIR/venv/bin/python tools/upstream/compare.py --save   # into benchmarks/results/upstream.*

Upstream builds, saves and runs each policy (make_*.py); then a fresh process with this package alone reads the
checkpoint and runs it on the same observations and noise. Saved rows replace those of the same policies.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from make_fixtures import FAMILIES, HERE, TARGET, names_of, run

ROOT = HERE.parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = ("normaliser", "features", "network", "chunk")


def compared(folder: Path) -> dict[str, Any]:
    """Errors of one policy, from a process that imports this package and no upstream project."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    command = [sys.executable, str(HERE / "compare_one.py"), str(folder)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def published(program: str, name: str) -> dict[str, Any]:
    """A policy of published size; its files, up to 2 GB, are removed afterwards."""
    folder = Path(tempfile.mkdtemp())
    try:
        run(program, [name], folder)
        return compared(folder / name)
    finally:
        shutil.rmtree(folder)


def save(row: dict[str, Any]) -> None:
    """Put a row into upstream.json and write upstream.md anew."""
    path = RESULTS / "upstream.json"
    rows = {r["policy"]: r for r in json.loads(path.read_text())["rows"]} if path.exists() else {}
    rows = dict(sorted((rows | {row["policy"]: row}).items()))
    path.write_text(json.dumps({"rows": list(rows.values())}, indent=1) + "\n")
    (RESULTS / "upstream.md").write_text(tables(list(rows.values())))


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: published sizes, then fixtures."""
    large = [r for r in rows if r["policy"].startswith("published_")]
    small = [r for r in rows if r not in large]
    parts = (("Published sizes", large), ("The fixtures of the tests", small))
    return "\n".join(f"**{title}**\n\n{table(part)}" for title, part in parts if part)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = ("policy", "class", "parameters", "steps", *COLUMNS, "float32 itself")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        million = f"{row['parameters'] / 1e6:.1f} M"
        errors = [f"{row['errors'][c]:.1e}" for c in COLUMNS]
        policy = row["policy"].removeprefix("published_").replace("_", " ")
        cells = (policy, f"`{row['class']}`", million, str(row["steps"]), *errors, f"{row['float32']:.1e}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these: published_..., or fixtures")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/upstream.{json,md}")
    args = parser.parse_args()
    large = {n: program for program in FAMILIES for n in names_of(program) if n.startswith("published_")}
    names = args.names or [*sorted(p.parent.name for p in TARGET.glob("*/meta.json")), *large]
    rows = []
    for name in names:
        errors = published(large[name], name) if name in large else compared(TARGET / name)
        rows.append({"policy": name, **errors})
        if args.save:
            save(rows[-1])
        print(name, rows[-1]["errors"], flush=True)
    print(tables(rows))


if __name__ == "__main__":
    main()
