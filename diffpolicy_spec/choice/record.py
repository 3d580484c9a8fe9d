"""What the automatic choice found, stored as speculation.json beside a checkpoint, and how `sampler=auto` reads it."""

from __future__ import annotations

import json
import math
import platform
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from diffpolicy_spec.atomic import write_atomically
from diffpolicy_spec.runtime.config import RuntimeConfig
from diffpolicy_spec.samplers import SamplerConfig

__all__ = ["CHOICES", "Choice", "ChoiceError", "changes", "device_name", "find_choice", "processor", "read_choices",
           "resolve_auto", "sequential", "with_choice", "write_choices"]  # fmt: skip

CHOICES = "speculation.json"
FORMAT, VERSION = "diffpolicy_spec.choice", 2
_METHODS = ("speculative", "tree", "sequential")  # all exact


class ChoiceError(ValueError):
    """A stored choice that cannot be read, or is not there."""


@dataclass(frozen=True)
class Choice:
    """The quickest exact sampler of one policy on one device, its runtime, and what was measured to find it.

    Attributes:
        device: "cpu" or the GPU's name.
        processor: the CPU's name.
        torch: version it was measured with.
        weights: fingerprint of the weights and of what was stored for speculation then.
        num_inference_steps: of the chain; None for all training timesteps.
        eta: of the chain; None for DDPM.
        name: of the choice in `candidates`.
        method: "speculative" or "tree", or "sequential" where nothing was quicker.
        options: of the sampler.
        runtime: how its rounds are run; with another dtype than the weights' the law is the rounded network's.
        calls: expected network calls a chunk.
        rows: expected rows a chunk.
        latency_ms: expected milliseconds of a policy call, as measured side by side with `sequential_ms`.
        latency_ms_p95: of the same calls.
        sequential_ms: the sequential sampler's.
        call_cost_ms: runtime, as `runtimes.described` names it -> rows of a network call, as text -> milliseconds.
        candidates: one row per sampler and runtime tried: name, window, runtime, calls, rows, predicted_ms, and
            measured_ms of finalists; the last one is the sequential sampler under its own best runtime.
        most_chains: batches of more chains are expected to be quicker step by step, and are drawn so.
    """

    device: str
    processor: str
    torch: str
    weights: str
    num_inference_steps: int | None
    eta: float | None
    name: str
    method: str
    options: Mapping[str, Any]
    runtime: RuntimeConfig
    calls: float
    rows: float
    latency_ms: float
    latency_ms_p95: float
    sequential_ms: float
    call_cost_ms: Mapping[str, Mapping[str, float]]
    candidates: tuple[Mapping[str, Any], ...]
    most_chains: int | None = None

    @property
    def config(self) -> SamplerConfig:
        """The sampler chosen, with its runtime."""
        if self.method == "sequential":
            return replace(sequential(self.num_inference_steps, self.eta), runtime=self.runtime)
        return SamplerConfig(
            self.method, self.num_inference_steps, self.eta, dict(self.options), self.runtime, self.most_chains
        )

    def is_for(self, device: str, num_inference_steps: int | None, eta: float | None) -> bool:
        """Whether it was measured on this device for this chain."""
        return (self.device, self.num_inference_steps, self.eta) == (device, num_inference_steps, eta)


def device_name(device: torch.device) -> str:
    """ "cpu", or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def processor() -> str:
    """The CPU's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def sequential(num_inference_steps: int | None, eta: float | None) -> SamplerConfig:
    """The sequential sampler of a chain: DDPM, or DDIM where there is an eta."""
    return SamplerConfig("ddpm" if eta is None else "ddim", num_inference_steps, eta)


def with_choice(choices: Iterable[Choice], new: Choice) -> tuple[Choice, ...]:
    """The choices with a new one in place of the one for its device and chain."""
    kept = (c for c in choices if not c.is_for(new.device, new.num_inference_steps, new.eta))
    return (*kept, new)


def write_choices(choices: Sequence[Choice], folder: str | Path) -> None:
    """Write speculation.json into a checkpoint folder; it appears whole or not at all."""
    content = {"format": FORMAT, "version": VERSION, "choices": [asdict(c) for c in choices]}
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(Path(folder) / CHOICES, lambda temporary: temporary.write_text(text))


