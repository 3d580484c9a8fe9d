"""What the safety layer costs a command, and a log of JSON lines a period.

    python benchmarks/safety.py             # half a minute
    python benchmarks/safety.py --quick     # shows that it runs

`Safety.command` with limits of position, velocity, acceleration and jerk on every axis. "within": a smooth motion that
is sent as it is wanted; "jumps": every axis jumps in every period, so every axis is searched; "hold": no chunk. "log":
what the loop itself spends on a JsonLines subscriber's `on_tick`. Goal: 0.3 ms for a command of 10 axes within the
limits. Writes benchmarks/results/safety.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from diffpolicy_spec.control import JsonLines, SafetyConfig, Tick
from diffpolicy_spec.control.safety import Safety

RESULTS = Path(__file__).parent / "results"
LIMITS = SafetyConfig(low=-1.0, high=1.0, velocity=1.0, acceleration=5.0, jerk=50.0)
WANTED = ("within", "jumps", "hold")


def commands(axes: int, hz: float, wanted: str, count: int) -> np.ndarray:
    """(count,) ms of each command."""
    safety, rng = Safety(LIMITS, axes, hz), np.random.default_rng(0)
    phase = np.arange(axes)
    warm_up, times = 100, []
    for n in range(warm_up + count):
        action = rng.normal(size=axes) if wanted == "jumps" else 0.5 * np.sin(n / hz + phase)
        begun = time.perf_counter()
        safety.command(None if wanted == "hold" and n > warm_up else action, n / hz)
        times.append(time.perf_counter() - begun)
    return 1e3 * np.array(times[warm_up:])


def log(axes: int, count: int) -> np.ndarray:
    """(count,) ms of each period's line, for the loop."""
    times = np.empty(count)
    with tempfile.TemporaryDirectory() as folder, JsonLines(Path(folder) / "run.jsonl") as lines:
        for n in range(count):
            tick = Tick(n, 0.01 * n, 0.1, np.full(axes, 0.1), "chunk", 3, 1.0, 50.0, 0.5)
            begun = time.perf_counter()
            lines.on_tick(tick)
            times[n] = time.perf_counter() - begun
            time.sleep(1e-3)
    return 1e3 * times


def row(what: str, axes: int, hz: float, times: np.ndarray) -> dict[str, Any]:
    """Percentiles, ms."""
    p50, p99 = np.percentile(times, [50, 99])
    return {"what": what, "axes": axes, "hz": hz, "p50_ms": p50, "p99_ms": p99}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| what | axes | Hz | p50 ms | p99 ms |", "|---|---|---|---|---|"]
    lines += [f"| {r['what']} | {r['axes']} | {r['hz']:g} | {r['p50_ms']:.3f} | {r['p99_ms']:.3f} |" for r in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", type=int, nargs="+", default=[7, 10, 20])
    parser.add_argument("--hz", type=float, nargs="+", default=[20.0, 100.0, 200.0])
    parser.add_argument("--count", type=int, default=2000, help="commands of each row")
    parser.add_argument("--quick", action="store_true", help="10 axes, 100 Hz, 100 commands")
    parser.add_argument("--output", type=Path, default=RESULTS / "safety")
    args = parser.parse_args()
    if args.quick:
        args.axes, args.hz, args.count = [10], [100.0], 100
    rows = [
        row(wanted, axes, hz, commands(axes, hz, wanted, args.count))
        for axes in args.axes
        for hz in args.hz
        for wanted in WANTED
    ]
    rows += [row("log", axes, 100.0, log(axes, args.count)) for axes in args.axes]
    from diffpolicy_spec.eval.results import environment  # imports torch

    args.output.parent.mkdir(parents=True, exist_ok=True)
    whole = {"environment": environment("cpu", 1), "rows": rows}
    args.output.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
