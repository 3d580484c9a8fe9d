"""The shipped Lift policy on a robot that does not wait: MuJoCo in its own process, in real time, at 20 Hz.

    python benchmarks/robot.py                   # 50 episodes for each way
    python benchmarks/robot.py --quick           # 3
    python benchmarks/robot.py --ways loop node  # some of them

loop    the control loop, the policy in a worker process
server  the control loop, the policy in a dps-serve of its own
node    dps-ros-bridge in a process of its own; the robot is heard and commanded through a rosbridge server
plain   the evaluation, where the world waits for the policy

Writes benchmarks/results/robot.{json,md}. Success is to be that of the plain evaluation, on the same seeds; times are
of this machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from programs import policy_server
from robot_drive import LIFT, Driven, by_loop, control_config, plain
from robot_node import by_node

from diffpolicy_spec.envs.realtime import LiveSim

RESULTS = Path(__file__).parent / "results"


def through_loop(sim: LiveSim, seeds: Sequence[int]) -> Driven:
    """The policy in a worker process of this one."""
    from diffpolicy_spec.control.planning import ProcessPlanner

    planner = ProcessPlanner("lift")
    planner.start()
    try:
        return by_loop(sim, planner, seeds, control_config(sim.control_hz))
    finally:
        planner.close()


def through_server(sim: LiveSim, seeds: Sequence[int]) -> Driven:
    """The policy in a server's process."""
    from diffpolicy_spec.server.remote import RemotePlanner

    program, url = policy_server("lift")
    with program:
        planner = RemotePlanner(url)
        planner.start()
        try:
            return by_loop(sim, planner, seeds, control_config(sim.control_hz))
        finally:
            planner.close()


def measure(ways: Sequence[str], seeds: Sequence[int]) -> dict[str, Driven]:
    """Every way on the same seeds, one after another."""
    found: dict[str, Driven] = {}
    loops: dict[str, Callable[[LiveSim, Sequence[int]], Driven]] = {"loop": through_loop, "server": through_server}
    for way in ways:
        if way in loops:
            with LiveSim(LIFT) as sim:
                found[way] = loops[way](sim, seeds)
        else:
            found[way] = by_node(seeds) if way == "node" else plain(seeds)
        print(f"{way}: {found[way].successes}/{len(seeds)}", flush=True)
    return found


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p99 and the largest; None without values."""
    if not values:
        return None
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "max": round(float(max(values)), 2)}


def row(way: str, driven: Driven) -> dict[str, Any]:
    """What is reported of a way."""
    from diffpolicy_spec.eval.intervals import wilson_interval

    episodes = driven.episodes
    steps = sum(e["steps"] for e in episodes)
    low, high = wilson_interval(driven.successes, len(episodes))
    return {
        "way": way,
        "episodes": len(episodes),
        "successes": driven.successes,
        "interval": [round(low, 4), round(high, 4)],
        "steps": steps,
        "late_commands": sum(e.get("late", 0) for e in episodes),
        "held_steps": sum(e.get("held", 0) for e in episodes),
        "sim_late_ms": percentiles([ms for e in episodes for ms in e.get("step_late_ms", [])]),
        "latency_ms": percentiles(driven.latency_ms),
        "loop": None if driven.loop is None else driven.loop.data(),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""

    def pair(values: dict[str, float] | None) -> str:
        return "-" if not values else f"{values['p50']:.1f} / {values['p99']:.1f}"

    out = ["| driven by | success | 95 % | steps | chunk latency ms (p50 / p99) | observation age ms (p50 / p99) | "
           "deadline misses | stale actions a chunk | steps without a new command | simulator late ms (p50 / p99) |",
           "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for r in rows:
        low, high = (100 * x for x in r["interval"])
        cells = [
            r["way"], f"{r['successes']}/{r['episodes']}", f"{low:.0f} to {high:.0f} %",
            f"{r['steps'] / r['episodes']:.0f}",
        ]  # fmt: skip
        loop = r["loop"]
        if loop is None:  # the world waited
            cells += [pair(r["latency_ms"]), "-", "-", "-", "-", "-"]
        else:
            chunks = loop["chunks"]
            cells += [
                pair(loop["latency_ms"]), pair(loop["observation_age_ms"]), f"{loop['deadline_misses']} of {chunks}",
                f"{loop['stale_actions'] / max(chunks, 1):.1f}", f"{r['held_steps']} of {r['steps']}",
                pair(r["sim_late_ms"]),
            ]  # fmt: skip
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def main() -> None:
    """Run all ways, print, write the results."""
    from diffpolicy_spec.eval.results import environment

    ways = ("plain", "loop", "server", "node")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="3 episodes")
    parser.add_argument("--first-seed", type=int, default=400_000)
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways)
    parser.add_argument("--output", type=Path, default=RESULTS / "robot")
    args = parser.parse_args()
    count = 3 if args.quick else args.episodes
    seeds = [args.first_seed + i for i in range(count)]
    found = measure(args.ways, seeds)
    rows = [row(way, driven) for way, driven in found.items()]
    described = {
        "environment": environment("cpu", 1),
        "seeds": seeds,
        "control": asdict(control_config()),
        "rows": rows,
        "episodes": {way: driven.episodes for way, driven in found.items()},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(json.dumps(described, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(table(rows))
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
