"""Live policies as they are against the same policies accelerated, side by side in one process.

    python benchmarks/live_policies.py             # some ten minutes on a quiet machine; --chunks 3 --small to try it

    # upstream's own classes, DIR as tools/upstream/setup.sh makes it
    PYTHONPATH=.:DIR/diffusion_policy:DIR/robomimic-0.2.0 DIR/venv/bin/python benchmarks/live_policies.py

Policies are upstream's own where diffusion_policy or lerobot can be imported (tools/upstream), else the stand-ins of
tests/acceleration, which have the published networks and loops. The Lift networks are trained: they have the shipped
policy's weights, and recorded observations of Lift. The published sizes have random weights: of theirs, milliseconds a
call mean something, the number of speculative calls does not. Chunks of a policy's variants take turns. Writes
benchmarks/results/live_policies.{json,md}.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from systems_problems import OBSERVATIONS
from systems_tables import markdown
from torch import Tensor, nn

import diffpolicy_spec as dps
from diffpolicy_spec.checkpoints.lerobot.names import unet_name_to_lerobot
from diffpolicy_spec.checkpoints.shipped import resolve
from diffpolicy_spec.choice.record import processor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
T, TO, TA, K = 16, 2, 8, 100
LIFT = {"diffusion_step_embed_dim": 64, "down_dims": (48, 96, 192), "kernel_size": 5}
PUBLISHED = {"diffusion_step_embed_dim": 256, "down_dims": (256, 512, 1024), "kernel_size": 5}

Variants = dict[str, Callable[[Any], Any]]


@dataclass(frozen=True)
class Row:
    """One variant of one policy.

    Attributes:
        policy, variant: what was run.
        classes: "upstream" or "stand-ins".
        parameters: of the network, millions.
        trained: whether its weights are.
        calls, rows: of a chunk, means; None for the policy's own loop, which makes K calls of one row.
        ms: of a chunk, median.
        ratio: the own loop's ms / ms.
    """

    policy: str
    variant: str
    classes: str
    parameters: float
    trained: bool
    calls: float
    rows: float
    ms: float
    ratio: float


@dataclass(frozen=True)
class Live:
    """A live policy: chunk(policy, observation (1, To, Do)) makes it draw one."""

    name: str
    classes: str
    policy: Any
    network: nn.Module
    chunk: Callable[[Any, Tensor], Any]
    observations: Tensor
    trained: bool


def module(name: str) -> Any:
    """A module of upstream, or None."""
    if importlib.util.find_spec(name.split(".")[0]) is None:
        return None
    sys.path.insert(0, str(ROOT / "tools" / "upstream"))
    importlib.import_module("fixture").allow_torchvision()
    return importlib.import_module(name)


def scheduler() -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=K, beta_schedule="squaredcos_cap_v2", clip_sample=True)


def standins() -> Any:
    sys.path.insert(0, str(ROOT / "tests" / "acceleration"))
    return importlib.import_module("standins")


def unet_policy(Da: int, Do: int, sizes: dict[str, Any]) -> tuple[str, Any]:
    """diffusion_policy's low-dimensional policy with a U-Net, observations as global condition."""
    torch.manual_seed(0)
    found = module("diffusion_policy.policy.diffusion_unet_lowdim_policy")
    if found is None:
        here = standins()
        names = {"diffusion_step_embed_dim": "embed", "down_dims": "dims", "kernel_size": "kernel"}
        network = here.ConditionalUnet1D(Da, TO * Do, **{names[key]: value for key, value in sizes.items()})
        policy = here.DiffusionUnetLowdimPolicy(network, scheduler(), Da, Do, T, TO, TA)
        policy.encoder = nn.Identity()
        return "stand-ins", policy.eval()
    networks = importlib.import_module("diffusion_policy.model.diffusion.conditional_unet1d")
    network = networks.ConditionalUnet1D(Da, global_cond_dim=TO * Do, cond_predict_scale=True, **sizes)
    policy = found.DiffusionUnetLowdimPolicy(
        network, scheduler(), T, Do, Da, TA, TO, obs_as_global_cond=True, oa_step_convention=True
    )
    return "upstream", identity(policy, Da, Do)


def transformer_policy(Da: int, Do: int) -> tuple[str, Any]:
    """diffusion_policy's low-dimensional policy with a Transformer of the published size."""
    torch.manual_seed(0)
    found = module("diffusion_policy.policy.diffusion_transformer_lowdim_policy")
    if found is None:
        here = standins()
        network = here.TransformerForDiffusion(Da, T, TO, Do, width=256, layers=8)
        policy = here.DiffusionTransformerLowdimPolicy(network, scheduler(), Da, Do, T, TO, TA)
        policy.encoder = nn.Identity()
        return "stand-ins", policy.eval()
    networks = importlib.import_module("diffusion_policy.model.diffusion.transformer_for_diffusion")
    network = networks.TransformerForDiffusion(Da, Da, T, TO, Do, 8, 4, 256, 0.0, 0.3, causal_attn=True)
    policy = found.DiffusionTransformerLowdimPolicy(network, scheduler(), T, Do, Da, TA, TO, obs_as_cond=True)
    return "upstream", identity(policy, Da, Do)


def identity(policy: Any, Da: int, Do: int) -> Any:
    """Statistics that change nothing: observations are normalised already."""
    normalizers = importlib.import_module("diffusion_policy.model.common.normalizer")
    made = normalizers.LinearNormalizer()
    for key in ("obs", "action"):
        made[key] = normalizers.SingleFieldLinearNormalizer.create_identity()
    policy.set_normalizer(made)
    return policy.eval()


