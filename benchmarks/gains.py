"""What gains of each structure take, predict and save.

    python benchmarks/gains.py                  # the shipped Lift policy, and chunks of 16 x 20 and 64 x 14

Every structure is fitted to the same chains and compared on chains held out from the fit: |dm - dx G| / |dm|, the mean
over steps (1: no better than none). Then sequential calls of an exact chunk with Picard(memory=1, gains=...), the same
noise for all, +- standard error. "apply" is what a sweep over one chain's window of 100 rows takes, "fit" all of the
calibration, the network and all structures in one run; both in processor time of one thread.

Networks: the Lift policy on observations of its own expert's episodes, unseen in training (collected on the way: about
half a minute); closed-form mixtures of Gaussian processes; and a small U-Net trained briefly on samples of one. Writes
benchmarks/results/gains.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gain_targets import process_mixture, train_unet

from diffpolicy_spec import Denoise, Gains, Picard, SamplerConfig, Schedule, draw_noise, load_policy, sample_speculative
from diffpolicy_spec.calibration import MAX_BYTES, fit_gains
from diffpolicy_spec.envs.collect import CollectConfig, collect
from diffpolicy_spec.eval.results import environment
from diffpolicy_spec.training.calibrate import draw_conditions
from diffpolicy_spec.window import Turn, make_window

RESULTS = Path(__file__).parent / "results"
EPISODES_FROM = 150_000  # seeds that no training and no evaluation uses


@dataclass(frozen=True)
class Case:
    """One network to calibrate and to sample.

    Attributes:
        calibrate, sample: the network under the observations of calibration and under others.
        chains: chains that are calibrated on.
        stored: gains that are there already, by name.
    """

    name: str
    calibrate: Denoise
    sample: Denoise
    schedule: Schedule
    chunk: tuple[int, int]
    chains: int
    stored: dict[str, Gains]


def cases(chains: int, sampled: int, dataset: Path) -> Iterator[Case]:
    """What is compared."""
    policy = load_policy("lift")
    conditions = draw_conditions(policy, dataset, chains + sampled, None, seed=0)
    stored = Gains.from_state_dict(policy.speculation or {})
    assert stored is not None, "the shipped policy has gains"
    yield Case(
        "Lift policy", policy.denoiser(conditions[:chains]), policy.denoiser(conditions[chains:]),
        policy.bind(SamplerConfig("ddpm")).schedule, (policy.config.horizon, policy.config.action_dim), chains,
        {"dense, as shipped": stored},
    )  # fmt: skip
    config = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}
    exact = Schedule.from_diffusers(config | {"prediction_type": "sample", "clip_sample": False})
    for chunk in ((16, 20), (64, 14)):
        target = process_mixture(*chunk)
        denoise = target.denoiser(exact)
        yield Case("closed form", denoise, denoise, exact, chunk, chains, {})
    schedule = Schedule.from_diffusers(config)
    denoise, loss = train_unet(target, schedule, steps=250)
    print(f"U-Net trained, loss {loss:.3f}", flush=True)
    yield Case("U-Net", denoise, denoise, schedule, target.chunk, chains, {})


def apply_ms(gains: Gains, rows: int = 100) -> float:
    """Median processor milliseconds of a sweep over one chain's window."""
    K, D, _ = gains.shape
    rows = min(rows, K)
    window = make_window(Turn(torch.tensor([0]), rows, 0, rows), torch.tensor([0]), torch.tensor([rows]), K)
    dx, took = torch.randn(1, rows, D), []
    for _ in range(20):
        begin = time.process_time()
        gains.apply(window, dx)
        took.append(1e3 * (time.process_time() - begin))
    return statistics.median(took[5:])


