"""How long load_policy takes for networks of published size, and how much memory, in every format that is read.

    python benchmarks/loading.py                       # -> benchmarks/results/loading.json, loading.md
    python benchmarks/loading.py --sizes unet --formats native diffusion_policy

Random weights in the layouts of real files: diffusion_policy's .ckpt has the config of a checkpoint that its own code
wrote (tests/fixtures/upstream) with the network's sizes changed, and holds trained weights, their running average and
Adam's state as theirs does, four times what is loaded; robomimic's .pth is one that its own code wrote. The others are
written from these.

Each file is loaded in a process of its own. *Reading* is reading as many bytes as the weights that are used, from the
same file; *cold* after its pages were dropped from the system's cache, *warm* with them there. *Beyond reading* is the
rest of load_policy. *Peak* is the operating system's high-water mark (VmHWM) above what the process held before, in
sizes of the loaded float32 weights. Goals: under 5 s beyond reading, and a peak below 2.2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffpolicy_spec import load_policy
from diffpolicy_spec.checkpoints.lerobot import write_lerobot
from diffpolicy_spec.checkpoints.pickles import StoredTensor, read_pickled
from diffpolicy_spec.eval.report.markdown import markdown_table
from diffpolicy_spec.eval.results import environment
from diffpolicy_spec.policies.build import build_network
from diffpolicy_spec.policies.config import PolicyConfig, TransformerConfig, UnetConfig

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "tests"))

# Size -> (what it is, the fixture whose config and encoders it has, changes of the network's sizes).
SIZES: dict[str, tuple[str, str, UnetConfig | TransformerConfig]] = {
    "transformer": ("Transformer, low-dim", "dp_transformer_lowdim", TransformerConfig()),
    "unet": ("U-Net, low-dim", "dp_unet_lowdim_global", UnetConfig()),
    "image": (
        "U-Net, images",
        "dp_unet_hybrid_image",
        UnetConfig(down_dims=(512, 1024, 2048), diffusion_step_embed_dim=128),
    ),
}
FORMATS = ("diffusion_policy", "native", "lerobot", "robomimic")

_TIMED = """
import ctypes, gc, json, os, sys, time
from pathlib import Path
path, used, cold = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "cold"
import torch
from diffpolicy_spec import load_policy
from diffpolicy_spec.tools import describe
torch.set_num_threads(1)
load_policy("lift"); describe("lift")  # what is imported, and torch's pools
files = [path] if path.is_file() else sorted(path.iterdir())

def forget():
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        if cold:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while os.read(descriptor, 1 << 24):
                pass
        os.close(descriptor)

def status(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))

forget()
buffer, left, start = bytearray(1 << 24), used, time.perf_counter()
for file in files:
    with open(file, "rb", buffering=0) as stream:
        while left > 0 and (n := stream.readinto(buffer)):
            left -= n
read = time.perf_counter() - start
forget()
gc.collect()
ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back: it must not be taken for what loading takes
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
start = time.perf_counter()
policy = load_policy(path)
loaded = time.perf_counter() - start
peak = status("VmHWM") - before
modules = [m for m in (policy.network, policy.encoder) if m is not None]
weights = sum(t.nbytes for m in modules for t in m.state_dict().values())
parameters = sum(p.numel() for m in modules for p in m.parameters())
del policy, modules
start = time.perf_counter()
describe(path)
print(json.dumps({"read_s": read, "load_s": loaded, "peak_bytes": peak, "weight_bytes": weights,
                  "parameters": parameters, "inspect_s": time.perf_counter() - start}))
"""


def payload_of(fixture: str, sizes: UnetConfig | TransformerConfig, folder: Path) -> dict[str, Any]:
    """What diffusion_policy would save of a network of these sizes: config, weights, their average, Adam's state."""
    from upstream_fixtures import fixture as unpack  # type: ignore[import-not-found]

    path = unpack(fixture, folder)[0]
    payload = _loaded({k: v for k, v in read_pickled(path).items() if k in ("cfg", "state_dicts")})
    kind = "unet" if isinstance(sizes, UnetConfig) else "transformer"
    config: PolicyConfig = replace(load_policy(path).config, **{kind: sizes})  # type: ignore[arg-type]
    policy = payload["cfg"]["policy"]
    # Hybrid policies have their network's sizes beside everything else, the others in `model`.
    target = policy.get("model", policy)
    target.update({k: list(v) if isinstance(v, tuple) else v for k, v in vars(sizes).items() if k in target})
    states = payload["state_dicts"]
    network = {f"model.{name}": value for name, value in build_network(config).state_dict().items()}
    kept = {n: v for n, v in states["ema_model"].items() if not n.startswith("model.")}
    average = {**network, **kept}
    trained = {name: value.clone() for name, value in average.items()}
    moments = {
        i: {"step": torch.tensor(1.0), "exp_avg": value.clone(), "exp_avg_sq": value.clone()}
        for i, value in enumerate(average.values())
        if value.is_floating_point()
    }
    return {
        "cfg": payload["cfg"],
        "state_dicts": {"model": trained, "ema_model": average, "optimizer": {"state": moments, "param_groups": []}},
        "pickles": {"global_step": b"\x80\x02K\x01.", "epoch": b"\x80\x02K\x01."},
    }


