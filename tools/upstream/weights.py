"""Weights with few distinct values, so that a 45 MB ResNet compresses to kilobytes, that still behave like a network's.

Every parameter is one seeded pattern of 1021 values, rolled by its name, times a power of two near 1 / sqrt(fan-in).
1021 is prime: rows of a matrix are different pieces of the pattern, and a channel, layer or camera in another's place
shows.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["doubled", "fill", "fit_readout", "settle"]

PERIOD = 1021
KEPT = ("temperature", "pos_x", "pos_y", "pos_grid", "mask", "memory_mask", "_dummy_variable")


def _pattern() -> Tensor:
    generator = torch.Generator().manual_seed(20231107)
    return torch.randint(-8, 9, (PERIOD,), generator=generator) / 8.0


@torch.no_grad()
def fill(module: nn.Module, seed: str = "") -> None:
    """Give every parameter and running statistic of a module its values; what the architecture fixes stays."""
    pattern = _pattern()
    tensors: Iterable[tuple[str, Tensor]] = (*module.named_parameters(), *module.named_buffers())
    for name, tensor in tensors:
        last = name.rsplit(".", 1)[-1]
        if last in KEPT or tensor.numel() == 0 or not tensor.is_floating_point():
            continue
        rolled = pattern.roll(zlib.crc32((seed + name).encode()) % PERIOD)
        values = rolled.repeat(-(-tensor.numel() // PERIOD))[: tensor.numel()].reshape(tensor.shape)
        if last == "running_var":
            values = 1 + values / 2
        elif last in ("bias", "running_mean", "in_proj_bias"):
            values = values / 8
        elif last.endswith("pos_emb"):
            values = values / 2
        elif tensor.dim() == 1:  # a norm's weight
            values = 1 + values / 4
        else:
            fan_in = tensor.numel() / tensor.shape[0]
            values = values * 2.0 ** round(math.log2(1.6 / math.sqrt(fan_in)))
        tensor.copy_(values)


@torch.no_grad()
def fit_readout(
    network: Callable[[Tensor, Tensor], Tensor],
    readout: nn.Linear | nn.Conv1d,
    abar: Tensor,
    shape: tuple[int, int],
    prediction: str = "epsilon",
    spread: float = 0.3,
    calls: int = 24,
    batch: int = 16,
) -> None:
    """Fit the last, linear layer by least squares to what a diffusion model of smooth plans would predict.

    A random network drives every coordinate to the clip range's ends, where errors no longer show. What is before the
    last layer stays as it is; the layer's weights are rounded to multiples of 1/256.

    Args:
        network: (x (B, T, D), t (B,)) -> (B, T, D), with some observations for its condition.
        readout: a Linear, or a Conv1d with kernel 1, whose output is the network's.
        abar: (K,) the scheduler's alphas_cumprod.
        shape: (T, D) of a plan.
        prediction: "epsilon" or "sample".
        spread: standard deviation of the plans' coordinates.
    """
    generator = torch.Generator().manual_seed(7)
    seen: list[Tensor] = []
    hook = readout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features, targets = [], []
    T, D = shape
    phase = torch.linspace(0, math.pi, T)[None, :, None]
    for _ in range(calls):
        a, b = torch.randn((2, batch, 1, D), generator=generator)
        x0 = spread * (a * torch.cos(phase) + b * torch.sin(phase))
        eps = torch.randn((batch, T, D), generator=generator)
        t = torch.randint(0, len(abar), (batch,), generator=generator)
        scale = abar[t][:, None, None]
        network(scale.sqrt() * x0 + (1 - scale).sqrt() * eps, t)
        last = seen.pop()
        features.append((last.movedim(1, 2) if isinstance(readout, nn.Conv1d) else last).flatten(0, 1))
        targets.append((eps if prediction == "epsilon" else x0).flatten(0, 1))
    hook.remove()
    h = torch.cat(features).double()
    h = torch.cat([h, torch.ones_like(h[:, :1])], dim=1)
    gram = h.T @ h + 1e-3 * len(h) * torch.eye(h.shape[1], dtype=h.dtype)
    solution = torch.linalg.solve(gram, h.T @ torch.cat(targets).double()).T
    solution = (solution * 256).round() / 256
    readout.weight.copy_(solution[:, :-1].reshape(readout.weight.shape))
    assert readout.bias is not None
    readout.bias.copy_(solution[:, -1])


@torch.no_grad()
def settle(encoder: nn.Module, images: Tensor | dict[str, Tensor]) -> None:
    """Give batch norms the statistics of these images, 4 bits of mantissa each: without, activations would explode."""
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = 1.0
    torch.manual_seed(0)  # where images are cropped
    encoder.train()
    encoder(images)
    encoder.eval()
    for norm in norms:
        norm.momentum = 0.1
        for buffer in (norm.running_mean, norm.running_var):
            assert buffer is not None
            mantissa, exponent = torch.frexp(buffer)
            buffer.copy_(torch.ldexp((mantissa * 16).round() / 16, exponent))


def doubled(module: nn.Module) -> Any:
    """A copy in float64. Upstream's embedding of t is float32 whatever the weights are: its values stay, widened."""
    exact = copy.deepcopy(module).double()
    for part in exact.modules():
        if type(part).__name__.endswith("SinusoidalPosEmb"):
            part.register_forward_hook(lambda _, inputs, output: output.double())
    return exact
