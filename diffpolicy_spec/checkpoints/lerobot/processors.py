"""LeRobot's policy_preprocessor.json and policy_postprocessor.json: what they do to observations and actions.

Steps that only batch, move or convert are passed over; renaming and normalising are taken over; anything else changes
what the network sees in a way that this package does not know, and is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.fields import Fields, read_json
from diffpolicy_spec.checkpoints.lerobot.statistics import Statistics
from diffpolicy_spec.checkpoints.tensors import read_tensors

__all__ = ["POSTPROCESSOR", "PREPROCESSOR", "Processors", "read_processors"]

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"


@dataclass(frozen=True)
class Processors:
    """What is done before and after the policy.

    Attributes:
        renamed: name that observations come in under -> name in the policy's config.
        inputs, outputs: how observations and actions are normalised.
    """

    renamed: dict[str, str]
    inputs: Statistics
    outputs: Statistics


def read_processors(folder: Path) -> Processors:
    """Both files, with the statistics they name.

    Raises:
        CheckpointError: a file is missing or damaged, or has a step that is not known here.
    """
    renamed: dict[str, str] = {}
    found: list[Statistics] = []
    for name, normalising in ((PREPROCESSOR, "normalizer_processor"), (POSTPROCESSOR, "unnormalizer_processor")):
        config = read_json(folder / name)
        steps: list[Fields] = []
        for step in config.sections("steps"):
            if not _passes(step, renamed, after_normalising=bool(found or steps)):
                steps.append(step)
        kinds = [step.text("registry_name") for step in steps]
        if kinds != [normalising]:
            raise CheckpointError(f"{config.where} must have one step '{normalising}', it has {kinds or 'none'}")
        found.append(_statistics(folder, steps[0]))
    return Processors(renamed, *found)


def _passes(step: Fields, renamed: dict[str, str], after_normalising: bool) -> bool:
    """Whether the step needs no further reading; renaming is noted in `renamed`."""
    kind = step.get("registry_name", None)
    if kind in ("normalizer_processor", "unnormalizer_processor"):
        return False
    settings = step.section("config", {})
    if kind == "device_processor":
        dtype = settings.get("float_dtype", "float32")
        if dtype not in ("float32", "torch.float32"):
            raise CheckpointError(f"{step.where} rounds observations to {dtype}: not supported, only float32 is")
    elif kind == "rename_observations_processor" and not after_normalising:
        for old in settings.section("rename_map", {}):
            renamed[old] = settings.section("rename_map").text(old)
    elif kind != "to_batch_processor":
        name = kind if kind is not None else step.get("class", "without a name")
        raise CheckpointError(f"{step.where} is '{name}': a step that is not supported; remove it, or run it before "
                              "the policy is called, if it does not change what the network sees")  # fmt: skip
    return True


def _statistics(folder: Path, step: Fields) -> Statistics:
    settings = step.section("config")
    if "stats" in settings:
        raise CheckpointError(f"{settings.where} has statistics of its own beside its state file: not supported")
    modes = {kind: settings.section("norm_map").text(kind) for kind in settings.section("norm_map", {})}
    only = settings.names("normalize_observation_keys", ()) if "normalize_observation_keys" in settings else None
    tensors: dict[str, dict[str, Tensor]] = {}
    where = step.where
    if "state_file" in step:
        name = step.text("state_file")
        if Path(name).name != name or not set(name).isdisjoint("\\\0") or len(name.encode(errors="replace")) > 255:
            raise CheckpointError(f"{step.where} names the file {name[:60]!r}, which is not in the folder")
        where = str(folder / name)
        for full, value in read_tensors(folder / name).items():
            feature, _, statistic = full.rpartition(".")
            tensors.setdefault(feature, {})[statistic] = value
    eps = settings.number("eps", 1e-8)
    if eps <= 0:
        raise CheckpointError(f"{settings.where}: 'eps' must be positive, got {eps}")
    return Statistics(where, modes, tensors, eps, only=None if only is None else frozenset(only))
