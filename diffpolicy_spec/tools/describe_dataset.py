"""A dataset, described: episodes, arrays, ranges, masks, what it was recorded in, and which tasks it fits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffpolicy_spec.data.errors import DataError
from diffpolicy_spec.tools.convert_dataset import open_recording
from diffpolicy_spec.tools.recording import Column, Recording
from diffpolicy_spec.tools.report import Report, shape_text
from diffpolicy_spec.tools.zarr_recording import FORMAT as ZARR

__all__ = ["describe_dataset", "describe_lerobot_dataset"]

_MOST_INFO = 64 << 20  # bytes of a LeRobot dataset's info.json that are read


def describe_dataset(path: Path, format: str) -> Report:
    """A robomimic hdf5 or a replay buffer ("hdf5", "zarr"). Vectors are read through, block by block; images are not.

    Raises:
        DataError, FileNotFoundError, PermissionError, ImportError: as the readers.
    """
    with open_recording(path, format) as recording:
        problems, rows, actions = list(recording.problems), [], dict[str, list[float]]()
        for name in sorted(recording.columns, key=lambda c: (c != "actions", not c.startswith("obs/"))):
            column = recording.columns[name]
            row: dict[str, Any] = {"key": name, "shape": ["N", *column.shape], "dtype": str(column.dtype)}
            if not column.is_image:
                low, high, wrong = _bounds(recording, name, column)
                problems += wrong
                if low.size and np.isfinite([low, high]).all():
                    row["range"] = [round(float(low.min()), 6), round(float(high.max()), 6)]
                    if name == "actions":
                        actions = {"min": low.round(6).ravel().tolist(), "max": high.round(6).ravel().tolist()}
            rows.append(row)
        env_args, told = _env_args(recording)
        problems += told
        lengths = recording.lengths
        facts = {
            "episodes": len(lengths),
            "steps": recording.steps,
            "steps_of_an_episode": [min(lengths), max(lengths)],
            "size_mb": round(_size(path) / 1e6, 1),
            "masks": {key: len(members) for key, members in recording.masks.items()},
            "recorded_in": env_args,
            "actions_are": _action_repr(recording, env_args),
            "action_range": actions,
            "fits_tasks": _tasks(recording, env_args),
            "arrays": [{**row, "shape": shape_text(row["shape"])} for row in rows],
        }
        notes = _notes(recording, env_args)
    return Report(path, "dataset", recording.format, facts, tuple(notes), tuple(problems))


def describe_lerobot_dataset(path: Path) -> Report:
    """What meta/info.json of a LeRobot dataset says; its parquet files and videos are not opened.

    Raises:
        DataError: info.json is damaged.
    """
    file = path / "meta" / "info.json"
    try:
        if file.stat().st_size > _MOST_INFO:
            raise DataError(f"{file} has {file.stat().st_size:,} bytes: not a LeRobot dataset's")
        info = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON (truncated or damaged?): {error}") from error
    features = info.get("features") if isinstance(info, dict) else None
    if not isinstance(features, dict) or not all(isinstance(f, dict) for f in features.values()):
        raise DataError(f"{file} names no features: not a LeRobot dataset")
    facts = {
        "version": info.get("codebase_version"),
        "episodes": info.get("total_episodes"),
        "steps": info.get("total_frames"),
        "fps": info.get("fps"),
        "robot": info.get("robot_type"),
        "masks": info.get("splits"),
        "arrays": [{"key": key, "shape": str(f.get("shape")), "dtype": f.get("dtype")} for key, f in features.items()],
    }
    notes = ("LeRobot datasets are described here, not read: dps-train and dps-convert take robomimic's hdf5 and "
             "diffusion_policy's zarr",)  # fmt: skip
    return Report(path, "dataset", "LeRobot", facts, notes)


def _bounds(recording: Recording, name: str, column: Column) -> tuple[NDArray[Any], NDArray[Any], list[str]]:
    """Smallest and largest of each number of a row, and what is wrong with them."""
    low, high, wrong = np.full(column.shape, np.inf), np.full(column.shape, -np.inf), 0
    try:
        for block in recording.read(name):
            values = block.rows.astype(np.float64, copy=False)
            finite = np.isfinite(values)
            wrong += int((~finite).sum())
            low = np.minimum(low, np.where(finite, values, np.inf).min(axis=0))
            high = np.maximum(high, np.where(finite, values, -np.inf).max(axis=0))
    except DataError as error:
        return low, high, [str(error).removeprefix(f"{recording.path}: ")]
    return low, high, [f"'{name}' holds {wrong:,} values that are NaN or infinite"] if wrong else []


def _env_args(recording: Recording) -> tuple[dict[str, Any] | None, list[str]]:
    text = recording.attributes.get("env_args")
    if text is None:
        return None, []
    try:
        args = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None, ["env_args are not JSON"]
    if not isinstance(args, dict):
        return None, ["env_args are not a mapping"]
    return {key: args.get(key) for key in ("env_name", "env_version", "type") if key in args} | {
        "controllers": list(_controllers(args))
    }, []


def _controllers(args: Mapping[str, Any]) -> Iterator[str]:
    """ "OSC_POSE absolute": each arm's controller and what it makes of an action, of robosuite 1.4 or 1.5."""
    kwargs = args.get("env_kwargs")
    configs = kwargs.get("controller_configs") if isinstance(kwargs, dict) else None
    for config in configs if isinstance(configs, list) else [configs]:
        if not isinstance(config, dict):
            continue
        parts = config.get("body_parts", {"": config})
        for name, part in parts.items() if isinstance(parts, dict) else ():
            if isinstance(part, dict) and (name in ("", "right", "left")) and "type" in part:
                delta = part.get("control_delta", part.get("input_type", "delta") == "delta")
                yield f"{part['type']} {'delta' if delta else 'absolute'}"


