"""Policies of published sizes: what upstream computed against what this package computes, side by side.

    UPSTREAM=DIR DIR/venv/bin/python tools/upstream/compare.py                       # a table
    UPSTREAM=DIR DIR/venv/bin/python tools/upstream/compare.py --save                # and benchmarks/results/upstream.*
    UPSTREAM=DIR DIR/venv/bin/python tools/upstream/compare.py published_unet_lowdim

Upstream builds, saves and runs each policy (make_*.py); then a fresh process with this package alone reads the
checkpoint and runs it on the same observations and noise. The fixtures of tests/ stand in the table, too.
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


def published(wanted: list[str]) -> list[dict[str, Any]]:
    """Rows of the policies of published sizes; each one's files are removed before the next."""
    rows = []
    for program in FAMILIES:
        for name in names_of(program):
            if not name.startswith("published_") or (wanted and name not in wanted):
                continue
            folder = Path(tempfile.mkdtemp())
            try:
                run(program, [name], folder)
                rows.append({"policy": name.removeprefix("published_").replace("_", " "), **compared(folder / name)})
            finally:
                shutil.rmtree(folder)
            print(json.dumps(rows[-1]), flush=True)
    return rows


def fixtures() -> list[dict[str, Any]]:
    """Rows of tests/fixtures/upstream."""
    names = sorted(p.parent.name for p in TARGET.glob("*/meta.json"))
    return [{"policy": name, **compared(TARGET / name)} for name in names]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = ("policy", "class", "parameters", "steps", *COLUMNS, "float32 itself")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        million = f"{row['parameters'] / 1e6:.1f} M"
        errors = [f"{row['errors'][c]:.1e}" for c in COLUMNS]
        cells = (row["policy"], f"`{row['class']}`", million, str(row["steps"]), *errors, f"{row['float32']:.1e}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these policies of published sizes")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/upstream.{json,md}")
    args = parser.parse_args()
    found = {"published": published(args.names), "fixtures": [] if args.names else fixtures()}
    text = "**Published sizes**\n\n" + table(found["published"])
    if found["fixtures"]:
        text += "\n**The fixtures of the tests**\n\n" + table(found["fixtures"])
    print(text)
    if args.save:
        (RESULTS / "upstream.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "upstream.md").write_text(text)


if __name__ == "__main__":
    main()
