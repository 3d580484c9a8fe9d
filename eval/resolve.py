"""What a configuration names, resolved and checked: samplers, tasks, policies, paces, numbers and the output folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffpolicy_spec.checkpoints.shipped import shipped_names
from diffpolicy_spec.eval.pacing import Pace
from diffpolicy_spec.eval.spread import Spread
from diffpolicy_spec.eval.store import Store
from diffpolicy_spec.optional import require

__all__ = [
    "check_numbers",
    "check_output",
    "known_samplers",
    "resolve_paces",
    "resolve_policies",
    "resolve_samplers",
    "resolve_tasks",
]

_SAMPLER_KEYS = ("name", "method", "num_inference_steps", "eta", "options")


def known_samplers() -> tuple[str, ...]:
    """Names of the sampler configurations that come with the package."""
    folder = files("diffpolicy_spec.configs") / "sampler"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def _load_sampler(name: str) -> dict[str, Any]:
    if name not in known_samplers():
        raise ValueError(f"there is no sampler '{name}'; known samplers: {', '.join(known_samplers())}")
    omegaconf = require("omegaconf", extra="eval", needed_by="dps-eval").OmegaConf
    text = (files("diffpolicy_spec.configs") / "sampler" / f"{name}.yaml").read_text()
    return omegaconf.to_container(omegaconf.create(text))


def resolve_samplers(cfg: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sampler configurations a run asks for, each with the keys name, method, num_inference_steps, eta, options.

    `cfg["samplers"]` holds names and mappings ({base: NAME, ...changes}); when it is None, `cfg["sampler"]` is the only
    one.

    Raises:
        ValueError: unknown sampler, unknown key, or two samplers of one name.
    """
    entries: Sequence[Any] = cfg["samplers"] if cfg["samplers"] is not None else [cfg["sampler"]]
    if isinstance(entries, str) or not entries:
        raise ValueError(f"samplers must be a list such as [ddpm100,speculative], got {entries!r}")
    resolved = []
    for entry in entries:
        if isinstance(entry, str):
            resolved.append(_load_sampler(entry))
            continue
        if not isinstance(entry, Mapping):
            raise ValueError(f"a sampler is a name or a mapping with base or method, got {entry!r}")
        changes = dict(entry)
        sampler = _load_sampler(changes.pop("base")) if "base" in changes else {"options": {}}
        changed = changes.pop("options", None) or {}
        if not isinstance(changed, Mapping):
            raise ValueError(f"sampler {entry!r}: options must be a mapping, got {changed!r}")
        options = {**sampler["options"], **changed}
        sampler = {"num_inference_steps": None, "eta": None, **sampler, **changes, "options": options}
        unknown, missing = set(sampler) - set(_SAMPLER_KEYS), set(_SAMPLER_KEYS) - set(sampler)
        if unknown or missing:
            what = f"unknown {sorted(unknown)}" if unknown else f"missing {sorted(missing)}"
            raise ValueError(f"sampler {entry!r}: {what}; a sampler has {', '.join(_SAMPLER_KEYS)} and may have base")
        resolved.append(sampler)
    names = [s["name"] for s in resolved]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"two samplers are named {', '.join(twice)}: give one of them another name")
    bad = [n for n in names if not n or n != Path(str(n)).name or n.startswith(".")]
    if bad:
        raise ValueError(f"a sampler's name becomes a folder; these cannot: {bad}")
    return resolved