def _action_repr(recording: Recording, env_args: Mapping[str, Any] | None) -> str | None:
    """As far as it can be seen."""
    kinds = {text.split()[-1] for text in (env_args or {}).get("controllers", ())}
    shape = recording.columns["actions"].shape if "actions" in recording.columns else ()
    if len(kinds) == 1:
        return kinds.pop()
    if shape and shape[0] % 10 == 0 and env_args is None and recording.format == ZARR:
        return "perhaps absolute_rot6d (10 numbers an arm)"
    return None


def _tasks(recording: Recording, env_args: Mapping[str, Any] | None) -> list[str]:
    """Tasks of this package that have these observations and actions, and this environment where it is named."""
    try:
        from diffpolicy_spec.envs.tasks import TASKS, RobosuiteTask
    except ImportError:  # without gymnasium there are no tasks
        return []
    columns, fits = recording.columns, []
    images = any(column.is_image for column in columns.values())
    numbers = {
        c.removeprefix("obs/"): int(np.prod(k.original or k.shape)) for c, k in columns.items() if not k.is_image
    }
    if numbers.get("state") == 5 and recording.format == ZARR:
        numbers.setdefault("agent_pos", 2)  # Push-T: the state begins with it, see data.replay_buffer.SOURCES
    for task in TASKS.values():
        arms = len(task.robots) if isinstance(task, RobosuiteTask) else None
        named = getattr(task, "robosuite_name", None)
        if env_args is not None and env_args.get("env_name") not in (None, named):
            continue
        there = all(numbers.get(key) == dim for key, dim in task.obs) and (images or not task.name.endswith("_image"))
        if there and (arms is None or numbers.get("actions") in (7 * arms, 10 * arms)):
            fits.append(task.name)
    return fits


def _notes(recording: Recording, env_args: Mapping[str, Any] | None) -> list[str]:
    notes = []
    if recording.format.startswith("robomimic") and env_args is None:
        notes.append("there are no env_args: it does not say what it was recorded in")
    version = str((env_args or {}).get("env_version") or "")
    if version[:1] == "1" and version < "1.5":
        notes.append(f"recorded with robosuite {version}: 'object' has the layout of that age")
    if not recording.masks:
        notes.append("there are no masks: training and validation episodes are a fixed split")
    notes += [f"{name} is not part of the layout, and not read" for name in recording.strangers]
    return notes


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
