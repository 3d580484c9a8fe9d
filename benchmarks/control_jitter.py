"""How punctual the control loop is, alone and with a policy inferring beside it.

    python benchmarks/control_jitter.py             # 20, 50, 100, 200 Hz, 30 s each: about 9 minutes
    python benchmarks/control_jitter.py --quick     # shows that it runs

A robot of the shipped Lift policy's keys, read and commanded in no time; limits of position, velocity, acceleration
and jerk on every axis. Beside the loop: "nothing": chunks cost nothing; "policy": the policy makes one chunk after the
other in a ProcessPlanner, so that it computes all the time; "process": Python that computes all the time in the loop's
own process, as a thread of the user's may. Jitter is how much later than its time a period begins, busy what the loop
does in it; skipped are the periods that could not begin in their first half. Needs two cores; the loop's process never
imports torch. Goal: p99 of the jitter at most 1 ms at 100 Hz beside the policy. Writes
benchmarks/results/control_jitter.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.control import (
    ChunkArrived,
    ControlConfig,
    ControlLoop,
    Observation,
    Plan,
    PlanRequest,
    PolicyInfo,
    SafetyConfig,
    Subscriber,
    Tick,
)
from diffpolicy_spec.control.planning import InlinePlanner, ProcessPlanner

RESULTS = Path(__file__).parent / "results"
SAFETY = SafetyConfig(low=-2.0, high=2.0, velocity=1.0, acceleration=10.0, jerk=200.0)
LIFT = {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
SETTLING_S = 1.0


class Robot:
    """Readings of Lift's keys, a slow motion; commands are dropped."""

    def now(self) -> float:
        """s."""
        return time.monotonic()

    def read(self) -> Observation:
        """A reading of now."""
        now = time.monotonic()
        return Observation(now, {key: 0.1 * np.sin(now + np.arange(float(d))) for key, d in LIFT.items()})

    def send(self, action: NDArray[np.float64], time: float) -> None:
        """Nothing."""


class Times(Subscriber):
    """Jitter and busy of the periods of so many seconds after the settling, ms; chunks."""

    def __init__(self, seconds: float, hz: float) -> None:
        self.seconds = seconds
        self.jitter, self.busy = np.empty(round(seconds * hz) + 1), np.empty(round(seconds * hz) + 1)
        self.count = self.first = self.last = self.chunks = 0
        self.since: float | None = None

    def on_tick(self, event: Tick) -> None:
        if event.action is None:
            return
        self.since = event.time if self.since is None else self.since
        if not SETTLING_S <= event.time - self.since < SETTLING_S + self.seconds:
            return
        self.first = self.first or event.index
        self.jitter[self.count], self.busy[self.count] = event.jitter_ms, event.busy_ms
        self.count, self.last = self.count + 1, event.index

    def on_chunk(self, event: ChunkArrived) -> None:
        self.chunks += event.usable > 0


def still(request: PlanRequest) -> Plan:
    """A chunk that costs nothing."""
    return Plan(request.id, np.zeros((15, 10)))


@contextmanager
def busy_thread() -> Iterator[None]:
    """Python that computes all the time, in this process."""
    ended = threading.Event()

    def compute() -> None:
        while not ended.is_set():
            sum(i * i for i in range(1000))

    thread = threading.Thread(target=compute, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def measure(hz: float, beside: str, seconds: float, realtime: bool, policy: str) -> dict[str, Any]:
    """One row: a loop of `seconds` s at `hz` beside "nothing", "policy" or "process"."""
    times = Times(seconds, hz)
    # A new chunk from each observation: as soon as one is there the next one is made.
    config = ControlConfig(hz, policy_hz=20.0, n_action_steps=1, interpolation="linear", realtime=realtime)
    with ExitStack() as stack:
        if beside == "policy":
            planner: Any = ProcessPlanner(policy, warm_up=1, watch=False)
        else:
            planner = InlinePlanner(still, info=PolicyInfo(LIFT, {}, 2, 8, 16, 10, 1))
        if beside == "process":
            stack.enter_context(busy_thread())
        loop = stack.enter_context(ControlLoop(Robot(), planner, config, SAFETY, [times]))
        planner.start()
        while not planner.ready:
            time.sleep(0.05)
        loop.run(seconds + SETTLING_S + 1)
    jitter, busy = times.jitter[: times.count], times.busy[: times.count]
    row: dict[str, Any] = {"hz": hz, "beside": beside, "realtime": realtime, "seconds": seconds, "periods": times.count}
    for name, values in (("jitter_ms", jitter), ("busy_ms", busy)):
        row[name] = {f"p{q:g}": float(np.percentile(values, q)) for q in (50, 90, 99, 99.9)}
        row[name]["max"] = float(values.max())
    row["skipped"] = times.last - times.first + 1 - times.count
    row["chunks_per_s"] = times.chunks / (seconds + SETTLING_S + 1)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """As markdown."""
    out = ["| Hz | beside it | real-time priority | periods | jitter p50 ms | p90 | p99 | p99.9 | max | skipped | "
           "busy p50 ms | p99 | chunks / s |", "| --- " * 13 + "|"]  # fmt: skip
    for row in rows:
        jitter, busy = row["jitter_ms"], row["busy_ms"]
        cells = [f"{row['hz']:g}", row["beside"], "yes" if row["realtime"] else "no", f"{row['periods']:,}"]
        cells += [f"{jitter[name]:.3f}" for name in ("p50", "p90", "p99", "p99.9", "max")]
        cells += [f"{row['skipped']}", f"{busy['p50']:.3f}", f"{busy['p99']:.3f}", f"{row['chunks_per_s']:.1f}"]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="lift", help="a checkpoint with Lift's keys")
    parser.add_argument("--hz", type=float, nargs="+", default=[20.0, 50.0, 100.0, 200.0])
    parser.add_argument("--beside", nargs="+", default=["nothing", "policy"], choices=["nothing", "policy", "process"])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each row")
    parser.add_argument("--realtime", nargs="+", default=["no", "yes"], choices=["no", "yes"], help="SCHED_FIFO")
    parser.add_argument("--quick", action="store_true", help="100 Hz, 3 s")
    parser.add_argument("--output", type=Path, default=RESULTS / "control_jitter")
    args = parser.parse_args()
    if args.quick:
        args.hz, args.seconds, args.realtime = [100.0], 3.0, ["no"]
    rows = []
    for hz in args.hz:
        for beside in args.beside:
            for realtime in args.realtime:
                rows.append(measure(hz, beside, args.seconds, realtime == "yes", args.policy))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    if "torch" in sys.modules:
        raise RuntimeError("the loop's process has imported torch")
    from diffpolicy_spec.eval.results import environment  # imports torch

    text = table(rows)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    whole = {"environment": environment("cpu", 1), "rows": rows}
    args.output.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
