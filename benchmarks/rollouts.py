"""What our rollouts cost beside the simulator: environment steps a second, with a policy that costs nothing.

    python benchmarks/rollouts.py               # Lift, 1 to 8 environments; some ten minutes on a quiet machine

The bare loop steps robosuite's own environments one after the other, with the same actions from the same starts. Ours
runs whole episodes of the same length: histories, timed policy calls (a constant chunk), records, and every episode
written to a results store. "num_envs": one environment a process, a policy call for all; "num_workers": processes that
run episodes of their own. With one environment the overhead is that of the same thing done twice in one process. Writes
benchmarks/results/rollouts.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from diffpolicy_spec.envs.config import EnvConfig
from diffpolicy_spec.envs.tasks import get_task
from diffpolicy_spec.eval.cells import Cell
from diffpolicy_spec.eval.processes import Peer
from diffpolicy_spec.eval.results import environment
from diffpolicy_spec.eval.rollout import run_episodes
from diffpolicy_spec.eval.store import Store
from diffpolicy_spec.eval.subscribers import Recorder
from diffpolicy_spec.eval.workers import make_environment
from diffpolicy_spec.eval.worlds import LocalWorld, ProcessWorld, Start
from diffpolicy_spec.policies.diffusion import PolicyOutput
from diffpolicy_spec.rotations import actions_from_rot6d
from diffpolicy_spec.stats import Sample, SampleStats, TimeSplit

RESULTS = Path(__file__).parent / "results"
HORIZON, OBSERVED, EXECUTED, STEPS_OF_CHAIN = 16, 2, 8, 100  # as the shipped policies have them
SEED = 100_000


@dataclass(frozen=True)
class Constant:
    """A policy that always gives the same pose, at no cost.

    Attributes:
        action: (Da,).
        config: what a rollout reads of a policy's.
    """

    action: np.ndarray
    config: Any
    device: torch.device = field(default=torch.device("cpu"))

    def predict_action(self, observations: dict[str, np.ndarray], **_: Any) -> PolicyOutput:
        """The pose, for as many episodes as there are observations."""
        n = len(next(iter(observations.values())))
        plan = torch.from_numpy(np.tile(self.action, (n, HORIZON, 1)))
        none, by_step = torch.zeros(n, dtype=torch.long), torch.zeros(n, STEPS_OF_CHAIN, dtype=torch.long)
        stats = SampleStats(
            torch.arange(STEPS_OF_CHAIN), none, none, none, none, none, none, by_step, by_step, by_step, TimeSplit(),
            finished_at=none + STEPS_OF_CHAIN,
        )
        first = OBSERVED - 1
        return PolicyOutput(plan[:, first : first + EXECUTED], plan, plan, Sample(plan, stats))


def constant(task: str) -> Constant:
    """Hold the first episode's first pose, gripper open."""
    env = make_environment(EnvConfig(task, "absolute_rot6d"), False)
    env.reset(seed=SEED)
    poses = [env.unwrapped.eef_pose(arm) for arm in range(len(get_task(task).robots))]
    env.close()
    action = np.concatenate([np.r_[position, matrix[:2].ravel(), -1.0] for position, matrix in poses])
    config = SimpleNamespace(
        n_obs_steps=OBSERVED, first=OBSERVED - 1, n_action_steps=EXECUTED,
        obs_keys=tuple(key for key, _ in get_task(task).obs),
    )  # fmt: skip
    return Constant(action, config)


class Kept:
    """A results store in a temporary folder, which takes every episode."""

    def __init__(self, folder: Path, task: str, steps: int) -> None:
        self._store, self._described = Store.open(folder), environment("cpu", 1)
        self._cell = self._store.declare(
            Cell(task, "constant", "", "constant", {}, {}, False, False, False, STEPS_OF_CHAIN,
                 tuple(range(STEPS_OF_CHAIN)), "absolute_rot6d", EXECUTED, get_task(task).control_freq, steps)
        )  # fmt: skip
        self.steps = 0

    def __call__(self, record: Any, chunks: Sequence[Any]) -> None:
        self._store.append(self._cell, record, chunks, self._described)
        self.steps += record.steps


def bare(envs: Sequence[Any], action: np.ndarray, seeds: Sequence[int], steps: int) -> int:
    """robosuite's environments in a loop; environment steps taken."""
    raw_action = actions_from_rot6d(action)
    for first in range(0, len(seeds), len(envs)):
        under_way = list(zip(envs, seeds[first:], strict=False))
        for env, seed in under_way:
            env.reset(seed=seed)
        for _ in range(steps):
            for env, _ in under_way:
                env.unwrapped._env.step(raw_action)
    return len(seeds) * steps