def lerobot_policy(Da: int, Do: int, sizes: dict[str, Any]) -> tuple[str, Any]:
    """LeRobot's policy without cameras."""
    torch.manual_seed(0)
    found = module("lerobot.policies.diffusion.modeling_diffusion")
    if found is None:
        here = standins()
        names = {"diffusion_step_embed_dim": "embed", "down_dims": "dims", "kernel_size": "kernel"}
        network = here.DiffusionConditionalUnet1d(Da, TO * Do, **{names[k]: v for k, v in sizes.items()})
        return "stand-ins", here.DiffusionPolicy(here.DiffusionModel(network, scheduler(), Da, T, TO, TA)).eval()
    types = importlib.import_module("lerobot.configs.types")
    feature, kinds = types.PolicyFeature, types.FeatureType
    config = importlib.import_module("lerobot.policies.diffusion.configuration_diffusion").DiffusionConfig(
        input_features={
            "observation.state": feature(kinds.STATE, (Do - 1,)),
            "observation.environment_state": feature(kinds.ENV, (1,)),
        },
        output_features={"action": feature(kinds.ACTION, (Da,))},
        horizon=T, n_action_steps=TA, device="cpu", push_to_hub=False, **sizes,
    )  # fmt: skip
    return "upstream", found.DiffusionPolicy(config).eval()


@torch.no_grad()
def dp_chunk(policy: Any, obs: Tensor) -> Any:
    return policy.predict_action({"obs": obs})


@torch.no_grad()
def lerobot_chunk(policy: Any, obs: Tensor) -> Any:
    return policy.diffusion.conditional_sample(len(obs), global_cond=obs.flatten(1))


def lives(small: bool) -> Iterator[Live]:
    """The policies that are measured."""
    from safetensors.torch import load_file

    shipped = dps.load_policy("lift")
    (conditions,) = load_file(OBSERVATIONS).values()
    lift = conditions.unflatten(1, (TO, -1))
    Da, Do, weights = 10, lift.shape[2], shipped.network.state_dict()
    classes, policy = unet_policy(Da, Do, LIFT)
    policy.model.load_state_dict(weights)
    yield Live("diffusion_policy, Lift", classes, policy, policy.model, dp_chunk, lift, True)
    classes, policy = lerobot_policy(Da, Do, LIFT | ({} if module("lerobot") is None else {
        "use_film_scale_modulation": True}))  # fmt: skip
    policy.diffusion.unet.load_state_dict({unet_name_to_lerobot(n): v for n, v in weights.items()})
    yield Live("LeRobot, Lift", classes, policy, policy.diffusion.unet, lerobot_chunk, lift, True)
    if small:
        return
    random = torch.randn(8, TO, 20)
    classes, policy = unet_policy(Da, 20, PUBLISHED)
    yield Live("diffusion_policy, published U-Net", classes, policy, policy.model, dp_chunk, random, False)
    classes, policy = transformer_policy(Da, 20)
    yield Live("diffusion_policy, published Transformer", classes, policy, policy.model, dp_chunk, random, False)


def variants(live: Live) -> Variants:
    """name -> what is done to a copy of the policy."""
    made: Variants = {
        "as it is": lambda policy: policy,
        "step by step": lambda policy: dps.accelerate(policy, "ddpm"),
        "accelerate(policy)": dps.accelerate,
    }
    if live.trained:
        folder = resolve("lift")
        made["with speculation=folder"] = lambda policy: dps.accelerate(policy, speculation=folder)
        made["folder, static rounds"] = lambda policy: dps.accelerate(
            policy, speculation=folder, runtime=dps.RuntimeConfig("static")
        )
    return made


def measure(live: Live, chunks: int) -> list[Row]:
    """Median milliseconds of a chunk of every variant, chunk by chunk in turns; the first of each is not counted."""
    policies = {name: make(copy.deepcopy(live.policy)) for name, make in variants(live).items()}
    seconds: dict[str, list[float]] = {name: [] for name in policies}
    counts: dict[str, list[tuple[float, float]]] = {name: [] for name in policies}
    for i in range(chunks + 1):
        obs = live.observations[i % len(live.observations)][None]
        for name, policy in policies.items():
            torch.manual_seed(i)
            start = time.perf_counter()
            live.chunk(policy, obs)
            took = time.perf_counter() - start
            if i:
                seconds[name].append(took)
                stats = getattr(policy, "last_sample_stats", None)
                counts[name].append((K, K) if stats is None else (float(stats.calls), float(stats.evaluations)))
    ms = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    size = sum(p.numel() for p in live.network.parameters()) / 1e6
    return [
        Row(live.name, name, live.classes, round(size, 1), live.trained, statistics.fmean(c for c, _ in counts[name]),
            statistics.fmean(r for _, r in counts[name]), ms[name], ms["as it is"] / ms[name])
        for name in policies
    ]  # fmt: skip


def table(rows: list[Row]) -> str:
    heads = ["live policy", "classes", "parameters", "loop", "calls", "rows", "ms a chunk", "ratio"]
    return markdown(heads, [
        [r.policy + ("" if r.trained else " (random)"), r.classes, f"{r.parameters:.1f} M", r.variant,
         f"{r.calls:.1f}", f"{r.rows:.0f}", f"{r.ms:.1f}", f"{r.ratio:.1f}x"]
        for r in rows
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Live policies as they are and accelerated.")
    parser.add_argument("--chunks", type=int, default=30, help="chunks of every variant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="the Lift networks only")
    parser.add_argument("--output", type=Path, default=RESULTS / "live_policies")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for live in lives(args.small):
        rows += measure(live, args.chunks if live.trained else max(3, args.chunks // 6))
        print(table(rows[-len(variants(live)) :]), flush=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    made = {"processor": processor(), "cores": os.cpu_count(), "threads": args.threads, "versions": versions}
    content = {"environment": made, "chunks": args.chunks, "rows": [asdict(row) for row in rows]}
    args.output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
