"""Every sampler at every window, side by side: calls, rows, acceptance, milliseconds, and distance to the exact law.

    python benchmarks/systems.py                          # the shipped Lift policy, one CPU core: about 10 minutes
    python benchmarks/systems.py --device cuda            # the same on a GPU, with more chains
    python benchmarks/systems.py --problem closed_form    # a mixture of two modes, D = 32, whose denoiser is known
    python benchmarks/systems.py --quick                  # seconds: shows that it runs, says little

Calls and distances are of many chains, most of them in batches; milliseconds of single chains, one chunk of every
system after the other, in one run, the device synchronised around every part. There is no previous plan here (that is
closed_loop.py): no warm starts. Systems: systems_list.py. Distances: systems_law.py.

Needs torch, numpy, safetensors and matplotlib and runs from a checkout (PYTHONPATH=.). Writes
benchmarks/results/systems_{cpu,gpu,closed_form}.{json,md,png} and waste_{cpu,gpu,closed_form}.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from systems_list import REFERENCE, systems
from systems_measure import Plan, law_of, measure
from systems_plot import plot
from systems_problems import PROBLEMS, make_problem
from systems_tables import systems_table, waste_table

RESULTS, QUICK_RESULTS = Path(__file__).parent / "results", Path("outputs") / "systems"
WINDOWS: list[int | str] = [8, 16, 32, "all"]

# (problem, on a GPU) -> observations and how much of them; bounded by minutes of one core, or of one GPU.
PLANS: dict[tuple[str, bool], tuple[int, Plan]] = {
    ("lift", False): (40, Plan(1, timed=20, at_once=10, warm_up=1, moments=10, reference=10)),
    ("lift", True): (64, Plan(8, timed=24, at_once=512, warm_up=2, moments=16, reference=16)),
    ("closed_form", False): (1, Plan(1024, timed=20, at_once=251, warm_up=1, moments=1000, reference=1024)),
    ("closed_form", True): (1, Plan(4096, timed=24, at_once=2048, warm_up=2, moments=4096, reference=4096)),
}
QUICK: dict[str, tuple[int, Plan]] = {
    "lift": (2, Plan(1, timed=1, at_once=1, warm_up=0, moments=4, reference=4)),
    "closed_form": (1, Plan(64, timed=2, at_once=62, warm_up=0, moments=64, reference=64)),
}


def window(text: str) -> int | str:
    """A number of rows, or "all"."""
    return text if text == "all" else int(text)


def processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment(device: torch.device) -> dict[str, Any]:
    """What the times depend on."""
    return {
        "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
        "platform": platform.platform(), "processor": processor(), "num_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }  # fmt: skip


def main() -> None:
    """Measure, print as it goes, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=PROBLEMS, default="lift")
    parser.add_argument("--policy", default="lift", help="a checkpoint with the Lift policy's observations")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--windows", type=window, nargs="+", help="default: 8 16 32 all; with --quick: 16")
    parser.add_argument("--quick", action="store_true", help=f"few chains, one window; into {QUICK_RESULTS}")
    parser.add_argument("--output", type=Path, help="folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, begin = torch.device(args.device), time.perf_counter()
    observations, plan = QUICK[args.problem] if args.quick else PLANS[args.problem, device.type == "cuda"]
    problem = make_problem(args.problem, args.policy, observations, device)
    compared = list(systems(args.windows or ([16] if args.quick else WINDOWS)))
    law = law_of(problem, plan)
    rows = measure(problem, compared, law, plan)
    base = next(row for row in rows if row["system"] == REFERENCE)
    for row in rows:
        row["speedup"] = base["ms_median"] / row["ms_median"]

    title = f"{problem.title}, {'GPU' if device.type == 'cuda' else 'CPU'}"
    kind = "closed_form" if args.problem == "closed_form" else "gpu" if device.type == "cuda" else "cpu"
    described = {
        "environment": environment(device) | {"seconds": time.perf_counter() - begin}, "problem": problem.title,
        "chunk": problem.chunk, "observations": problem.observations, "plan": asdict(plan), "null": law.levels,
        "null_distances": law.null.tolist(), "rows": rows,
    }  # fmt: skip
    args.output = args.output or (QUICK_RESULTS if args.quick else RESULTS)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / f"systems_{kind}.json").write_text(json.dumps(described, indent=1, allow_nan=False) + "\n")
    text = systems_table(rows, law.levels, title)
    (args.output / f"systems_{kind}.md").write_text(text)
    (args.output / f"waste_{kind}.md").write_text(waste_table(rows, title))
    plot(rows, law.levels, args.output / f"systems_{kind}.png", title)
    print("\n" + text)


if __name__ == "__main__":
    main()