def runner(task: str, policy: Constant, steps: int) -> Callable[[int], tuple[Any, Any]]:
    """In a process: runs the episode of a seed."""
    world = LocalWorld([make_environment(EnvConfig(task, "absolute_rot6d"), False)])

    def run(seed: int) -> tuple[Any, Any]:
        recorder = Recorder()
        run_episodes(policy, None, world, [seed], subscribers=[recorder], max_steps=steps)
        return recorder.episodes[0], tuple(recorder.chunks)

    return run


def ask_all(peers: Sequence[Peer], seeds: Sequence[int], kept: Callable[[Any, Any], None]) -> None:
    """Deal the seeds to the processes in turn."""
    for i, seed in enumerate(seeds):
        peers[i % len(peers)].ask(seed)
    for i in range(len(seeds)):
        kept(*peers[i % len(peers)].answer())


def rate(run: Callable[[], int]) -> float:
    """Environment steps a second of one call."""
    start = time.perf_counter()
    steps = run()
    return steps / (time.perf_counter() - start)


def measure(task: str, n: int, steps: int, rounds: int, repeats: int) -> dict[str, Any]:
    """Median rates of n environments, each running `rounds` episodes of `steps` steps; the ways take turns."""
    policy = constant(task)
    seeds = [SEED + i for i in range(n * rounds)]
    envs = [make_environment(EnvConfig(task, "absolute_rot6d"), False) for _ in range(n)]
    local = LocalWorld(envs[:1])
    world = ProcessWorld(make_environment, EnvConfig(task, "absolute_rot6d"), False, size=n)
    peers = [Peer(runner, task, policy, steps, name="runner") for _ in range(n)]
    names = ["bare", *(["one"] if n == 1 else []), "num_envs", "num_workers"]
    found: dict[str, list[float]] = {name: [] for name in names}
    try:
        with tempfile.TemporaryDirectory() as folder:
            kept = Kept(Path(folder) / "store", task, steps)

            def lockstep(where: Any) -> int:
                before = kept.steps
                run_episodes(policy, None, where, seeds, subscribers=[Recorder(kept)], max_steps=steps)
                return kept.steps - before

            def apart() -> int:
                before = kept.steps
                ask_all(peers, seeds, kept)
                return kept.steps - before

            ways: dict[str, Callable[[], int]] = {
                "bare": lambda: bare(envs, policy.action, seeds, steps),
                "one": lambda: lockstep(local),
                "num_envs": lambda: lockstep(world),
                "num_workers": apart,
            }
            world.reset({i: Start(SEED) for i in range(n)})  # wait until all processes are there
            ask_all(peers, seeds[:n], lambda *_: None)
            for _ in range(repeats):
                for name in found:
                    found[name].append(rate(ways[name]))
    finally:
        world.close()
        for peer in peers:
            peer.kill()
        for env in envs:
            env.close()
    row: dict[str, Any] = {"environments": n, **{name: statistics.median(rates) for name, rates in found.items()}}
    if n == 1:
        # Pairs of neighbours in time: a machine that slows down does so for both.
        row["overhead"] = statistics.median(b / o - 1 for b, o in zip(found["bare"], found["one"], strict=True))
        row["overhead_ms_per_step"] = 1e3 * (1 / row["one"] - 1 / row["bare"])
    return row


def table(rows: Sequence[dict[str, Any]], task: str) -> str:
    """Markdown; factors are against the bare loop over as many environments."""
    out = [f"| {task}: environments | bare loop, steps/s | same process | num_envs | num_workers |",
           "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for row in rows:
        cells = [
            f"{row[way]:.0f} ({row[way] / row['bare']:.2f}x)" if way in row else "-"
            for way in ("one", "num_envs", "num_workers")
        ]
        out.append(f"| {row['environments']} | {row['bare']:.0f} | {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="lift", help="a robosuite task")
    parser.add_argument("--environments", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6, 7, 8])
    parser.add_argument("--steps", type=int, default=200, help="of an episode")
    parser.add_argument("--rounds", type=int, default=2, help="episodes of each environment")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "rollouts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for n in args.environments:
        rows.append(measure(args.task, n, args.steps, args.rounds, args.repeats))
        print(json.dumps({k: round(v, 3) for k, v in rows[-1].items()}), flush=True)
    text = table(rows, args.task)
    first = next((row for row in rows if "overhead" in row), None)
    if first is not None:
        text += (
            f"\nOne environment in one process: {100 * first['overhead']:.1f} % slower than the bare loop "
            f"({first['overhead_ms_per_step']:.2f} ms a step), {os.cpu_count()} cores.\n"
        )
    described = {
        "environment": environment("cpu", 1), "task": args.task, "steps": args.steps, "rounds": args.rounds,
        "repeats": args.repeats, "rows": rows,
    }  # fmt: skip
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
    args.output.with_suffix(".md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
