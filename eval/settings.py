"""From a configuration to what a run needs. What can be wrong is found here, before anything runs or is overwritten."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import torch

from diffpolicy_spec.checkpoints.shipped import shipped_names
from diffpolicy_spec.device import parse_device
from diffpolicy_spec.eval.cells import Cell
from diffpolicy_spec.eval.pacing import Pace
from diffpolicy_spec.eval.spread import Spread
from diffpolicy_spec.eval.store import Store
from diffpolicy_spec.eval.video import offscreen_backend
from diffpolicy_spec.eval.workers import Work, Worker, make_environment, renders
from diffpolicy_spec.optional import require
from diffpolicy_spec.runtime import RuntimeConfig
from diffpolicy_spec.samplers import BoundSampler, SamplerConfig

__all__ = [
    "Settings",
    "known_samplers",
    "prepare",
    "resolve_paces",
    "resolve_policies",
    "resolve_samplers",
    "resolve_tasks",
]

_SAMPLER_KEYS = ("name", "method", "num_inference_steps", "eta", "options")


@dataclass(frozen=True)
class Settings:
    """A run of dps-eval, checked and ready.

    Attributes:
        works: cells by id, in the order in which they run.
        seeds: of the episodes, the same for every cell.
        spread: over what the run is spread.
        worker: of this process; it has what was loaded to check the run.
        output: folder of the results.
        overwrite: whether earlier results in it go first.
        film: seed that is filmed with every cell; None for none.
        report: whether report.html, .md, .tex and .json are written.
        notices: what the user should know, one line each.
    """

    works: dict[str, Work]
    seeds: tuple[int, ...]
    spread: Spread
    worker: Worker
    output: Path
    overwrite: bool
    film: int | None
    report: bool
    notices: tuple[str, ...]


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


def _check_numbers(cfg: Mapping[str, Any]) -> None:
    lowest = {"num_episodes": 1, "num_envs": 1, "num_threads": 1, "warmup_calls": 0, "seed": 0, "max_steps": 1,
              "num_workers": 1}  # fmt: skip
    for key, minimum in lowest.items():
        value = cfg[key]
        if (key == "max_steps" and value is None) or (key == "num_workers" and value == "auto"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            other = " (or auto)" if key == "num_workers" else ""
            raise ValueError(f"{key} must be an integer of at least {minimum}{other}, got {value!r}")


def _spread(cfg: Mapping[str, Any]) -> Spread:
    workers = None if cfg["num_workers"] == "auto" else cfg["num_workers"]
    envs = min(cfg["num_envs"], cfg["num_episodes"])
    return Spread(cfg["backend"], workers, envs, cfg["address"], float(cfg["gpus_per_worker"]))


def _check_output(output: Path, overwrite: bool) -> None:
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


def _bind(policy: Any, sampler: Mapping[str, Any]) -> BoundSampler:
    """Bind a sampler to the policy, and draw once with a network that says nothing: what does not fit shows now."""
    # An option that is null is the sampler's own choice.
    options = {key: value for key, value in sampler["options"].items() if value is not None}
    chunk = torch.zeros(1, policy.config.horizon, policy.config.action_dim, device=policy.device)
    try:
        config = SamplerConfig(sampler["method"], sampler["num_inference_steps"], sampler["eta"], options)
        bound = policy.bind(config)
        draft = None if policy.draft_network is None else _says_nothing
        bound(_says_nothing, chunk, generator=torch.Generator().manual_seed(0), draft=draft)
    except (ValueError, TypeError) as error:
        raise ValueError(f"sampler '{sampler['name']}': {error}") from error
    return bound  # "auto" is what it was resolved to


def _says_nothing(x: torch.Tensor, t: torch.Tensor, chain: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x)


def _check_fit(policy: Any, env: Any, task: str) -> None:
    """A policy that the task's environment cannot serve is refused before the first episode."""
    given = {key: box.shape[0] if len(box.shape) == 1 else box.shape for key, box in env.observation_space.items()}
    wanted = dict(policy.config.obs_dims)
    wrong = [f"{key} ({size})" for key, size in wanted.items() if given.get(key) != size]
    if wrong:
        there = ", ".join(f"{key} ({size})" for key, size in given.items())
        raise ValueError(
            f"the policy observes {', '.join(wrong)}; task '{task}' gives {there}: give a policy of this task"
        )
    if env.action_space.shape != (policy.config.action_dim,):
        raise ValueError(
            f"the policy's actions have {policy.config.action_dim} dimensions, task '{task}' takes "
            f"{env.action_space.shape[0]} ({policy.config.action_repr}): give a policy of this task"
        )


def _environment(policy: Any, task: str, video: bool) -> Any:
    """A task's environment for a policy."""
    from diffpolicy_spec.envs import RenderUnavailable
    from diffpolicy_spec.envs.tasks import get_task

    try:
        return make_environment(task, policy.config.action_repr, video)
    except ImportError as error:
        if "pip install" in str(error):
            raise
        extra = get_task(task).extra
        raise ImportError(
            f"task '{task}' needs its simulator ({error}): pip install 'diffpolicy-spec[{extra}]'"
        ) from error
    except RenderUnavailable as error:  # MUJOCO_GL names a library that keeps MuJoCo itself from being imported
        raise ValueError(str(error)) from error