def read_choices(folder: str | Path) -> tuple[Choice, ...]:
    """The choices stored in a checkpoint folder; none where there is no file.

    Raises:
        ChoiceError: a file that is damaged, of another format, or says something that no sampler can do.
    """
    file = Path(folder) / CHOICES
    if not file.exists():
        return ()
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ChoiceError(f"{file} cannot be read (truncated or damaged?): {error}; {_AGAIN}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise ChoiceError(f"{file} is not of format '{FORMAT}', version {VERSION}; {_AGAIN}")
    try:
        return tuple(_choice(entry) for entry in content["choices"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ChoiceError(f"{file} does not describe choices: {error}; {_AGAIN}") from error


_AGAIN = "delete it and run dps-calibrate again"


def _choice(entry: Mapping[str, Any]) -> Choice:
    names = {f.name for f in fields(Choice)}
    if set(entry) != names:
        raise ValueError(f"an entry has {sorted(set(entry) ^ names)} missing or beside what it should have")
    if entry["method"] not in _METHODS:
        raise ValueError(f"method {entry['method']!r} is none of {', '.join(_METHODS)}")
    for key in ("calls", "rows", "latency_ms", "latency_ms_p95", "sequential_ms"):
        if not isinstance(entry[key], int | float) or not math.isfinite(entry[key]):
            raise ValueError(f"{key} is {entry[key]!r}, not a number")
    runtime, options, candidates = RuntimeConfig(**entry["runtime"]), dict(entry["options"]), entry["candidates"]
    choice = Choice(**{**entry, "runtime": runtime, "options": options, "candidates": tuple(candidates)})
    _ = choice.config  # an unknown option is refused here, not when the robot moves
    return choice


def resolve_auto(
    config: SamplerConfig, choices: Sequence[Choice], device: torch.device, weights: str | None = None
) -> SamplerConfig:
    """The sampler that `SamplerConfig("auto")` stands for on this device, and the runtime unless `config` has one.

    The stored choice for this device and chain; without one the default speculative sampler, with a warning. A choice
    measured under other conditions is used, with a warning: it still draws from the exact law, it may not be the
    quickest. A chain without noise (eta = 0) cannot be speculated and is sampled step by step.

    Args:
        weights: the policy's `fingerprint`; None: not compared.
    """
    steps, eta = config.num_inference_steps, config.eta
    if eta == 0:
        return replace(sequential(steps, eta), runtime=config.runtime)
    try:
        found = find_choice(choices, device, steps, eta)
    except ChoiceError as error:
        warnings.warn(f"sampler=auto: {error}; the default speculative sampler is used", stacklevel=3)
        return SamplerConfig("speculative", steps, eta, runtime=config.runtime)
    changed = changes(found, device, weights)
    if changed:
        warnings.warn(
            f"sampler=auto: the choice for {found.device} was measured with {', '.join(changed)}; it is used, and "
            f"exact, but another sampler may be quicker here. Run dps-calibrate again to know",
            stacklevel=3,
        )
    return found.config if config.runtime is None else replace(found.config, runtime=config.runtime)


def find_choice(
    choices: Sequence[Choice], device: torch.device, num_inference_steps: int | None, eta: float | None
) -> Choice:
    """The choice for this device and chain.

    Raises:
        ChoiceError: there is none.
    """
    name = device_name(device)
    for choice in choices:
        if choice.is_for(name, num_inference_steps, eta):
            return choice
    there = ", ".join(_described(c) for c in choices) or "none"
    raise ChoiceError(
        f"no choice is stored for {name}, {_chain(num_inference_steps, eta)} (stored: {there}): run dps-calibrate on "
        f"this device to measure which sampler is quickest"
    )


def changes(choice: Choice, device: torch.device, weights: str | None) -> list[str]:
    """What has changed since the choice was measured, in words; weights: as in `resolve_auto`."""
    now: list[tuple[str, Any, Any]] = [("torch", choice.torch, torch.__version__)]
    if device.type == "cpu":
        now.append(("processor", choice.processor, processor()))
    changed = [f"{what} {then} (now {today})" for what, then, today in now if then != today]
    return changed + ["other weights, gains or draft network"] * (weights not in (None, choice.weights))


def _chain(steps: int | None, eta: float | None) -> str:
    return f"{steps or 'all'} steps" + ("" if eta is None else f", eta {eta}")


def _described(choice: Choice) -> str:
    return f"{choice.device} ({_chain(choice.num_inference_steps, choice.eta)})"
