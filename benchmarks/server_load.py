"""What each robot sees of a server that serves several: latency over loopback for 1, 2, 4 and 8 of them.

    python benchmarks/server_load.py                # 20 s each: about 5 minutes
    python benchmarks/server_load.py --quick        # shows that it runs

The shipped Lift policy behind `dps-serve` in a process of its own, one torch thread; robots are threads of this
process, each with a connection, observations of Lift's demonstrations and new noise. "Back to back": each asks again
as soon as its chunk is there, so that all of them are always under way. "Every 0.4 s": as a robot at 20 Hz that
executes 8 actions of each chunk, begun at times spread over the 0.4 s; a chunk that takes longer makes it late.
Latency is from the request to the chunk, in the robot's thread. Shared is how many chunks had a part in a network
call, on average. Goal: 8 robots see at most 2.5 times the latency of one, at the median. Writes
benchmarks/results/server_load.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from programs import policy_server
from server_overhead import lift_observations

from diffpolicy_spec import load_policy
from diffpolicy_spec.eval.results import environment
from diffpolicy_spec.server import Client

HERE = Path(__file__).parent
GOAL = 2.5
EVERY_S = 0.4
SETTLING_S = 1.0


class Robot(threading.Thread):
    """Asks for chunks until `until`; latencies (ms), shares of those asked for after `since`, s of time.monotonic."""

    def __init__(
        self, url: str, observations: list[dict[str, np.ndarray]], first: float, since: float, until: float,
        every: float | None,
    ) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self._client, self._observations = Client(url), observations
        self._first, self._since, self._until, self._every = first, since, until, every
        self.latencies: list[float] = []
        self.shared: list[float] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with self._client:
                self._drive()
        except Exception as error:
            self.error = error

    def _drive(self) -> None:
        due, count = self._first, 0
        while True:
            time.sleep(max(0.0, due - time.monotonic()))
            start = time.monotonic()
            if start >= self._until:
                return
            chunk = self._client.infer_chunk(self._observations[count % len(self._observations)])
            end = time.monotonic()
            if start >= self._since:
                self.latencies.append(1e3 * (end - start))
                self.shared.append(chunk.shared)
            count += 1
            due = end if self._every is None else max(end, due + self._every)


def measure(
    url: str, observations: list[dict[str, np.ndarray]], robots: int, seconds: float, every: float | None
) -> dict[str, Any]:
    """A row: so many robots for `seconds` s after the settling."""
    begin = time.monotonic() + 0.5
    since, until = begin + SETTLING_S, begin + SETTLING_S + seconds
    rng = np.random.default_rng(0)
    shuffled = [[observations[i] for i in rng.permutation(len(observations))] for _ in range(robots)]
    apart = 0.0 if every is None else every / robots
    all_of_them = [Robot(url, mine, begin + i * apart, since, until, every) for i, mine in enumerate(shuffled)]
    for robot in all_of_them:
        robot.start()
    for robot in all_of_them:
        robot.join()
        if robot.error is not None:
            raise robot.error
    latencies = np.concatenate([robot.latencies for robot in all_of_them])
    medians = [float(np.median(robot.latencies)) for robot in all_of_them]
    row: dict[str, Any] = {"robots": robots, "every_s": every, "chunks": len(latencies)}
    row |= {f"p{q}_ms": float(np.percentile(latencies, q)) for q in (50, 90, 99)}
    row |= {"worst_robot_p50_ms": max(medians), "chunks_per_s": len(latencies) / seconds}
    return row | {"shared": float(np.mean(np.concatenate([robot.shared for robot in all_of_them])))}


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row beside that of one robot that asks alike."""
    alone = {row["every_s"]: row["p50_ms"] for row in rows if row["robots"] == 1}
    return [row | {"times_one": row["worst_robot_p50_ms"] / alone[row["every_s"]]} for row in rows]


def table(rows: list[dict[str, Any]]) -> str:
    """As markdown."""
    names = "Robots | ask | chunks | p50 ms | p90 | p99 | slowest robot's p50 | times one robot's | chunks / s | shared"
    out = [f"| {names} |", "| --- " * 10 + "|"]
    for row in rows:
        ask = "back to back" if row["every_s"] is None else f"every {row['every_s']:g} s"
        cells = [str(row["robots"]), ask, f"{row['chunks']:,}", *(f"{row[f'p{q}_ms']:.1f}" for q in (50, 90, 99))]
        cells += [f"{row['worst_robot_p50_ms']:.1f}", f"{row['times_one']:.2f}", f"{row['chunks_per_s']:.1f}"]
        out.append("| " + " | ".join([*cells, f"{row['shared']:.1f}"]) + " |")
    return "\n".join(out) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="lift", help="a checkpoint with Lift's keys")
    parser.add_argument("--robots", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each row")
    parser.add_argument("--set", nargs="*", default=[], help="settings of dps-serve, as adaptive=false")
    parser.add_argument("--quick", action="store_true", help="1 and 8 robots, 3 s")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "server_load")
    args = parser.parse_args()
    if args.quick:
        args.robots, args.seconds = [1, 8], 3.0
    if 1 not in args.robots:
        parser.error("--robots needs 1, which the others are held against")
    policy = load_policy(args.policy)
    observations = lift_observations(policy)
    server, url = policy_server(args.policy, *args.set)
    rows = []
    with server:
        for every in (None, EVERY_S):
            for robots in args.robots:
                rows.append(measure(url, observations, robots, args.seconds, every))
                print(json.dumps(rows[-1]), flush=True)
    rows = with_ratios(rows)
    worst = max((row["times_one"] for row in rows if row["robots"] == 8), default=float("nan"))
    text = table(rows)
    if not np.isnan(worst):
        met = "met" if worst <= GOAL else "missed"
        text += f"\nGoal: 8 robots see at most {GOAL:g} times the latency of one: {met}, {worst:.2f} at most.\n"
    args.output.parent.mkdir(parents=True, exist_ok=True)
    whole = {"environment": environment("cpu", 1), "goal": GOAL, "settings": args.set, "rows": rows}
    args.output.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
