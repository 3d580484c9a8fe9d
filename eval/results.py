"""eval_log.json, what a results store holds in one file, and the description of what episodes ran on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from diffpolicy_spec.atomic import write_atomically
from diffpolicy_spec.eval.cells import Cell
from diffpolicy_spec.eval.episode_table import EpisodeTable, Results
from diffpolicy_spec.eval.summary import summarize_all

__all__ = ["environment", "eval_log", "labels", "video_path", "write_json"]


def video_path(cell: Cell, seed: int) -> str:
    """Where the film of an episode lies in the output folder."""
    return f"videos/{cell.task}/{cell.title} [{cell.id[:6]}]/{seed}.mp4"


def labels(cells: Mapping[str, Cell]) -> dict[str, str]:
    """A name for each cell by its id: its title, with the task and the id where that does not tell them apart."""
    tasks = {cell.task for cell in cells.values()}
    short = {key: c.title if len(tasks) == 1 else f"{c.task}/{c.title}" for key, c in cells.items()}
    names = list(short.values())
    return {key: name if names.count(name) == 1 else f"{name} ({key[:6]})" for key, name in short.items()}


def _upstream_keys(cell: Cell, table: EpisodeTable, output: Path) -> dict[str, Any]:
    """The keys of diffusion_policy's eval_log.json: mean score and, per seed, largest reward and video."""
    keys: dict[str, Any] = {}
    for seed, reward in zip(table.seed.tolist(), table.max_reward.tolist(), strict=True):
        keys[f"test/sim_max_reward_{seed}"] = reward
    for seed in table.seed.tolist():
        if (output / video_path(cell, seed)).exists():
            keys[f"test/sim_video_{seed}"] = video_path(cell, seed)
    keys["test/mean_score"] = float(table.max_reward.mean()) if len(table) else None
    return keys


def _episodes(table: EpisodeTable) -> list[dict[str, Any]]:
    names = ("seed", "success", "max_reward", "steps", "wall_s", "actions_sha")
    columns = [getattr(table, name).tolist() for name in names]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    for name, values in table.metrics.items():
        for row, value in zip(rows, values.tolist(), strict=True):
            row[name] = value if value == value else None  # NaN is not JSON
    return rows


def eval_log(
    results: Results, output: Path, config: Mapping[str, Any], environment: Mapping[str, Any], *, finished: bool
) -> dict[str, Any]:
    """The contents of eval_log.json: every cell of a store that has episodes.

    A superset of diffusion_policy's: its keys stand at the top for the first cell and in each cell's section. Success
    and scores are 0 to 1, times ms; null where a quantity is not defined.

    Args:
        output: folder of the results.
        config: of the run that writes it.
        environment: what that run ran on; episodes of earlier ones have their own in the store.
        finished: whether that run has all its episodes.
    """
    summaries, names = summarize_all(results), labels(results.cells)
    sections: dict[str, Any] = {}
    first: dict[str, Any] = {}
    for key, cell in results.cells.items():
        table = results.tables[key]
        if not len(table):
            continue
        upstream = _upstream_keys(cell, table, output)
        first = first or upstream
        video = next((path for name, path in upstream.items() if name.startswith("test/sim_video_")), None)
        sections[names[key]] = {
            **upstream,
            "cell": key,
            "task": cell.task,
            "exact": cell.exact,
            "sampler": cell.sampler_config,
            "summary": asdict(summaries[key]),
            "episodes": _episodes(table),
            "files": {"video": video},
        }
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
    """Versions, device, threads and commit of this process."""
    import torch

    packages = (
        "diffpolicy-spec", "torch", "numpy", "mujoco", "robosuite", "gymnasium", "gym-pusht", "gymnasium-robotics",
        "pyarrow", "ray", "diffusers",
    )  # fmt: skip
    device = torch.device(device)
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "num_threads": num_threads,
        "commit": _commit(),
    }