def _choose_video(wanted: bool, notices: list[str]) -> bool:
    """Whether to film; sets MUJOCO_GL, which must happen before MuJoCo is imported."""
    if not wanted:
        return False
    require("imageio_ffmpeg", extra="eval", needed_by="video=true")
    backend = offscreen_backend()
    if backend is None:
        tried = f"MUJOCO_GL={os.environ['MUJOCO_GL']}" if os.environ.get("MUJOCO_GL") else "MUJOCO_GL=egl and osmesa"
        notices.append(
            f"no videos: there is no offscreen OpenGL here (tried {tried}); "
            "on Debian and Ubuntu `apt-get install libegl1 libgl1-mesa-dri` or `libosmesa6` brings it"
        )
        return False
    os.environ["MUJOCO_GL"] = backend
    return True


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


def _cell(policy: Any, name: str, task: str, sampler: str, bound: BoundSampler, runtime: Any, steps: int) -> Cell:
    from diffpolicy_spec.choice.fingerprint import fingerprint
    from diffpolicy_spec.envs.tasks import get_task

    schedule, config = bound.schedule, bound.config
    full_chain = schedule.kind == "ddpm" and schedule.num_steps == schedule.num_train_timesteps
    return Cell(
        task=task,
        policy=name,
        policy_fingerprint=fingerprint(policy.network, policy.speculation),
        sampler=sampler,
        sampler_config=_plain(asdict(config)),
        runtime=_plain(asdict(runtime if config.runtime is None else config.runtime)),
        exact=full_chain and config.method in ("ddpm", "speculative", "tree"),
        verifies=config.method in ("speculative", "tree"),
        reference=full_chain and config.method == "ddpm",
        reference_steps=schedule.num_train_timesteps,
        timesteps=tuple(schedule.timesteps.tolist()),
        action_repr=policy.config.action_repr,
        n_action_steps=policy.config.n_action_steps,
        control_freq=get_task(task).control_freq,
        max_steps=steps,
    )


def _plain(value: Any) -> Any:
    """As JSON gives it back, so that a cell that was read equals the one that was written."""
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def prepare(cfg: Mapping[str, Any]) -> Settings:
    """Load the policies, bind the samplers, make the environments, check the rest. Nothing is written.

    Args:
        cfg: plain data with the keys of configs/eval.yaml.

    Raises:
        ValueError, OSError, ImportError: what is wrong and what there is instead.
    """
    _check_numbers(cfg)
    spread = _spread(cfg)
    output = Path(cfg["output"]).expanduser()
    _check_output(output, cfg["overwrite"])
    require("pyarrow", extra="eval", needed_by="the results store")
    if spread.backend == "ray":
        require("ray", extra="ray", needed_by="backend=ray")
    chosen, tasks, paces = resolve_samplers(cfg), resolve_tasks(cfg), resolve_paces(cfg, spread)
    names = resolve_policies(cfg, tasks)
    runtime, device = RuntimeConfig(**cfg["runtime"]), str(parse_device(cfg["device"]))
    notices: list[str] = []

    torch.set_num_threads(cfg["num_threads"])  # sampler=auto compares it with what was measured
    from diffpolicy_spec import load_policy
    from diffpolicy_spec.envs.tasks import get_task

    policies = {name: load_policy(name, device).use(runtime) for name in dict.fromkeys(names.values())}
    bound = {
        (name, sampler["name"]): _bind(policy, sampler) for name, policy in policies.items() for sampler in chosen
    }
    video = _choose_video(cfg["video"], notices)
    works: dict[str, Work] = {}
    worker = Worker(works)
    for task in tasks:
        policy, name = policies[names[task]], names[task]
        worker.close()
        env = _environment(policy, task, video)
        worker.keep(policy, name, device, env, (task, policy.config.action_repr, video))
        _check_fit(policy, env, task)
        unavailable = renders(env, cfg["seed"]) if video else None
        if unavailable is not None:
            notices.append(f"no videos of '{task}': {unavailable}")
        if policy.config.task and policy.config.task != task:
            notices.append(f"the policy was trained on '{policy.config.task}', it runs on '{task}'")
        horizon = get_task(task).horizon
        steps = horizon if cfg["max_steps"] is None else min(cfg["max_steps"], horizon)
        given = cfg["policy"][task] if isinstance(cfg["policy"], Mapping) else cfg["policy"]
        label = task if given == "shipped" else str(given)
        for sampler, pace in product(chosen, paces):
            one = bound[name, sampler["name"]]
            cell = replace(_cell(policy, label, task, sampler["name"], one, runtime, steps), **pace)
            works[cell.id] = Work(
                cell=cell,
                label=" ".join(([] if len(tasks) == 1 else [task]) + [cell.title]),
                policy=name,
                sampler=one.config,
                runtime=runtime,
                device=device,
                num_threads=cfg["num_threads"],
                warmup_calls=cfg["warmup_calls"],
                video=video and unavailable is None,
            )
    notices += _latency_notices(spread)
    return Settings(
        works=works,
        seeds=tuple(range(cfg["seed"], cfg["seed"] + cfg["num_episodes"])),
        spread=spread,
        worker=worker,
        output=output,
        overwrite=cfg["overwrite"],
        film=cfg["seed"] if video else None,
        report=cfg["report"],
        notices=tuple(notices),
    )


def _latency_notices(spread: Spread) -> list[str]:
    if spread.num_envs > 1:
        return [f"latencies are of batched calls for up to {spread.num_envs} environments; num_envs=1 is one robot"]
    if spread.backend == "ray" or spread.num_workers != 1:
        return ["workers share the processor: latencies are those of a loaded machine; num_workers=1 is one robot"]
    return []
