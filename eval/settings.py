"""From a configuration to the cells of a run. What can be wrong is found before anything runs or is overwritten."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from diffpolicy_spec.device import parse_device
from diffpolicy_spec.eval.cells import Cell, fingerprint_of
from diffpolicy_spec.eval.jobs import Work
from diffpolicy_spec.eval.resolve import (
    check_numbers,
    check_output,
    resolve_paces,
    resolve_policies,
    resolve_samplers,
    resolve_tasks,
)
from diffpolicy_spec.eval.spread import Spread
from diffpolicy_spec.eval.video import offscreen_backend
from diffpolicy_spec.eval.workers import Worker, renders
from diffpolicy_spec.optional import require
from diffpolicy_spec.runtime import RuntimeConfig
from diffpolicy_spec.samplers import BoundSampler, SamplerConfig

__all__ = ["Settings", "prepare"]


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


def _spread(cfg: Mapping[str, Any]) -> Spread:
    workers = None if cfg["num_workers"] == "auto" else cfg["num_workers"]
    envs = min(cfg["num_envs"], cfg["num_episodes"])
    return Spread(cfg["backend"], workers, envs, cfg["address"], float(cfg["gpus_per_worker"]))


def _bind(policy: Any, sampler: Mapping[str, Any]) -> BoundSampler:
    """Bind a sampler to the policy, and draw once with a network that says nothing: what does not fit shows now."""
    # An option that is null is the sampler's own choice.
    options = {key: value for key, value in sampler["options"].items() if value is not None}
    chunk = torch.zeros(1, policy.config.horizon, policy.config.plan_dim, device=policy.device)
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


def _cell(policy: Any, name: str, env: Any, sampler: str, bound: BoundSampler, runtime: Any, steps: int) -> Cell:
    from diffpolicy_spec.envs.tasks import get_task

    schedule, config = bound.schedule, bound.config
    chain = policy.bind(SamplerConfig("ddpm")).schedule  # of all training timesteps, or of those it is used with
    full_chain = schedule.kind == "ddpm" and torch.equal(schedule.timesteps, chain.timesteps)
    return Cell(
        task=env.task,
        policy=name,
        policy_fingerprint=fingerprint_of(policy),
        sampler=sampler,
        sampler_config=_plain(asdict(config)),
        runtime=_plain(asdict(runtime if config.runtime is None else config.runtime)),
        exact=full_chain and config.method in ("ddpm", "speculative", "tree"),
        verifies=config.method in ("speculative", "tree"),
        reference=full_chain and config.method == "ddpm",
        reference_steps=chain.num_steps,
        timesteps=tuple(schedule.timesteps.tolist()),
        action_repr=env.action_repr,
        n_action_steps=policy.config.n_action_steps,
        control_freq=get_task(env.task).control_freq,
        max_steps=steps,
        environment=_plain(env.changes),
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
    check_numbers(cfg)
    spread = _spread(cfg)
    output = Path(cfg["output"]).expanduser()
    check_output(output, cfg["overwrite"])
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
    from diffpolicy_spec.eval.policy_env import check_env, env_config, open_env

    weights = str(cfg["weights"])
    policies = {
        name: load_policy(name, device, weights=weights).use(runtime) for name in dict.fromkeys(names.values())
    }
    notices += dict.fromkeys(f"{Path(name).name}: {note}" for name, p in policies.items() for note in p.notes)
    bound = {
        (name, sampler["name"]): _bind(policy, sampler) for name, policy in policies.items() for sampler in chosen
    }
    video = _choose_video(cfg["video"], notices)
    works: dict[str, Work] = {}
    worker = Worker(works)
    for task in tasks:
        policy, name = policies[names[task]], names[task]
        worker.close()
        where = env_config(policy, task, tasks, cfg, notices)
        env = open_env(where, video)
        worker.keep(policy, (name, weights, device), env, (where, video))
        check_env(policy, where, env, cfg["seed"])
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
            cell = replace(_cell(policy, label, where, sampler["name"], one, runtime, steps), **pace)
            works[cell.id] = Work(
                cell=cell,
                label=" ".join(([] if len(tasks) == 1 else [task]) + [cell.title]),
                policy=name,
                weights=weights,
                env=where,
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