def calls(case: Case, gains: Gains | None, window: int, sampled: int) -> tuple[float, float]:
    """Mean sequential calls of a chunk, and its standard error; the same noise whatever the gains."""
    noise = draw_noise((sampled, *case.chunk), case.schedule, torch.Generator().manual_seed(1))
    drafter = Picard(memory=1, gains=gains)
    found = sample_speculative(case.sample, case.schedule, noise, drafter=drafter, window=window).stats.calls.double()
    return float(found.mean()), float(found.std()) / sampled**0.5


def measure(case: Case, windows: list[int], sampled: int) -> list[dict[str, Any]]:
    """A row for every structure."""
    begin = time.process_time()
    fitted = fit_gains(
        case.calibrate, case.schedule, (case.chains, *case.chunk), structures=["dense", "kronecker", "lowrank"],
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    seconds = time.process_time() - begin
    kinds: list[tuple[str, Gains | None, float | None]] = [("none", None, None)]
    kinds += [(name, gains, None) for name, gains in case.stored.items()]
    kinds += [(name, fit.gains, fit.error) for name, fit in fitted.items()]
    out = []
    for name, gains, error in kinds:
        row: dict[str, Any] = {"network": case.name, "chunk": list(case.chunk), "structure": name}
        if gains is not None:
            # Sampled with what a file holds.
            gains = Gains.from_state_dict(gains.state_dict())
            assert gains is not None
            row |= {"MB": gains.bytes_stored / 1e6, "error": error, "apply_ms": apply_ms(gains),
                    "fit_seconds": None if error is None else seconds, "fits": gains.bytes_stored <= MAX_BYTES}
        for window in windows:
            row[f"calls_{window}"], row[f"standard_error_{window}"] = calls(case, gains, window, sampled)
        out.append(row)
        print(f"{case.name} {case.chunk[0]} x {case.chunk[1]}  {name:18s}", *(
            f"window {w}: {row[f'calls_{w}']:.1f} calls" for w in windows), flush=True)  # fmt: skip
    return out


def table(rows: list[dict[str, Any]], windows: list[int]) -> str:
    """Markdown."""
    heads = "".join(f" calls, window {w} |" for w in windows)
    out = [f"| network | chunk | gains | MB stored | held-out error | apply ms | fit s |{heads}",
           "| --- | --- | --- | --- | --- | --- | --- |" + " --- |" * len(windows)]  # fmt: skip
    for r in rows:
        def number(key: str, form: str, r: dict[str, Any] = r) -> str:
            return "-" if r.get(key) is None else format(r[key], form)

        counted = "".join(f" {r[f'calls_{w}']:.1f} ± {r[f'standard_error_{w}']:.1f} |" for w in windows)
        out.append(f"| {r['network']} | {r['chunk'][0]} x {r['chunk'][1]} | {r['structure']} | {number('MB', '.1f')} | "
                   f"{number('error', '.3f')} | {number('apply_ms', '.1f')} | {number('fit_seconds', '.0f')} |"
                   f"{counted}")  # fmt: skip
    return "\n".join(out) + "\n"


def main() -> None:
    """Measure, print as it goes, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="Lift demonstrations; default: collects some")
    parser.add_argument("--chains", type=int, default=288, help="chains that gains are fitted to, 1/8 held out")
    parser.add_argument("--sampled", type=int, default=32, help="chunks that calls are counted of")
    parser.add_argument("--windows", type=int, nargs="+", default=[32, 100])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "gains")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    begin, rows = time.process_time(), []
    with tempfile.TemporaryDirectory() as folder:
        dataset = args.dataset
        if dataset is None:
            dataset = Path(folder) / "lift.hdf5"
            collect(CollectConfig("lift", 24, dataset, seed=EPISODES_FROM), progress=False)
        for case in cases(args.chains, args.sampled, dataset):
            rows += measure(case, args.windows, args.sampled)
    text = table(rows, args.windows)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"chains": args.chains, "sampled": args.sampled, "seconds": time.process_time() - begin}
    described = {"environment": environment("cpu", args.threads), "settings": settings, "rows": rows}
    args.output.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
    args.output.with_suffix(".md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
