"""What a server on this machine adds to sampling in the robot's own process.

    python benchmarks/server_overhead.py            # 200 chunks each way: about 2 minutes
    python benchmarks/server_overhead.py --quick    # shows that it runs

The shipped Lift policy, the same observation and seed in turn each way: `predict_action` in this process; the engine
(`policies.engine`) in this process; `dps-serve` in a process of its own over loopback, asked by our client, and by
openpi's where it is installed. The order changes with every chunk. "Over predict_action" is the median of the paired
differences, "beside the sampling" what of a request's time the server did not sample: messages, sockets, threads.
Goal: at most 2 ms over sampling in process, at the median. Writes benchmarks/results/server_overhead.{json,md}.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from programs import policy_server
from safetensors.numpy import load_file

from diffpolicy_spec import load_policy
from diffpolicy_spec.eval.results import environment
from diffpolicy_spec.policies.engine import Engine
from diffpolicy_spec.server import Client

HERE = Path(__file__).parent
GOAL_MS = 2.0
WARM_UP = 5
Way = Callable[[dict[str, np.ndarray], int], float]
"""One observation and a seed -> ms that the network sampled, NaN where it is not told."""


def in_process(policy: Any) -> Way:
    """`predict_action` of this process."""

    def draw(obs: dict[str, np.ndarray], seed: int) -> float:
        batch = {key: value[None] for key, value in obs.items()}
        policy.predict_action(batch, generator=torch.Generator().manual_seed(seed))
        return float("nan")

    return draw


def engine_in_process(policy: Any) -> Way:
    """The engine that the server has, in this process and thread."""
    engine = Engine(policy)

    def draw(obs: dict[str, np.ndarray], seed: int) -> float:
        engine.submit(obs, seed=seed)
        while engine.under_way or engine.waiting:
            engine.step()
        return float("nan")

    return draw


def by_our_client(client: Client) -> Way:
    """Over loopback."""

    def draw(obs: dict[str, np.ndarray], seed: int) -> float:
        return client.infer(obs, seed=seed).cost.latency_ms

    return draw


def by_openpis_client(url: str) -> Way:
    """Over loopback; openpi's protocol has no seed, so its noise is another one each time."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    policy = WebsocketClientPolicy(url)

    def draw(obs: dict[str, np.ndarray], seed: int) -> float:
        return float(policy.infer(obs)["server_timing"]["infer_ms"])

    return draw


def lift_observations(policy: Any) -> list[dict[str, np.ndarray]]:
    """Moments of Lift's demonstrations, key -> (To, d), from their stored conditions."""
    conditions = load_file(HERE / "lift_observations.safetensors")["conditions"]
    config = policy.config
    observations = []
    for condition in conditions:
        steps = condition.reshape(config.n_obs_steps, -1)
        parts = np.split(steps, np.cumsum([config.obs_dims[key] for key in config.feature_order])[:-1], axis=1)
        named = zip(config.feature_order, parts, strict=True)
        unnormalize = policy.normalizer.unnormalize
        observations.append({key: unnormalize(key, torch.from_numpy(part)).double().numpy() for key, part in named})
    return observations


def measure(ways: dict[str, Way], observations: list[dict[str, np.ndarray]], chunks: int) -> list[dict[str, Any]]:
    """A row of each way; the ways take turns, and every way is first as often as any other."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    sampled: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for index in range(-WARM_UP, chunks):
        obs = observations[index % len(observations)]
        for turn in range(len(names)):
            name = names[(index + turn) % len(names)]
            start = time.perf_counter()
            network = ways[name](obs, index % 2**31)
            milliseconds = 1e3 * (time.perf_counter() - start)
            if index >= 0:
                took[name].append(milliseconds)
                sampled[name].append(network)
    base = np.array(took[names[0]])
    rows = []
    for name in names:
        times, inside = np.array(took[name]), np.array(sampled[name])
        row: dict[str, Any] = {"way": name, "chunks": chunks}
        row |= {f"p{q}_ms": float(np.percentile(times, q)) for q in (50, 90, 99)}
        row["over_ms"] = float(np.median(times - base))
        row["beside_ms"] = float(np.median(times - inside))
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """As markdown."""
    out = ["| Way | p50 ms | p90 | p99 | over predict_action ms | beside the sampling ms |", "| --- " * 6 + "|"]
    for row in rows:
        beside = "" if np.isnan(row["beside_ms"]) else f"{row['beside_ms']:.2f}"
        over = "" if row is rows[0] else f"{row['over_ms']:+.2f}"
        cells = [row["way"], f"{row['p50_ms']:.2f}", f"{row['p90_ms']:.2f}", f"{row['p99_ms']:.2f}", over, beside]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def paced_ping(client: Client) -> float:
    """ms; slow enough not to be held back by the server's limit of requests a second."""
    time.sleep(0.02)
    return 1e3 * client.ping()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="lift", help="a checkpoint with Lift's keys")
    parser.add_argument("--chunks", type=int, default=200, help="each way")
    parser.add_argument("--quick", action="store_true", help="5 chunks")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "server_overhead")
    args = parser.parse_args()
    chunks = 5 if args.quick else args.chunks
    torch.set_num_threads(1)
    policy = load_policy(args.policy)
    observations = lift_observations(policy)
    server, url = policy_server(args.policy)
    with server, Client(url) as client:
        ways = {
            "predict_action, in process": in_process(policy),
            "engine, in process": engine_in_process(policy),
            "dps-serve, our client": by_our_client(client),
        }
        if importlib.util.find_spec("openpi_client") is not None:
            ways["dps-serve, openpi's client"] = by_openpis_client(url)
        rows = measure(ways, observations, chunks)
        ping_ms = float(np.median([paced_ping(client) for _ in range(20 if args.quick else 200)]))
    text = table(rows)
    ours = next(row for row in rows if row["way"] == "dps-serve, our client")
    met = "met" if ours["over_ms"] <= GOAL_MS else "missed"
    text += f"\nGoal: at most {GOAL_MS:g} ms over sampling in process: {met}. "
    text += f"A ping over the same socket: {ping_ms:.2f} ms.\n"
    args.output.parent.mkdir(parents=True, exist_ok=True)
    whole = {"environment": environment("cpu", 1), "goal_ms": GOAL_MS, "ping_ms": ping_ms, "rows": rows}
    args.output.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
