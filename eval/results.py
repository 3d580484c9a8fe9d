"""What a run has found so far, and eval_log.json, the file that holds it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from diffpolicy_spec.atomic import write_atomically
from diffpolicy_spec.eval.records import ChunkRecord, EpisodeRecord
from diffpolicy_spec.eval.statistics import Summary, latencies, summarize

__all__ = ["SamplerRun", "environment", "eval_log", "summarize_runs", "write_json"]


@dataclass(frozen=True)
class SamplerRun:
    """One sampler's finished episodes.

    Attributes:
        name: of the sampler.
        config: its `SamplerConfig` as plain data.
        exact: whether it draws from the law of the full DDPM chain.
        verifies: whether it tests its drafts.
        reference: whether it is that chain, sampled step by step.
        reference_steps: steps of that chain.
        timesteps: (K,) training timestep of each denoising step.
        episodes, chunks: the records.
        video: path of the mp4 inside the output folder; None where none was made.
    """

    name: str
    config: dict[str, Any]
    exact: bool
    verifies: bool
    reference: bool
    reference_steps: int
    timesteps: tuple[int, ...]
    episodes: tuple[EpisodeRecord, ...]
    chunks: tuple[ChunkRecord, ...]
    video: str | None


def summarize_runs(runs: Sequence[SamplerRun]) -> dict[str, Summary]:
    """Summaries by sampler; wall-clock speed-ups are against the full DDPM chain where it is among the runs."""
    reference = next((r for r in runs if r.reference and r.chunks), None)
    median = float(np.median(latencies(reference.chunks))) if reference else None
    summaries = {}
    for r in runs:
        summaries[r.name] = summarize(
            r.episodes, r.chunks, r.timesteps,
            reference_steps=r.reference_steps, verifies=r.verifies, reference_latency_ms=median,
        )  # fmt: skip
    return summaries


def _upstream_keys(run: SamplerRun) -> dict[str, Any]:
    """The keys of diffusion_policy's eval_log.json: mean score and, per seed, largest reward and video."""
    keys: dict[str, Any] = {}
    for episode in run.episodes:
        keys[f"test/sim_max_reward_{episode.seed}"] = episode.max_reward
    if run.video and run.episodes:
        keys[f"test/sim_video_{min(e.seed for e in run.episodes)}"] = run.video
    keys["test/mean_score"] = float(np.mean([e.max_reward for e in run.episodes])) if run.episodes else None
    return keys


def eval_log(
    runs: Sequence[SamplerRun], config: Mapping[str, Any], environment: Mapping[str, Any], *, finished: bool
) -> dict[str, Any]:
    """The contents of eval_log.json.

    A superset of diffusion_policy's: its keys stand at the top for the first sampler and in each sampler's section.
    Success and scores are 0 to 1, times ms; null where a quantity is not defined.
    """
    summaries = summarize_runs(runs)
    sections = {
        run.name: {
            **_upstream_keys(run),
            "exact": run.exact,
            "sampler": run.config,
            "summary": asdict(summaries[run.name]),
            "episodes": [asdict(e) for e in run.episodes],
            "files": {
                "episodes": f"{run.name}/episodes.jsonl",
                "chunks": f"{run.name}/chunks.npz",
                "video": run.video,
            },
        }
        for run in runs
    }
    first = _upstream_keys(runs[0]) if runs else {}
    about = {"config": dict(config), "environment": dict(environment)}
    return {**first, "finished": finished, "samplers": sections, **about}


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON so that the file is at any moment either the old or the new one, whole."""
    # A NaN in the log would not be JSON; `summarize` reports None instead.
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that the package is imported from, None outside of one.

    "-dirty" follows when tracked files differ from it.
    """
    import diffpolicy_spec

    source = Path(diffpolicy_spec.__file__).resolve().parent

    def git(*args: str) -> str | None:
        try:
            command = ["git", "-C", str(source), *args]
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An installed copy may lie in a virtual environment inside some other project's repository.
    if git("ls-files", "__init__.py") != "__init__.py":
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and git("status", "--porcelain", "--untracked-files=no") else commit


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment(device: Any, num_threads: int) -> dict[str, Any]:
    """Versions, device, threads and commit of this run."""
    import torch

    packages = ("diffpolicy-spec", "torch", "numpy", "mujoco", "robosuite", "gymnasium", "diffusers")
    device = torch.device(device)
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "num_threads": num_threads,
        "commit": _commit(),
    }
