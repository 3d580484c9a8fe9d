"""All the randomness of a chain, drawn beforehand, so that every sampler can be run on the same draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import Schedule

__all__ = ["Generator", "Noise", "NoiseTable", "as_noise", "draw_noise"]

Generator = torch.Generator | Sequence[torch.Generator] | None
"""One generator for a batch, one for each chain, or torch's default."""


@dataclass(frozen=True)
class Noise:
    """The draws of B chains of K steps.

    Attributes:
        start: (B, Tp, Da) x_0 ~ N(0, I), the noisiest state.
        steps: (K, B, Tp, Da) xi_k ~ N(0, I), the innovation of step k.
        uniforms: (K, B) U_k ~ Uniform[0, 1), the acceptance draw of step k (speculative samplers only).
    """

    start: Tensor
    steps: Tensor
    uniforms: Tensor


def draw_noise(
    shape: tuple[int, int, int],
    schedule: Schedule,
    generator: Generator = None,
    device: torch.device | str = "cpu",
) -> Noise:
    """Draw the noise of `shape` = (B, Tp, Da) chains.

    Args:
        generator: one generator for the batch, or B of them: then a chain's draws depend on its own generator only,
            whatever batch it is in. Numbers are drawn on the generator's device and moved to `device`.

    Raises:
        ValueError: the number of generators is not B.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return _draw(shape, schedule.num_steps, generator, device)
    if len(generator) != shape[0]:
        raise ValueError(f"expected one generator per chain, {shape[0]}, got {len(generator)}")
    parts = [_draw((1, *shape[1:]), schedule.num_steps, g, device) for g in generator]
    return Noise(
        start=torch.cat([p.start for p in parts]),
        steps=torch.cat([p.steps for p in parts], dim=1),
        uniforms=torch.cat([p.uniforms for p in parts], dim=1),
    )


class NoiseTable:
    """The noise of a running sampler, (B, K, D) and (B, K); what a verifier has spent is drawn anew.

    known: (B, D) bool, coordinates that are not noised, or None.
    """

    def __init__(self, noise: Noise, generator: Generator, known: Tensor | None = None) -> None:
        K, B = noise.uniforms.shape
        self.xi, self.u = noise.steps.transpose(0, 1).reshape(B, K, -1), noise.uniforms.T
        self._generator, self._known, self._owned = generator, known, False

    def redraw(self, chain: Tensor, steps: Tensor, rows: Tensor) -> None:
        """Draw the noise of steps: (b, N) of chains: (b,) anew where rows: (b, N) says so.

        With one generator for each chain, a chain's draws depend on its own generator only.
        """
        if not self._owned:  # the caller's tensors stay as they are
            self.xi, self.u, self._owned = self.xi.clone(), self.u.clone(), True
        chains, at = chain[:, None].expand_as(steps)[rows], steps[rows]
        if self._generator is None or isinstance(self._generator, torch.Generator):
            xi, u = _fresh(len(at), self.xi, self._generator)
        else:
            counts, owners = rows.sum(dim=1).tolist(), chain.tolist()
            parts = [_fresh(n, self.xi, self._generator[c]) for n, c in zip(counts, owners, strict=True)]
            xi, u = (torch.cat(part) for part in zip(*parts, strict=True))
        if self._known is not None:
            xi = xi.masked_fill(self._known[chains], 0.0)
        self.xi[chains, at], self.u[chains, at] = xi, u


def _fresh(count: int, like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    source = like.device if generator is None else generator.device
    xi = torch.randn((count, like.shape[-1]), generator=generator, device=source)
    return xi.to(like.device), torch.rand(count, generator=generator, device=source).to(like.device)


def as_noise(noise: Noise | Tensor, schedule: Schedule, generator: Generator = None) -> Noise:
    """Complete and check what a sampler was given: a whole `Noise`, or only its start (B, Tp, Da).

    Raises:
        ValueError: shapes do not fit the schedule, or the start is not finite.
    """
    if isinstance(noise, Tensor):
        if noise.dim() != 3:
            raise ValueError(f"noise must be (B, Tp, Da), got shape {tuple(noise.shape)}")
        start = noise.to(torch.float32)
        rest = draw_noise((start.shape[0], start.shape[1], start.shape[2]), schedule, generator, start.device)
        noise = Noise(start=start, steps=rest.steps, uniforms=rest.uniforms)
    K, shape = schedule.num_steps, tuple(noise.start.shape)
    if len(shape) != 3 or tuple(noise.steps.shape) != (K, *shape) or tuple(noise.uniforms.shape) != (K, shape[0]):
        raise ValueError(
            f"noise does not fit a schedule of {K} steps: start {shape}, steps {tuple(noise.steps.shape)}, uniforms "
            f"{tuple(noise.uniforms.shape)}; expected (B, Tp, Da), (K, B, Tp, Da), (K, B). Draw it with draw_noise"
        )
    if shape[0] < 1:
        raise ValueError("noise has no chains: B must be at least 1")
    if not (torch.isfinite(noise.start).all() and torch.isfinite(noise.steps).all()):
        raise ValueError("noise has NaN or infinite values")
    return noise


def _draw(
    shape: tuple[int, ...], steps: int, generator: torch.Generator | None, device: torch.device | str
) -> Noise:
    source = device if generator is None else generator.device
    start = torch.randn(shape, generator=generator, device=source)
    xi = torch.randn((steps, *shape), generator=generator, device=source)
    u = torch.rand((steps, shape[0]), generator=generator, device=source)
    return Noise(start=start.to(device), steps=xi.to(device), uniforms=u.to(device))
