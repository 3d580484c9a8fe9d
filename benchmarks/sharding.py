"""Whether rows shared out over devices are quicker than one device: c(n) both ways, and from which n on it pays.

    python benchmarks/sharding.py                          # CPU: 2 processes of one thread each, by gloo
    python benchmarks/sharding.py --device cuda --size 4   # 2 ... 4 GPUs: one process, and processes by nccl

Networks: the shipped Lift policy's, and random weights of the published sizes, laid out for inference. On CPU the same
cores can also work as threads of one process, which is what sharing out has to beat there. "From" is the fewest rows
from which on, at all larger sizes, a split call is at least 5 % quicker than one device of the same kind. Needs torch,
numpy and this repository; writes benchmarks/results/sharding.{json,md}, with the machine's load when it began: on a
machine that has other work, messages wait for the scheduler.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from diffpolicy_spec import load_policy
from diffpolicy_spec.eval.results import environment
from diffpolicy_spec.policies.inference import inference_network
from diffpolicy_spec.policies.transformer import TransformerForDiffusion
from diffpolicy_spec.policies.unet import ConditionalUnet1D
from diffpolicy_spec.runtime.distributed import DistributedDenoise, serve
from diffpolicy_spec.runtime.peers import join_peers
from diffpolicy_spec.runtime.replicas import replicate
from diffpolicy_spec.runtime.split import SplitTimes, measure_split

RESULTS = Path(__file__).parent / "results"
STEPS, CHUNK, CONDITION = 100, (16, 10), 46
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "shipped Lift U-Net, 2.5M": lambda: load_policy("lift").network,
    "U-Net, 66M": lambda: ConditionalUnet1D(10, CONDITION),
    "Transformer, 9M": lambda: TransformerForDiffusion(10, 16, 2, CONDITION // 2),
}


def condition_of(module: Any, device: torch.device) -> torch.Tensor:
    """One observation; what it says does not matter to the clock."""
    return torch.zeros(1, module.global_cond_dim, device=device)


def in_process(rank: int, args: argparse.Namespace, name: str, size: int, threads: int, port: int, out: Any) -> None:
    """One rank: the first measures, the others serve. `size` = 1: both times are of this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda", rank) if args.device == "cuda" else torch.device("cpu")
    module = NETWORKS[name]().eval().requires_grad_(False).to(device)
    network = inference_network(module, STEPS)
    peers = join_peers(device, rank=rank, size=size, address=f"tcp://127.0.0.1:{port}", seconds=120.0)
    if rank:
        serve(peers, module, network)
    else:
        with DistributedDenoise(peers, module, network) as denoise:
            denoise.load(condition_of(module, device))
            split = denoise.split if size > 1 else denoise.alone
            out.put(measure_split(denoise.alone, split, CHUNK, device, rows=args.rows, repeats=args.repeats))
    dist.destroy_process_group()


def by_processes(args: argparse.Namespace, name: str, size: int, threads: int) -> SplitTimes:
    """Start the ranks and wait for what rank 0 measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = mp.get_context("spawn").SimpleQueue()
    mp.spawn(in_process, (args, name, size, threads, port, out), nprocs=size)
    return out.get()


def by_replicas(args: argparse.Namespace, name: str, size: int) -> SplitTimes:
    """All GPUs from this process."""
    devices = [torch.device("cuda", i) for i in range(size)]
    module = NETWORKS[name]().eval().requires_grad_(False).to(devices[0])
    replicas = replicate(module, devices, lambda m: inference_network(m, STEPS))
    replicas.load(condition_of(module, devices[0]))
    return measure_split(replicas.alone, replicas.split, CHUNK, devices[0], rows=args.rows, repeats=args.repeats)


def measured(args: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Every way to share a network's rows out."""
    found = []
    for size in range(2, args.size + 1):
        ways = {f"{size} processes": by_processes(args, name, size, args.threads)}
        if args.device == "cuda":
            ways[f"{size} replicas"] = by_replicas(args, name, size)
        else:
            threads = by_processes(args, name, 1, size * args.threads)
            alone = ways[f"{size} processes"].alone
            ways[f"{size} threads"] = SplitTimes(threads.rows, alone, threads.alone)
        for way, times in ways.items():
            milliseconds = {f"{what}_ms": [1e3 * s for s in getattr(times, what)] for what in ("alone", "split")}
            found.append({"network": name, "way": way, "rows": times.rows, **milliseconds, "from": times.from_rows})
            print(table(found[-1:], head=len(found) == 1), flush=True)
    return found


def table(found: list[dict[str, Any]], head: bool = True) -> str:
    """Markdown: ms of a call, alone -> split, by rows."""
    lines = []
    if head:
        titles = ["network", "shared out over", *(f"n = {n}" for n in found[0]["rows"]), "from"]
        lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for f in found:
        cells = [f"{a:.1f} → {s:.1f}" for a, s in zip(f["alone_ms"], f["split_ms"], strict=True)]
        lines.append(f"| {' | '.join([f['network'], f['way'], *cells, str(f['from'] or 'never')])} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", type=int, default=2, help="most devices; on CPU, most processes")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS / "sharding")
    args = parser.parse_args()
    count = torch.cuda.device_count() if args.device == "cuda" else os.cpu_count() or 1
    if not 2 <= args.size <= count:
        parser.error(f"--size {args.size}: needs 2 or more, and there are {count} {args.device} devices or cores")
    load = os.getloadavg()[0]
    found = [row for name in args.networks for row in measured(args, name)]
    described = {"environment": environment(torch.device(args.device), args.threads), "load": load, "rows": found}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
    args.output.with_suffix(".md").write_text(table(found) + "\n")


if __name__ == "__main__":
    main()
