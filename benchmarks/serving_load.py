"""What robots that share one policy wait for their chunks: 1, 2, 4, 8 of them, calls shared or not.

    python benchmarks/serving_load.py                # -> benchmarks/results/serving_load.json, serving_load.md
    python benchmarks/serving_load.py --quick        # a look, nothing is written

The shipped Lift policy, its own observations, one process. Three patterns: each robot asks every 400 ms (20 Hz, 8 of 16
actions executed), evenly spread over the period or at random phases, and each robot asks again as soon as it is
answered. A robot whose answer is not there when it should ask again asks when it has come. Four ways to serve:

    continuous       Engine: requests begin at any time and share each call; rows are shared out by what they cost
    fixed windows    the same, each chain with the rows that the sampler's window says
    batch when idle  all that wait are drawn as one batch, the next ones when it is done
    one by one       in the order of their coming

A latency is from the time a robot asks until its chunk is there, what stands in front of it included. The ratio is of
the median of all robots to that of one robot served continuously in the same pattern; goal: at most 2.5 with 8 robots.
All ways take turns, so that a slow minute of the machine is everybody's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from diffpolicy_spec import SamplerConfig, load_policy
from diffpolicy_spec.eval.report.markdown import markdown_table
from diffpolicy_spec.eval.results import environment
from diffpolicy_spec.policies import DiffusionPolicy
from diffpolicy_spec.policies.engine import Engine

RESULTS = Path(__file__).resolve().parent / "results"
OBSERVATIONS = Path(__file__).resolve().parent / "lift_observations.safetensors"
PERIOD = 0.4  # s: 8 actions at 20 Hz
GOAL = 2.5

Obs = Mapping[str, NDArray[Any]]


class Server(Protocol):
    """A way to serve robots."""

    def submit(self, obs: Obs, seed: int) -> int:
        """Ask for a chunk; its ticket."""

    def step(self) -> Sequence[tuple[int, int, float]]:
        """Go on; answers: ticket, rows evaluated, chains that shared its calls."""


class Continuous:
    """The engine."""

    def __init__(self, policy: DiffusionPolicy, sampler: SamplerConfig, **options: Any) -> None:
        self._engine = Engine(policy, sampler, **options)

    def submit(self, obs: Obs, seed: int) -> int:
        return self._engine.submit(obs, seed=seed)

    def step(self) -> list[tuple[int, int, float]]:
        return [(f.ticket, f.evaluations, f.shared) for f in self._engine.step()]


class WhenIdle:
    """Batches of what waits, `most` at once."""

    def __init__(self, policy: DiffusionPolicy, sampler: SamplerConfig, most: int) -> None:
        self._policy, self._sampler, self._most = policy, policy.bind(sampler), most
        self._waiting: list[tuple[int, Obs, int]] = []
        self._next = 0

    def submit(self, obs: Obs, seed: int) -> int:
        self._waiting.append((self._next, obs, seed))
        self._next += 1
        return self._next - 1

    def step(self) -> list[tuple[int, int, float]]:
        batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        if not batch:
            return []
        obs = {key: np.stack([one[key] for _, one, _ in batch]) for key in batch[0][1]}
        generators = [torch.Generator().manual_seed(seed) for _, _, seed in batch]
        stats = self._policy.predict_action(obs, sampler=self._sampler, generator=generators).sample.stats
        rows = zip(batch, stats.evaluations.tolist(), strict=True)
        return [(ticket, n, float(len(batch))) for (ticket, _, _), n in rows]


@dataclass
class Cell:
    """What was measured of one way, pattern and number of robots.

    Attributes:
        ms: latencies by robot.
        rows, shared: of each chunk.
        late: chunks asked for later than they should have been.
    """

    ms: dict[int, list[float]] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    shared: list[float] = field(default_factory=list)
    late: int = 0

    def row(self) -> dict[str, float]:
        everyone = np.concatenate([np.array(ms) for ms in self.ms.values()])
        return {
            "chunks": len(everyone),
            "median_ms": float(np.median(everyone)),
            "p99_ms": float(np.percentile(everyone, 99)),
            "worst_robot_ms": max(float(np.median(ms)) for ms in self.ms.values()),
            "rows": float(np.mean(self.rows)),
            "shared": float(np.mean(self.shared)),
            "late": self.late / len(everyone),
        }


def spread(robots: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """First requests evenly over the period."""
    return np.arange(robots) * PERIOD / robots


def at_random(robots: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """First requests anywhere in the period."""
    return rng.uniform(0, PERIOD, robots)


def at_once(robots: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """All at once."""
    return np.zeros(robots)


PATTERNS: dict[str, tuple[Callable[[int, np.random.Generator], NDArray[np.float64]], float]] = {
    "every 400 ms, spread": (spread, PERIOD),
    "every 400 ms, random": (at_random, PERIOD),
    "back to back": (at_once, 0.0),
}
"""First requests, and the period; 0: again as soon as it is answered."""


def serve(
    server: Server, pattern: str, robots: int, chunks: int, moments: Sequence[Obs], seed: int, cell: Cell
) -> None:  # fmt: skip
    """Each robot gets `chunks` chunks; the first of each is not counted."""
    first, period = PATTERNS[pattern]
    due = first(robots, np.random.default_rng(seed)) + time.perf_counter()
    asked, count = dict[int, tuple[float, int]](), [0] * robots
    idle = set(range(robots))
    while idle or asked:
        now = time.perf_counter()
        for robot in [robot for robot in idle if due[robot] <= now]:
            idle.remove(robot)
            number = seed * 10_000 + 100 * robot + count[robot]
            asked[server.submit(moments[number % len(moments)], number)] = due[robot], robot
        if not asked:
            time.sleep(max(0.0, float(due[list(idle)].min()) - time.perf_counter()))
            continue
        for ticket, rows, shared in server.step():
            begin, robot = asked.pop(ticket)
            end = time.perf_counter()
            if count[robot]:
                cell.ms.setdefault(robot, []).append(1e3 * (end - begin))
                cell.rows.append(rows)
                cell.shared.append(shared)
                cell.late += bool(period and end > begin + period)
            count[robot] += 1
            due[robot] = max(begin + period, end)
            if count[robot] <= chunks:
                idle.add(robot)


def observations(policy: DiffusionPolicy) -> list[Obs]:
    """What a robot saw at 64 moments, in its own units."""
    config = policy.config
    normalised = load_file(OBSERVATIONS)["conditions"].unflatten(1, (config.n_obs_steps, config.obs_dim))
    parts = normalised.split([config.obs_dims[key] for key in config.feature_order], dim=2)
    values = {
        key: policy.normalizer.unnormalize(key, part).numpy()
        for key, part in zip(config.feature_order, parts, strict=True)
    }
    return [{key: value[i] for key, value in values.items()} for i in range(len(normalised))]


def measure(
    policy: DiffusionPolicy, sampler: SamplerConfig, robots: Sequence[int], chunks: int, rounds: int
) -> list[dict[str, Any]]:
    """A row for each way, pattern and number of robots."""
    most, moments = max(robots), observations(policy)
    ways: dict[str, Server] = {
        "continuous": Continuous(policy, sampler, max_chains=most),
        "fixed windows": Continuous(policy, sampler, max_chains=most, adaptive=False),
        "batch when idle": WhenIdle(policy, sampler, most),
        "one by one": WhenIdle(policy, sampler, 1),
    }
    for server in ways.values():  # warm-up: kernels, memory, and what the engine learns of acceptance
        serve(server, "back to back", most, 2, moments, 0, Cell())
    cells: dict[tuple[str, str, int], Cell] = {}
    for turn in range(rounds):
        for pattern in PATTERNS:
            for n in robots:
                for name in list(ways)[:: 1 if turn % 2 else -1]:
                    cell = cells.setdefault((pattern, name, n), Cell())
                    serve(ways[name], pattern, n, chunks, moments, turn + 1, cell)
        print(f"turn {turn + 1} of {rounds}", flush=True)
    rows = []
    for pattern in PATTERNS:
        alone = cells[pattern, "continuous", min(robots)].row()["median_ms"]
        for name in ways:
            for n in robots:
                row = cells[pattern, name, n].row()
                rows.append({
                    "pattern": pattern, "served": name, "robots": n, **row, "ratio": row["median_ms"] / alone,
                    "worst_ratio": row["worst_robot_ms"] / alone,
                })  # fmt: skip
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows for people."""
    header = ["pattern", "served", "robots", "median ms", "p99 ms", "worst robot ms", "ratio", "worst robot's ratio",
              "rows a chunk", "chains a call", "late"]  # fmt: skip
    return markdown_table(header, [
        [
            row["pattern"], row["served"], str(row["robots"]), f"{row['median_ms']:.1f}", f"{row['p99_ms']:.1f}",
            f"{row['worst_robot_ms']:.1f}", f"{row['ratio']:.2f}", f"{row['worst_ratio']:.2f}", f"{row['rows']:.0f}",
            f"{row['shared']:.1f}", f"{100 * row['late']:.0f} %",
        ]
        for row in rows
    ], left=2)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="lift", help="a checkpoint with Lift's observations, or a shipped policy")
    parser.add_argument("--sampler", type=json.loads, default={}, help="options of the speculative sampler, as JSON")
    parser.add_argument("--robots", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=8, help="of each robot in a turn")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--name", default="serving_load", help="of the files in benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="one turn of two chunks; nothing is written")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    policy = load_policy(given.policy)
    sampler = SamplerConfig(options=given.sampler)
    chunks, turns = (2, 1) if given.quick else (given.chunks, given.turns)
    rows = measure(policy, sampler, given.robots, chunks, turns)
    text = (
        f"{given.policy}, {policy.bind(sampler).config.method} {given.sampler or 'as it is'}, {given.threads} threads. "
        f"The ratio is to one robot served continuously in the same pattern; goal: at most {GOAL} with 8.\n\n"
        f"{table(rows)}\n"
    )
    print(text)
    if not given.quick:
        found = {"environment": environment("cpu", given.threads), "sampler": given.sampler, "rows": rows}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{given.name}.json").write_text(json.dumps(found, indent=2) + "\n")
        (RESULTS / f"{given.name}.md").write_text(text)


if __name__ == "__main__":
    main()