def _loaded(value: Any) -> Any:
    if isinstance(value, StoredTensor):
        return value.load()
    if isinstance(value, dict):
        return {key: _loaded(item) for key, item in value.items() if key != "optimizer"}
    return [_loaded(item) for item in value] if isinstance(value, list) else value


def written(size: str, formats: list[str], folder: Path) -> Iterator[tuple[str, Path]]:
    """(format, path) of each format that has such a policy; a file is removed when the next one is asked for."""
    from upstream_fixtures import fixture

    _, name, sizes = SIZES[size]
    source = folder / f"{size}.ckpt"
    torch.save(payload_of(name, sizes, folder / "fixture"), source)
    if "diffusion_policy" in formats:
        yield "diffusion_policy", source
    if "native" in formats:
        load_policy(source).save(folder / f"{size}_native")
        yield "native", folder / f"{size}_native"
    if "lerobot" in formats and size != "transformer":  # LeRobot has no such policy
        write_lerobot(load_policy(source), folder / f"{size}_lerobot")
        yield "lerobot", folder / f"{size}_lerobot"
    if "robomimic" in formats and size == "unet":
        yield "robomimic", fixture("robomimic_full_size", folder / "fixture")[0]


def measure(path: Path, repeats: int) -> dict[str, Any]:
    """Medians over processes, cold and warm."""
    runs: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
    used = 1 << 20
    for _ in range(repeats):
        for kind, found in runs.items():
            command = [sys.executable, "-W", "ignore", "-c", _TIMED, str(path), str(used), kind]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"loading {path.name} failed: {done.stderr[-2000:]}")
            found.append(json.loads(done.stdout))
            if used == 1 << 20:  # how much there is to read is known when it has been loaded once
                used = found[-1]["weight_bytes"]
                found.clear()
    for kind, found in runs.items():
        if not found:
            command = [sys.executable, "-W", "ignore", "-c", _TIMED, str(path), str(used), kind]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout))
    first = runs["warm"][0]
    out = {"parameters": first["parameters"], "weight_mb": first["weight_bytes"] / 1e6}
    for kind, found in runs.items():
        out |= {f"{kind}_{key}": statistics.median(r[key] for r in found) for key in ("read_s", "load_s", "inspect_s")}
        out[f"{kind}_beyond_s"] = statistics.median(r["load_s"] - r["read_s"] for r in found)
    both = [*runs["cold"], *runs["warm"]]
    out["peak"] = max(r["peak_bytes"] / r["weight_bytes"] for r in both)
    return out


def table(rows: list[dict[str, Any]]) -> str:
    """The result as a markdown table."""
    heads = ["network", "parameters", "format", "file", "reading, cold", "beyond reading", "reading, warm",
             "beyond reading, warm", "peak / weights", "dps-inspect"]  # fmt: skip
    cells = [
        [r["network"], f"{r['parameters'] / 1e6:.0f} M", r["format"], f"{r['file_mb']:,.0f} MB",
         f"{r['cold_read_s']:.2f} s", f"{r['cold_beyond_s']:.2f} s", f"{r['warm_read_s']:.2f} s",
         f"{r['warm_beyond_s']:.2f} s", f"{r['peak']:.2f}", f"{r['warm_inspect_s']:.2f} s"]
        for r in rows
    ]  # fmt: skip
    return markdown_table(heads, cells, left=3)


def main() -> None:
    """Write, load, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are written; default: a temporary folder")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of loading.json and loading.md")
    given = parser.parse_args()
    rows = []
    for size in given.sizes:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            for format, path in written(size, given.formats, Path(folder)):
                files = [path] if path.is_file() else list(path.iterdir())
                row = {"network": SIZES[size][0], "format": format,
                       "file_mb": sum(f.stat().st_size for f in files) / 1e6}  # fmt: skip
                rows.append({**row, **measure(path, given.repeats)})
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    text = table(rows)
    print(f"\n{text}")
    given.output.mkdir(parents=True, exist_ok=True)
    whole = {"rows": rows, "repeats": given.repeats, "environment": environment("cpu", 1)}
    (given.output / "loading.json").write_text(json.dumps(whole, indent=1) + "\n")
    (given.output / "loading.md").write_text(f"# Loading checkpoints\n\n{text}\n")


if __name__ == "__main__":
    main()
