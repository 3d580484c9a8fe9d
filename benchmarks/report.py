"""How long the report of 10,000 episodes takes, and how much memory.

    python benchmarks/report.py                 # -> benchmarks/results/report.json, report.md
    python benchmarks/report.py --episodes 1000

A made-up store (report_store.py): two tasks, four samplers in lockstep and three in real time at three rates, about 30
chunks an episode, 100 denoising steps. The report is made in a process of its own, as dps-report does; peak memory is
the operating system's count of that process (VmHWM), and its time is from its start to its end, imports included.
Goal: 30 s and 1 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report_store import SAMPLERS, make_store

from diffpolicy_spec.eval.report.markdown import markdown_table
from diffpolicy_spec.eval.results import environment

RESULTS = Path(__file__).resolve().parent / "results"
CELLS = 2 * len(SAMPLERS) + 3 * 3
_TIMED = """
import json, sys, time
start = time.perf_counter()
from diffpolicy_spec.eval.episode_table import read_stores
from diffpolicy_spec.eval.report import write_reports
imported = time.perf_counter()
read_stores([sys.argv[1]])
read = time.perf_counter()
files = write_reports([sys.argv[1]], sys.argv[2])
written = time.perf_counter()
peak = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
print(json.dumps({"import_s": imported - start, "read_s": read - imported, "report_s": written - read,
                  "peak_mb": peak / 1024, "files": {p.name: p.stat().st_size for p in files}}))
"""


def measure(episodes: int, chunks: int, folder: Path) -> dict[str, object]:
    """Make a store of about so many episodes in `folder` and time its report."""
    each = -(-episodes // CELLS)
    start = time.perf_counter()
    total = make_store(folder / "store", "lift", each, chunks=chunks)
    total += make_store(folder / "store", "pusht", each, chunks=chunks, graded=True, metrics=True, seed=1)
    fast = [s for s in SAMPLERS if s.name != "asd"]
    for seed, hz in enumerate((10.0, 20.0, 50.0)):
        total += make_store(
            folder / "store", "lift", each, chunks=chunks, hz=(hz,), lockstep=False, samplers=fast, seed=seed
        )
    made = time.perf_counter() - start
    size = sum(p.stat().st_size for p in folder.rglob("*.parquet"))
    start = time.perf_counter()
    command = [sys.executable, "-c", _TIMED, str(folder / "store"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall = time.perf_counter() - start
    found = json.loads(done.stdout)
    # `report_s` reads the store once more: what was read to time reading alone is not part of a report.
    found |= {"wall_s": wall - found["read_s"], "made_s": made, "store_mb": size / 1e6}
    return {"episodes": total, "chunks": chunks * total, "cells": CELLS, **found}


def table(found: dict[str, object]) -> str:
    """The result as a markdown table."""
    html = found["files"]["report.html"]  # type: ignore[index]
    row = [
        f"{found['episodes']:,}", f"{found['chunks']:,}", f"{found['cells']}", f"{found['store_mb']:.0f} MB",
        f"{found['read_s']:.1f} s", f"{found['wall_s']:.1f} s", f"{found['peak_mb']:.0f} MB", f"{html / 1000:.0f} kB",
    ]  # fmt: skip
    header = ["episodes", "chunks", "cells", "store", "reading it", "dps-report in all", "peak memory", "report.html"]
    return markdown_table(header, [row], left=0)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--chunks", type=int, default=30, help="of an episode, about")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of report.json and report.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.episodes, given.chunks, Path(folder))
    text = table(found)
    print(text)
    given.output.mkdir(parents=True, exist_ok=True)
    whole = {**found, "environment": environment("cpu", 1)}
    (given.output / "report.json").write_text(json.dumps(whole, indent=1) + "\n")
    (given.output / "report.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