def resolve_tasks(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the tasks of a run: `cfg["tasks"]`, or `cfg["task"]` where that is None.

    Raises:
        ValueError: no list, a name twice, or one that is not in the task table.
    """
    from diffpolicy_spec.envs.tasks import get_task

    names: Any = cfg["tasks"] if cfg["tasks"] is not None else [cfg["task"]["name"]]
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ValueError(f"tasks must be a list such as [lift,can], got {names!r}")
    for name in names:
        get_task(name)
    if len(set(names)) < len(names):
        raise ValueError(f"a task is named twice: {', '.join(names)}")
    return tuple(names)


def resolve_policies(cfg: Mapping[str, Any], tasks: Iterable[str]) -> dict[str, str]:
    """The policy of each task: a shipped one's name or an absolute path.

    `cfg["policy"]` is "shipped" (the shipped policy with the task's name), one policy for every task, or a mapping from
    tasks to policies.

    Raises:
        ValueError: a task without a policy.
    """
    given, found = cfg["policy"], {}
    for task in tasks:
        if isinstance(given, Mapping) and task not in given:
            raise ValueError(f"policy={dict(given)} names none for task '{task}'")
        name = str(given[task] if isinstance(given, Mapping) else given)
        if name == "shipped":
            if task not in shipped_names():
                raise ValueError(
                    f"no policy for task '{task}' comes with the package (there are {', '.join(shipped_names())}): "
                    "give policy=PATH, or train one with dps-train"
                )
            name = task
        path = Path(name).expanduser()  # another process may have another working directory
        found[task] = name if name in shipped_names() or not path.exists() else str(path.absolute())
    return found


def resolve_paces(cfg: Mapping[str, Any], spread: Spread) -> list[dict[str, Any]]:
    """What `cfg["realtime"]` asks for, as fields of a `Cell`: one {} where the world waits, else one for each rate.

    Raises:
        ValueError: rates, a latency or a `meanwhile` that cannot be.
    """
    wanted = cfg["realtime"]
    rates, latency = wanted["control_hz"], wanted["latency"]
    if rates is None:
        return [{}]
    rates = [rates] if isinstance(rates, int | float) else list(rates)
    if isinstance(latency, bool) or not (latency == "measured" or isinstance(latency, int | float)):
        raise ValueError(f"realtime.latency must be measured or milliseconds, got {latency!r}")
    if latency == "measured" and spread.num_envs > 1:
        raise ValueError("with num_envs > 1 a batched call would be late for all: give realtime.latency, or num_envs=1")
    if not rates or any(isinstance(hz, bool) or not isinstance(hz, int | float) for hz in rates):
        raise ValueError(f"realtime.control_hz must be a rate in Hz or a list of them, got {wanted['control_hz']!r}")
    for hz in rates:
        Pace(float(hz), None if latency == "measured" else float(latency), wanted["meanwhile"])
    latency = latency if latency == "measured" else float(latency)
    return [
        {"mode": "realtime", "control_hz": float(hz), "latency": latency, "meanwhile": wanted["meanwhile"]}
        for hz in dict.fromkeys(rates)
    ]


def check_numbers(cfg: Mapping[str, Any]) -> None:
    lowest = {"num_episodes": 1, "num_envs": 1, "num_threads": 1, "warmup_calls": 0, "seed": 0, "max_steps": 1,
              "num_workers": 1}  # fmt: skip
    for key, minimum in lowest.items():
        value = cfg[key]
        if (key == "max_steps" and value is None) or (key == "num_workers" and value == "auto"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            other = " (or auto)" if key == "num_workers" else ""
            raise ValueError(f"{key} must be an integer of at least {minimum}{other}, got {value!r}")


def check_output(output: Path, overwrite: bool) -> None:
    """A folder that can take this run's results; those of an earlier run of this version are gone on with."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"output={output} is a file; give a folder")
    if overwrite or not output.exists():
        return
    if (output / "store").exists():
        Store.open(output / "store", create=False).cells()
        return
    if (output / "eval_log.json").exists():
        raise ValueError(
            f"{output} holds the results of a release that had no results store: give another output=... or "
            "overwrite=true"
        )
    # hydra writes its own multirun.yaml before the first job of a sweep.
    others = sorted(p.name for p in output.iterdir() if p.name != "multirun.yaml" and not p.name.startswith("."))
    if others:
        raise ValueError(f"{output} holds other files ({', '.join(others[:4])}): give another output=...")
