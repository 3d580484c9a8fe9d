"""The networks of `runtime.py`, and c(n), what a call with n rows costs, in every way to run them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from runtime_floors import DTYPES, Machine, work_of
from torch import Tensor, nn

from diffpolicy_spec import BoundSampler, Denoise, Schedule, draw_noise, load_policy
from diffpolicy_spec.choice.cost import CallCost, measure_call_cost
from diffpolicy_spec.clock import clock
from diffpolicy_spec.policies.config import EncoderConfig
from diffpolicy_spec.policies.inference import inference_network
from diffpolicy_spec.policies.runner import Conditioned, Runner
from diffpolicy_spec.policies.transformer import TransformerForDiffusion
from diffpolicy_spec.policies.unet import ConditionalUnet1D
from diffpolicy_spec.policies.vision import ImageEncoder
from diffpolicy_spec.runtime import RuntimeConfig

__all__ = ["AS_IT_IS", "NETWORKS", "ROWS", "TRAINED", "Costs", "Network", "as_it_is", "encoder_seconds",
           "measure_calls", "sequential_ms"]  # fmt: skip

ROWS = (1, 2, 4, 8, 16, 32, 64, 100)
TRAINED = "lift, 2.5M U-Net"
AS_IT_IS = "module as it is"
CHUNK, LOW_DIM, IMAGES = (16, 10), 46, 2 * (2 * 64 + 9)  # conditions: two observations each

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    TRAINED: lambda: load_policy("lift").network,
    "66M U-Net": lambda: ConditionalUnet1D(CHUNK[1], LOW_DIM),
    "9M Transformer": lambda: TransformerForDiffusion(CHUNK[1], CHUNK[0], 2, LOW_DIM // 2),
    "256M image U-Net": lambda: ConditionalUnet1D(
        CHUNK[1], IMAGES, diffusion_step_embed_dim=128, down_dims=(512, 1024, 2048)
    ),
}
"""By name; all but the first have random weights, which the clock does not see."""

Costs = dict[tuple[str, str], CallCost]
"""c(n) by mode (or AS_IT_IS) and dtype."""


@dataclass(frozen=True)
class Network:
    """A network of NETWORKS on a device; condition: (1, C)."""

    name: str
    module: nn.Module
    condition: Tensor

    @classmethod
    def make(cls, name: str, device: torch.device) -> Network:
        """The network of this name."""
        torch.manual_seed(0)
        module: Any = NETWORKS[name]().eval().requires_grad_(False).to(device)
        return cls(name, module, torch.zeros(1, module.global_cond_dim, device=device))


def as_it_is(module: nn.Module, condition: Tensor) -> Denoise:
    """A module under conditions (B, C), called as diffusion_policy calls it."""
    return lambda x, t, chain: module(x, t, condition[chain])


def measure_calls(
    network: Network,
    schedule: Schedule,
    machine: Machine,
    runtimes: Sequence[RuntimeConfig],
    rows: Sequence[int],
    budget: float,
) -> tuple[Costs, Iterator[dict[str, Any]]]:
    """c(n) as it is and under every runtime, and rows of a table.

    budget: seconds of each; what cannot be called three times within it is left out, from the largest n on.
    """
    device, work = network.condition.device, work_of(network.module, CHUNK, network.condition)
    ways: dict[tuple[str, str], tuple[Denoise, RuntimeConfig]] = {
        (AS_IT_IS, "float32"): (as_it_is(network.module, network.condition), RuntimeConfig())
    }
    laid_out: dict[str, Conditioned] = {}
    for runtime in runtimes:
        if runtime.mode == "static":  # its calls are those of "eager"
            continue
        dtype = runtime.dtype or "float32"
        if dtype not in laid_out:
            try:
                inference = inference_network(network.module, schedule.num_train_timesteps, DTYPES[dtype])
            except ValueError:  # no layout for this network: it runs in float32 only
                continue
            laid_out[dtype] = Conditioned(inference).load(network.condition)
        ways[runtime.mode, dtype] = laid_out[dtype], runtime
    costs = {way: _within(budget, denoise, schedule, device, rows, runtime) for way, (denoise, runtime) in ways.items()}

    def described() -> Iterator[dict[str, Any]]:
        for (way, dtype), cost in costs.items():
            floors = [work.floor(machine, n, dtype) for n in cost.rows]
            yield {
                "network": network.name, "way": way, "dtype": dtype, **asdict(work),
                "parameters": sum(p.numel() for p in network.module.parameters()), "rows": cost.rows,
                "ms": [1e3 * s for s in cost.seconds], "floor_ms": [1e3 * s for s in floors],
            }  # fmt: skip

    return costs, described()


def _within(
    budget: float, denoise: Denoise, schedule: Schedule, device: torch.device, rows: Sequence[int],
    runtime: RuntimeConfig,
) -> CallCost:  # fmt: skip
    """`measure_call_cost` of as many rows as often as the budget allows."""
    probe = measure_call_cost(denoise, schedule, CHUNK, device, rows=[1, 8], repeats=1)  # eagerly: nothing to make
    rows = sorted(rows)
    while len(rows) > 2 and 3 * float(probe(rows).sum()) > budget:
        rows = rows[:-1]
    repeats = int(budget / float(probe(rows).sum())) - 2  # two turns are for warming up
    return measure_call_cost(
        denoise, schedule, CHUNK, device, runtime=runtime, rows=rows, repeats=min(max(repeats, 1), 50)
    )


def sequential_ms(
    network: Network, sampler: BoundSampler, runtime: RuntimeConfig, expected: float, budget: float
) -> float:
    """ms of a chunk, at the median, drawn call by call with this network: its weights do not matter.

    expected: seconds of a chunk; budget: seconds for all, but one chunk at least.
    """
    device, generator = network.condition.device, torch.Generator().manual_seed(0)
    runner = Runner(network.module, None, sampler.schedule.num_train_timesteps, runtime)
    noise = draw_noise((1, *CHUNK), sampler.schedule, generator, device)
    if runtime.compiles or runtime.captures or 4 * expected < budget:  # warm-up
        runner.sample(sampler, network.condition, noise)
    times = []
    for _ in range(min(max(int(budget / expected), 1), 20)):
        begin = clock(device)
        runner.sample(sampler, network.condition, noise)
        times.append(clock(device) - begin)
    return 1e3 * statistics.median(times)


@torch.no_grad()
def encoder_seconds(device: torch.device, repeats: int) -> float:
    """Seconds, at the median, to encode two observations of two cameras: once a chunk."""
    shapes = dict.fromkeys(("front", "wrist"), (3, 84, 84))
    encoder = ImageEncoder(EncoderConfig(crop=(76, 76)), shapes).eval().to(device)
    images = {camera: torch.zeros(1, 2, *shape, device=device) for camera, shape in shapes.items()}
    times = []
    for _ in range(repeats + 1):
        begin = clock(device)
        encoder(images)
        times.append(clock(device) - begin)
    return statistics.median(times[1:])
