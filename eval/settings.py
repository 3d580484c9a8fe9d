"""From a configuration to what a run needs. What can be wrong is found here, before anything runs or is overwritten."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from diffpolicy_spec.device import parse_device
from diffpolicy_spec.eval.video import offscreen_backend
from diffpolicy_spec.optional import require
from diffpolicy_spec.samplers import SamplerConfig

__all__ = ["NamedSampler", "Settings", "known_samplers", "prepare", "resolve_samplers"]

_SAMPLER_KEYS = ("name", "method", "num_inference_steps", "eta", "options")


@dataclass(frozen=True)
class NamedSampler:
    """A sampler bound to the policy under test.

    Attributes:
        name: in tables, files and plots.
        config: the `SamplerConfig`.
        bound: the `BoundSampler`.
    """

    name: str
    config: Any
    bound: Any


@dataclass(frozen=True)
class Settings:
    """A run of dps-eval, checked and ready.

    Attributes:
        policy: the loaded `DiffusionPolicy`.
        samplers: in the order in which they run.
        envs: gymnasium environments, reset per episode.
        seeds: of the episodes, the same for every sampler.
        max_steps: steps after which an episode ends; None for the task's horizon.
        warmup_calls: policy calls before the first episode that are not counted.
        num_threads: torch threads.
        output: folder of the results.
        video: whether the first environment renders.
        plots: whether plots are drawn.
        notices: what the user should know, one line each.
    """

    policy: Any
    samplers: tuple[NamedSampler, ...]
    envs: tuple[Any, ...]
    seeds: tuple[int, ...]
    max_steps: int | None
    warmup_calls: int
    num_threads: int
    output: Path
    video: bool
    plots: bool
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


def _check_numbers(cfg: Mapping[str, Any]) -> None:
    lowest = {"num_episodes": 1, "num_envs": 1, "num_threads": 1, "warmup_calls": 0, "seed": 0, "max_steps": 1}
    for key, minimum in lowest.items():
        value = cfg[key]
        if key == "max_steps" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ValueError(f"{key} must be an integer of at least {minimum}, got {value!r}")


def _check_output(output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"output={output} is a file; give a folder")
    if (output / "eval_log.json").exists() and not overwrite:
        raise ValueError(f"{output} holds the results of an earlier run: give another output=... or overwrite=true")


def _bind(policy: Any, sampler: Mapping[str, Any]) -> NamedSampler:
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
    return NamedSampler(sampler["name"], bound.config, bound)  # "auto" is what it was resolved to


def _says_nothing(x: torch.Tensor, t: torch.Tensor, chain: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x)


def _check_fit(policy: Any, env: Any, task: str) -> None:
    """A policy that the task's environment cannot serve is refused before the first episode."""
    given = {key: box.shape[0] for key, box in env.observation_space.spaces.items()}
    wanted = dict(policy.config.obs_dims)
    wrong = [f"{key} ({size})" for key, size in wanted.items() if given.get(key) != size]
    if wrong:
        there = ", ".join(f"{key} ({size})" for key, size in given.items())
        raise ValueError(f"the policy observes {', '.join(wrong)}; task '{task}' gives {there}")
    if env.action_space.shape != (policy.config.action_dim,):
        raise ValueError(
            f"the policy's actions have {policy.config.action_dim} dimensions, task '{task}' takes "
            f"{env.action_space.shape[0]} ({policy.config.action_repr})"
        )


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


def _renders(env: Any, seed: int, notices: list[str]) -> bool:
    """Whether the environment gives a frame; it may not where MuJoCo was imported before MUJOCO_GL was set."""
    from diffpolicy_spec.envs.rendering import RenderUnavailable

    env.reset(seed=seed)
    try:
        env.render()
    except RenderUnavailable as error:
        notices.append(f"no videos: {error}")
        return False
    return True


def prepare(cfg: Mapping[str, Any]) -> Settings:
    """Load the policy, bind the samplers, make the environments, check the rest. Nothing is written.

    Args:
        cfg: plain data with the keys of configs/eval.yaml.

    Raises:
        ValueError, OSError, ImportError: what is wrong and what there is instead.
    """
    _check_numbers(cfg)
    output = Path(cfg["output"]).expanduser()
    _check_output(output, cfg["overwrite"])
    chosen = resolve_samplers(cfg)
    notices: list[str] = []

    from diffpolicy_spec import load_policy
    from diffpolicy_spec.runtime import RuntimeConfig

    torch.set_num_threads(cfg["num_threads"])  # sampler=auto compares it with what was measured
    policy = load_policy(cfg["policy"], parse_device(cfg["device"])).use(RuntimeConfig(**cfg["runtime"]))
    samplers = tuple(_bind(policy, sampler) for sampler in chosen)

    video = _choose_video(cfg["video"], notices)
    if cfg["plots"]:
        require("matplotlib", extra="eval", needed_by="plots=true")
    from diffpolicy_spec.envs import RenderUnavailable, make_env

    modes = ["rgb_array" if video and i == 0 else None for i in range(min(cfg["num_envs"], cfg["num_episodes"]))]
    task = cfg["task"]["name"]
    try:
        envs = tuple(make_env(task, action_repr=policy.config.action_repr, render_mode=mode) for mode in modes)
    except RenderUnavailable as error:  # MUJOCO_GL names a library that keeps MuJoCo itself from being imported
        raise ValueError(str(error)) from error
    _check_fit(policy, envs[0], task)
    video = video and _renders(envs[0], cfg["seed"], notices)
    if len(envs) > 1:
        notices.append(f"latencies are of batched calls for up to {len(envs)} environments; num_envs=1 is one robot")
    if policy.config.task and policy.config.task != task:
        notices.append(f"the policy was trained on '{policy.config.task}', it runs on '{task}'")
    return Settings(
        policy=policy,
        samplers=samplers,
        envs=envs,
        seeds=tuple(range(cfg["seed"], cfg["seed"] + cfg["num_episodes"])),
        max_steps=cfg["max_steps"],
        warmup_calls=cfg["warmup_calls"],
        num_threads=cfg["num_threads"],
        output=output,
        video=video,
        plots=cfg["plots"],
        notices=tuple(notices),
    )
