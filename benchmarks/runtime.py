"""What the parallel runtime is worth on a machine: calls, whole chunks, batches, floors; one runtime a table.

    python benchmarks/runtime.py --output benchmarks/results/runtime_cpu                   # one core: about 8 minutes
    python benchmarks/runtime.py --device cuda --output benchmarks/results/runtime_cuda
    python benchmarks/runtime.py --quick                                                   # shows that it runs

Parts, also alone, with --parts:

    networks   c(n) of every network, as it is and laid out, in every mode and dtype, and its floor
    composed   samplers and windows for every network: rounds of the trained policy, charged its c(n)
    chunks     whole chunks of the shipped policy by every sampler, in turns, and by the quickest that `composed` found
    batches    chunks a second for 8 and 64 robots
    reports    what graphs and fixed shapes cost to make ready

Networks and c(n): runtime_networks.py, floors: runtime_floors.py, chunks: runtime_chunks.py, composition:
runtime_composed.py. Modes are those of `RuntimeConfig`; calls in mode static are eager ones.

Needs torch, numpy and safetensors, and runs from a checkout (PYTHONPATH=.); diffusers' own loop is timed where it is
installed. Writes OUTPUT.{json,md} after every part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runtime_chunks import Trained
from runtime_floors import DTYPES, measure_machine
from runtime_networks import NETWORKS, ROWS, TRAINED
from runtime_parts import PARTS, Plan, Run
from systems_tables import markdown

from diffpolicy_spec.runtime.config import MODES, RuntimeConfig

FULL = Plan(
    share=1.0, budget=12.0, chunks=20, searched=6, windows=(4, 6, 8, 12, 16, 24, 32, 48, 64, "all"),
    ours=(16, 32, "all"), batches=((8, 2), (64, 1)),
)  # fmt: skip
QUICK = Plan(share=0.25, budget=1.0, chunks=2, searched=1, windows=(16,), ours=(32,), batches=((8, 1),), again=1)
UNASKED = {"cpu": ["eager", "static"], "cuda": ["eager", "static", "graphs"]}
SETTINGS = ("chunks", "searched", "budget")


def told(*command: str) -> str | None:
    """What a command prints, run where this file is; None where it cannot be run."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, cwd=here)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def environment(device: torch.device) -> dict[str, Any]:
    """What the times depend on."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    changed = told("git", "status", "--porcelain", "--untracked-files=no")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")),
                          platform.machine()),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0],
        "driver": told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda, "torch": torch.__version__, "numpy": np.__version__,
        "python": platform.python_version(), "platform": platform.platform(),
        "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
        "commit": f"{told('git', 'rev-parse', 'HEAD') or 'unknown'}{'-dirty' if changed else ''}",
    }  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: eager static, and graphs on a GPU")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--rounds", type=int, default=1, help="of a chunk in one graph, see RuntimeConfig")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, help="default: all; with --quick the first two")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="n of c(n)")
    parser.add_argument("--windows", nargs="+", help='to search: numbers, or "all"')
    for name in SETTINGS:
        parser.add_argument(f"--{name}", type=type(getattr(FULL, name)), help="see runtime_parts.Plan")
    parser.add_argument("--quick", action="store_true", help="few of everything")
    parser.add_argument("--output", type=Path, default=Path("outputs") / "runtime")
    return parser.parse_args()


def planned(args: argparse.Namespace) -> Plan:
    """How much is measured."""
    plan = QUICK if args.quick else FULL
    changed = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    if args.windows:
        changed["windows"] = tuple(w if w == "all" else int(w) for w in args.windows)
    return Plan(**vars(plan) | changed)


def main() -> None:
    """Measure, print as it goes, write."""
    args, begin = arguments(), time.perf_counter()
    device, plan = torch.device(args.device), planned(args)
    torch.set_num_threads(args.threads)
    modes = args.modes or UNASKED[device.type]
    if any("compiled" in mode for mode in modes):
        # c(n) compiles one function for every network and number of rows; from the ninth on it would run eagerly.
        torch._dynamo.config.recompile_limit = 1024
    runtimes = [RuntimeConfig(mode, args.rounds, None if dtype == "float32" else dtype)
                for dtype in args.dtypes for mode in dict.fromkeys(["eager", *modes])]  # fmt: skip
    about = environment(device)
    machine = measure_machine(device, list(dict.fromkeys(["float32", *args.dtypes])), share=plan.share)
    networks = args.networks or list(NETWORKS)[: 2 if args.quick else None]
    run = Run(device, plan, machine, Trained(device), networks, args.rows, runtimes)
    rates = {f"{name} matrix product, GFLOP/s": f"{rate / 1e9:.0f}" for name, rate in machine.rates.items()}
    shown = {key: str(value) for key, value in about.items() if value is not None and key != "tf32"}
    shown |= {"large read or copy, GB/s": f"{machine.bandwidth / 1e9:.1f}"} | rates
    run.write("Machine", markdown(["what", "value"], [[key, value] for key, value in shown.items()]))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for part in [name for name in PARTS if name in args.parts]:
        PARTS[part](run)
        measured = {"bandwidth": machine.bandwidth, "rates": machine.rates}
        stored = {"environment": about | {"seconds": time.perf_counter() - begin}, "machine": measured,
                  "plan": vars(plan), "trained": TRAINED, **run.results}  # fmt: skip
        args.output.with_suffix(".json").write_text(json.dumps(stored, indent=1, allow_nan=False) + "\n")
        args.output.with_suffix(".md").write_text("\n".join(run.sections))
    print(f"\n{time.perf_counter() - begin:.0f} s; wrote {args.output}.json and .md")


if __name__ == "__main__":
    main()
