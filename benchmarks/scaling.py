"""How cost grows: sequential calls against the number of steps K and the number of action dimensions D.

    python benchmarks/scaling.py                 # one CPU core: K = 10 ... 1000 at D = 16, D = 2 ... 1024 at K = 100
    python benchmarks/scaling.py --device cuda   # the same on a GPU

The targets' denoisers are closed forms, so every chain is a real DDPM chain and calls are the samplers' own. All K are
respacings of one chain of 1000 steps with the same two ends: the same path, cut finer. Fits: log mean calls = const +
exponent log K (or D) by least squares, with a bootstrap standard error over chains.

ASD's bound is calls = O(K^(2/3)). What to expect on a path that is cut finer: i steps behind a frozen x0 the draft is
off by |v_i| ~ sqrt(i) / K. Tested step by step a window ends where sum |v_i| ~ L^(3/2) / K ~ 1: calls ~ K^(1/3). As a
block it ends where sum |v_i|^2 ~ L^2 / K^2 ~ 1: calls need not grow with K.

Needs torch and numpy; matplotlib for the picture. Writes benchmarks/results/scaling.{json,md,png}.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffpolicy_spec import BoundSampler, Denoise, Noise, SamplerConfig, Schedule, bind, calibrate, draw_noise

RESULTS = Path(__file__).parent / "results"
STEPS, DIM_OF_STEPS = (10, 20, 50, 100, 200, 500, 1000), 16
DIMS, STEPS_OF_DIMS = (2, 8, 32, 128, 512, 1024), 100
WINDOWS: dict[str, int | str] = {"infinite": "all", "32": 32}
MAX_GAIN_DIM = 128
CHAIN = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace",
         "prediction_type": "sample", "clip_sample": False}  # fmt: skip

SAMPLERS: dict[str, dict[str, Any]] = {
    "ASD, two-call (parent)": {"drafter": "parent"},
    "frozen drift": {"drafter": "drift"},
    "nearest": {"drafter": "nearest"},
    "nearest, block verification": {"drafter": "nearest", "verifier": "block"},
    "picard": {"drafter": "picard", "memory": 0, "gain": False},
    "picard + secant": {"drafter": "picard", "memory": 3, "gain": False},
    "picard + secant, block verification": {"drafter": "picard", "memory": 3, "gain": False, "verifier": "block"},
    "picard + secant + gain": {"drafter": "picard", "memory": 1, "gain": True},
}


@dataclass(frozen=True)
class Target:
    """sum_i weights_i N(means_i, diag(sds_i^2)) in D dimensions.

    Diagonal without loss: states and drafts turn with the coordinates, and nothing is clipped.

    Attributes:
        weights: (M,); means, sds: (M, D); all float64.
    """

    weights: Tensor
    means: Tensor
    sds: Tensor

    def denoiser(self, schedule: Schedule, device: torch.device) -> Denoise:
        """E[x0 | x] for rows that stand at any steps: weighted by mode, mu + gain (x - sqrt(abar) mu)."""
        abar = schedule.abar[:, None, None]
        marginal = abar * self.sds**2 + 1 - abar  # (K, M, D) variances of x
        level = self.weights.log() - 0.5 * marginal.log().sum(-1)
        k_of_t = torch.zeros(schedule.num_train_timesteps, dtype=torch.long)
        k_of_t[schedule.timesteps] = torch.arange(schedule.num_steps)
        centers, gain = abar.sqrt() * self.means, abar.sqrt() * self.sds**2 / marginal
        k_of_t, means = k_of_t.to(device), self.means.to(device, torch.float32)
        centers, gain, precision, level = (y.to(device, torch.float32) for y in (centers, gain, 1 / marginal, level))

        def denoise(x: Tensor, t: Tensor, chain: Tensor) -> Tensor:
            flat, k = x.flatten(1), k_of_t[t]
            if len(means) == 1:
                return (means[0] + gain[k, 0] * (flat - centers[k, 0])).view_as(x)
            off = [flat - centers[k, i] for i in range(len(means))]
            logits = [level[k, i] - 0.5 * (d.square() * precision[k, i]).sum(-1) for i, d in enumerate(off)]
            share = torch.softmax(torch.stack(logits, -1), -1)
            out = share @ means
            for i, d in enumerate(off):
                out.addcmul_(share[:, i : i + 1] * gain[k, i], d)
            return out.view_as(x)

        return denoise


def smooth_gaussian(dim: int) -> Target:
    """Smooth chunks: principal standard deviations fall like 1 / i, 0.3 a coordinate in root mean square."""
    falling = 1 / torch.arange(1, dim + 1, dtype=torch.float64)
    sds = 0.3 * dim**0.5 * falling / falling.norm()
    noise = torch.from_numpy(np.random.default_rng(dim).normal(size=dim))
    return Target(torch.ones(1, dtype=torch.float64), (noise * sds)[None], sds[None])


def four_modes(dim: int) -> Target:
    """Four unequal ways to do it, 0.7 a coordinate apart, each with noise of 0.15 in every direction."""
    means = 0.5 * torch.from_numpy(np.random.default_rng(dim + 1).normal(size=(4, dim)))
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    return Target(weights, means, torch.full((4, dim), 0.15, dtype=torch.float64))


TARGETS = {"smooth Gaussian": smooth_gaussian, "four modes": four_modes}


@dataclass(frozen=True)
class Cell:
    """Calls and rows of one sampler on one chain; calls: one number per chain."""

    target: str
    sampler: str
    window: str
    steps: int
    dim: int
    calls: list[int]
    rows: float
    seconds: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.calls))

    @property
    def error(self) -> float:
        return float(np.std(self.calls, ddof=1) / len(self.calls) ** 0.5)


def chains_at_once(options: dict[str, Any], window: int | str, steps: int, dim: int, budget: int) -> int:
    """Chains whose state fits in `budget` bytes: Picard's table, a round's triangular products and its rows."""
    n = steps if window == "all" else min(int(window), steps)
    slots = options.get("memory", 0) + 1
    return max(1, budget // (4 * (2 * slots * steps * dim + 6 * n * n + (12 + 3 * slots) * n * dim)))


def measure(sampler: BoundSampler, denoise: Denoise, noise: Noise, at_once: int) -> tuple[list[int], float]:
    """Calls of each chain, and mean rows."""
    calls, rows = [], 0
    for begin in range(0, noise.start.shape[0], at_once):
        part = slice(begin, begin + at_once)
        some = Noise(noise.start[part], noise.steps[:, part], noise.uniforms[:, part])
        stats = sampler(denoise, some, generator=torch.Generator().manual_seed(begin)).stats
        calls += stats.calls.tolist()
        rows += int(stats.evaluations.sum())
    return calls, rows / len(calls)


def cells_of(target: str, steps: int, dim: int, args: argparse.Namespace) -> list[Cell]:
    """Every sampler and window on one chain, all on the same noise."""
    device = torch.device(args.device)
    law = TARGETS[target](dim)
    schedule = Schedule.from_diffusers(CHAIN, steps)
    denoise = law.denoiser(schedule, device)
    noise = draw_noise((args.chains, dim, 1), schedule, torch.Generator().manual_seed(steps + dim), device)
    speculation = None
    if dim <= MAX_GAIN_DIM:
        calibration = torch.Generator().manual_seed(1)
        gains = calibrate(denoise, schedule, (512, dim, 1), generator=calibration, batch=1024, device=device)
        speculation = gains.to("cpu").state_dict()  # float16, as beside a checkpoint
        speculation = {name: value.to(device) for name, value in speculation.items()}
    cells = []
    for name, options in SAMPLERS.items():
        if options.get("gain") and speculation is None:
            continue
        for label, window in WINDOWS.items():
            config = SamplerConfig("speculative", steps, options={**options, "window": window})
            sampler = bind(config, CHAIN, speculation)
            at_once = chains_at_once(options, window, steps, dim, args.budget_mb * 2**20)
            begin = time.perf_counter()
            calls, rows = measure(sampler, denoise, noise, at_once)
            cell = Cell(target, name, label, steps, dim, calls, rows, time.perf_counter() - begin)
            cells.append(cell)
            print(f"{target:16} K {steps:4} D {dim:4} window {label:8} {name:35} {cell.mean:6.1f} ± {cell.error:4.1f} "
                  f"calls {rows:7.0f} rows {cell.seconds:6.1f} s", flush=True)  # fmt: skip
    return cells


def exponent(cells: list[Cell], sizes: list[int]) -> tuple[float, float]:
    """Slope of log mean calls over log size, and its bootstrap standard error over chains."""
    rng, x = np.random.default_rng(0), np.log(sizes)
    slopes = []
    for repeat in range(501):
        resampled = [c.calls if repeat == 0 else rng.choice(c.calls, len(c.calls)) for c in cells]
        slopes.append(np.polyfit(x, np.log([np.mean(calls) for calls in resampled]), 1)[0])
    return float(slopes[0]), float(np.std(slopes[1:], ddof=1))


def fits(cells: list[Cell], of: str, smallest: int) -> list[dict[str, Any]]:
    """Exponents of every target, window and sampler over sizes from `smallest`."""
    found: dict[tuple[str, str, str], list[Cell]] = {}
    for c in cells:
        if getattr(c, of) >= smallest:
            found.setdefault((c.target, c.window, c.sampler), []).append(c)
    rows = []
    for (target, window, sampler), group in found.items():
        sizes = [getattr(c, of) for c in group]
        if len(sizes) > 1:
            slope, error = exponent(group, sizes)
            rows.append({"target": target, "window": window, "sampler": sampler, "from": min(sizes), "to": max(sizes),
                         "exponent": slope, "error": error})  # fmt: skip
    return rows


def table(cells: list[Cell], of: str, fitted: list[list[dict[str, Any]]], symbol: str) -> list[str]:
    """Markdown: a table per target and window, a row per sampler, its exponents last."""
    lines = []
    for target in TARGETS:
        for window in WINDOWS:
            group = [c for c in cells if c.target == target and c.window == window]
            sizes = sorted({getattr(c, of) for c in group})
            heads = [f"{symbol}^e, {symbol} = {rows[0]['from']} to {max(r['to'] for r in rows)}" for rows in fitted]
            lines += [f"**{target}, window {window}**", "",
                      "| sampler | " + " | ".join([f"{symbol} = {s}" for s in sizes] + heads) + " |",
                      "| --- |" + " --- |" * (len(sizes) + len(heads))]  # fmt: skip
            for sampler in SAMPLERS:
                by_size = {getattr(c, of): c for c in group if c.sampler == sampler}
                row = [f"{by_size[s].mean:.1f} ± {by_size[s].error:.1f}" if s in by_size else "-" for s in sizes]
                for rows in fitted:
                    fit = [r for r in rows if (r["target"], r["window"], r["sampler"]) == (target, window, sampler)]
                    short = fit and fit[0]["to"] < sizes[-1]
                    row += [f"{r['exponent']:.2f} ± {r['error']:.2f}" for r in fit] or ["-"]
                    row[-1] += f" (to {fit[0]['to']})" if short else ""
                lines.append(f"| {sampler} | " + " | ".join(row) + " |")
            lines.append("")
    return lines


def plot(by_steps: list[Cell], by_dim: list[Cell], path: Path) -> None:
    """Calls over K and over D, doubly logarithmic; filled: infinite window, dashed: 32."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(TARGETS), 2, figsize=(11, 4 * len(TARGETS)), squeeze=False, constrained_layout=True)
    for row, target in zip(axes, TARGETS, strict=True):
        for axis, cells, of in ((row[0], by_steps, "steps"), (row[1], by_dim, "dim")):
            for color, sampler in enumerate(SAMPLERS):
                for window, style in zip(WINDOWS, ("-", "--"), strict=True):
                    line = [c for c in cells if (c.target, c.sampler, c.window) == (target, sampler, window)]
                    widest = style == "-"
                    axis.errorbar([getattr(c, of) for c in line], [c.mean for c in line], [c.error for c in line],
                                  linestyle=style, color=f"C{color}", marker="o" if widest else None, markersize=3,
                                  label=sampler if widest else None, alpha=1.0 if widest else 0.5)  # fmt: skip
            axis.set(xscale="log", yscale="log", ylabel="sequential calls")
        asd = next(c for c in by_steps if c.target == target and c.sampler.startswith("ASD") and c.steps == STEPS[0])
        for label, power, style in (("K^(2/3)", 2 / 3, "-"), ("K^(1/3)", 1 / 3, "-.")):
            row[0].plot(STEPS, [asd.mean * (k / STEPS[0]) ** power for k in STEPS], style, color="black", linewidth=0.8,
                        label=label)  # fmt: skip
        row[0].plot(STEPS, STEPS, ":", color="black", linewidth=0.8, label="sequential")
        row[0].set(title=f"{target}, D = {DIM_OF_STEPS}", xlabel="K, steps")
        row[1].set(title=f"{target}, K = {STEPS_OF_DIMS}", xlabel="D, action dimensions")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, title="window infinite; dashed: 32")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget-mb", type=int, help="memory of the chains sampled at once; default 24, on a GPU 4096")
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling")
    args = parser.parse_args()
    if args.chains < 2:
        parser.error("--chains must be at least 2: a mean needs its error")
    args.budget_mb = args.budget_mb or (4096 if args.device.startswith("cuda") else 24)
    torch.set_num_threads(args.threads)
    begin = time.perf_counter()
    by_steps = [c for target in TARGETS for k in STEPS for c in cells_of(target, k, DIM_OF_STEPS, args)]
    by_dim = [c for target in TARGETS for d in DIMS for c in cells_of(target, STEPS_OF_DIMS, d, args)]
    of_steps, of_dims = [fits(by_steps, "steps", least) for least in (10, 100)], [fits(by_dim, "dim", 2)]
    text = "\n".join([
        f"Sequential calls over K at D = {DIM_OF_STEPS}: mean ± standard error of {args.chains} chains, all K respaced "
        "from one chain of 1000 steps. K^e by least squares ± bootstrap error; ASD's bound is K^(2/3).", "",
        *table(by_steps, "steps", of_steps, "K"),
        f"Sequential calls over D at K = {STEPS_OF_DIMS}; gains are calibrated up to D = {MAX_GAIN_DIM}.", "",
        *table(by_dim, "dim", of_dims, "D"),
    ])  # fmt: skip
    device = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else args.device
    described = {
        "environment": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
                        "device": device, "num_threads": args.threads, "seconds": time.perf_counter() - begin},
        "chain": CHAIN, "chains": args.chains,
        "exponents_of_steps": of_steps, "exponents_of_dims": of_dims,
        "by_steps": [asdict(c) | {"mean": c.mean, "error": c.error} for c in by_steps],
        "by_dim": [asdict(c) | {"mean": c.mean, "error": c.error} for c in by_dim],
    }  # fmt: skip
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(json.dumps(described) + "\n")
    args.output.with_suffix(".md").write_text(text.rstrip() + "\n")
    print(text)
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no picture (pip install 'diffpolicy-spec[train]')")
    else:
        plot(by_steps, by_dim, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
